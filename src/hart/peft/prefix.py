"""Prefix tuning (Li & Liang 2021): generated rows beside the keys and values of self-attention.

§4.1: "generates the prefixes for the layerwise key and value representations". App. 8.1.2 counts
4L heads: one key and one value prefix per layer of each stack, so the prefixes go to the
self-attention of the encoder and of the decoder, not to cross-attention.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from transformers import T5ForConditionalGeneration

from hart.errors import HartError
from hart.peft import STACKS, Blocks, MainShape, PeftKind, RowBlock, injection, register


@register
@dataclass(frozen=True)
class Prefix(PeftKind):
    """Blocks `prefix.{encoder,decoder}.{key,value}` `[batch, layers, length, heads · d_kv]`.

    Fields:
        length: rows per layer, p; App. 8.1.2: "which is set to be 32".
        init_scale: initial standard deviation of the rows, as a fraction of that of the main
            model's own keys and values. The paper leaves it open. T5 does not divide scores by
            √d_kv, so rows as large as real keys would already draw attention from the tokens.
    """

    name: ClassVar[str] = "prefix"
    identity_at_start: ClassVar[bool] = False

    length: int = 32
    init_scale: float = 0.3

    def __post_init__(self) -> None:
        if type(self.length) is not int or self.length < 0:
            raise HartError(f"peft.prefix.length must be a whole number ≥ 0, not {self.length!r}")
        if not isinstance(self.init_scale, int | float) or not 0 < self.init_scale < math.inf:
            raise HartError(f"peft.prefix.init_scale must be a number > 0, not {self.init_scale!r}")

    def row_blocks(self, shape: MainShape) -> tuple[RowBlock, ...]:
        return tuple(
            RowBlock(f"prefix.{stack}.{part}", stack, shape.layers(stack), self.length, shape.inner)
            for stack in STACKS
            for part in ("key", "value")
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
        for stack in STACKS:
            for part, projection in (("key", "k"), ("value", "v")):
                per_layer = []
                for block in getattr(main, stack).block:
                    weight = getattr(block.layer[0].SelfAttention, projection).weight
                    gain = block.layer[0].layer_norm.weight
                    product = weight.detach().float() * gain.detach().float()
                    per_layer.append(product.square().sum(dim=1).mean().sqrt())
                stds[f"prefix.{stack}.{part}"] = self.init_scale * torch.stack(per_layer).cpu()
        return stds

    def bind(self, main: T5ForConditionalGeneration, blocks: Blocks) -> None:
        values = {}
        for stack in STACKS:
            keys, vals = blocks[f"prefix.{stack}.key"], blocks[f"prefix.{stack}.value"]
            for layer, attention in enumerate(injection.sites(main, stack, "self_attention")):
                values[attention] = injection.KeyValueRows.from_blocks(
                    keys[:, layer], vals[:, layer], main.config.num_heads
                )
        injection.bound_of(main).update(values)

    def clear(self, main: T5ForConditionalGeneration) -> None:
        sites = [site for stack in STACKS for site in injection.sites(main, stack, "self_attention")]
        injection.bound_of(main).remove(sites)
