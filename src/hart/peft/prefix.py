"""Prefix tuning (Li & Liang 2021): generated rows beside the keys and values of self-attention.

§4.1: "generates the prefixes for the layerwise key and value representations". App. 8.1.2 counts
4L heads: one key and one value prefix per layer of each stack, so the prefixes go to the
self-attention of the encoder and of the decoder, not to cross-attention.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers import T5ForConditionalGeneration

from hart.errors import HartError
from hart.peft import injection
from hart.peft.base import STACKS, Blocks, MainShape, PeftKind, RowBlock, register


@register
@dataclass(frozen=True)
class Prefix(PeftKind):
    """Blocks `prefix.{encoder,decoder}.{key,value}` `[batch, layers, length, heads · d_kv]`.

    With `cross` also `prefix.decoder.{cross_key,cross_value}`.

    Fields:
        length: rows per layer, p; App. 8.1.2: "which is set to be 32".
        init_scale: initial standard deviation of the rows, as a fraction of that of the main
            model's own keys and values. The paper leaves it open. T5 does not divide scores by
            √d_kv, so rows as large as real keys would already draw attention from the tokens.
        cross: whether the decoder's cross-attention has prefixes too, as in HINT; the paper counts
            heads for self-attention alone (open).
    """

    name: ClassVar[str] = "prefix"
    identity_at_start: ClassVar[bool] = False

    length: int = 32
    init_scale: float = 0.3
    cross: bool = False

    def __post_init__(self) -> None:
        if type(self.length) is not int or self.length < 0:
            raise HartError(f"peft.prefix.length must be a whole number ≥ 0, not {self.length!r}")
        if not isinstance(self.init_scale, int | float) or not 0 < self.init_scale < math.inf:
            raise HartError(f"peft.prefix.init_scale must be a number > 0, not {self.init_scale!r}")
        if not isinstance(self.cross, bool):
            raise HartError(f"peft.prefix.cross must be true or false, not {self.cross!r}")

    def row_blocks(self, shape: MainShape) -> tuple[RowBlock, ...]:
        return tuple(
            RowBlock(f"prefix.{stack}.{part}", stack, shape.layers(stack), self.length, shape.inner)
            for stack, site, names in self._sites()
            for part in names
        )

    def init_std(self, main: T5ForConditionalGeneration | None, shape: MainShape) -> dict[str, Tensor]:
        """`init_scale` times the standard deviation of the main model's own keys and values.

        The input x̂ of the projections has unit root mean square before the norm's gain g, so with
        uncorrelated features Var[(W(g∘x̂))_i] = Σ_j W_ij² g_j², averaged over i per layer. T5 is
        initialised with Var[W_ij] = 1/d and g = 1, hence standard deviation 1 without weights.
        """
        if main is None:
            return {block.name: torch.full((block.layers,), self.init_scale) for block in self.row_blocks(shape)}
        stds: dict[str, Tensor] = {}
        for stack, site, names in self._sites():
            attentions: list[Any] = injection.sites(main, stack, site)
            # Self-attention reads what its own layer has normed, cross-attention the encoder's output.
            own = [block.layer[0].layer_norm for block in getattr(main, stack).block]
            norms = own if site == "self_attention" else [main.encoder.final_layer_norm] * len(attentions)
            for part, projection in zip(names, "kv", strict=True):
                per_layer = []
                for attention, norm in zip(attentions, norms, strict=True):
                    product = getattr(attention, projection).weight.detach().float() * norm.weight.detach().float()
                    per_layer.append(product.square().sum(dim=1).mean().sqrt())
                stds[f"prefix.{stack}.{part}"] = self.init_scale * torch.stack(per_layer).cpu()
        return stds

    def bindings(self, main: T5ForConditionalGeneration, blocks: Blocks) -> dict[nn.Module, injection.Binding]:
        extra: dict[nn.Module, injection.Binding] = {}
        for stack, site, names in self._sites():
            keys, values = (blocks[f"prefix.{stack}.{part}"] for part in names)
            for layer, attention in enumerate(injection.sites(main, stack, site)):
                extra[attention] = injection.ExtraKeyValues.from_blocks(
                    keys[:, layer], values[:, layer], main.config.num_heads
                )
        return extra

    def _sites(self) -> Iterator[tuple[Literal["encoder", "decoder"], str, tuple[str, str]]]:
        """Stack, site and the names of its two blocks."""
        for stack in STACKS:
            yield stack, "self_attention", ("key", "value")
        if self.cross:
            yield "decoder", "cross_attention", ("cross_key", "cross_value")
