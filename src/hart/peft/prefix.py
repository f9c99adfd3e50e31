"""Prefix tuning (Li & Liang 2021): generated rows in front of the keys and values of self-attention.

§4.1: "generates the prefixes for the layerwise key and value representations". App. 8.1.2 counts 4L heads: one key and
one value prefix per layer of each stack. So the self-attention of encoder and decoder has prefixes, cross-attention has
none.
"""

import functools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from hart.errors import HartError
from hart.peft import injection
from hart.peft.architectures import architecture
from hart.peft.base import Blocks, MainShape, PeftKind, RowBlock, Stack, register
from hart.peft.modules import at, layers, layers_with, norm_of


@register
@dataclass(frozen=True)
class Prefix(PeftKind):
    """Prefixes as blocks `prefix.{stack}.{key,value}` `[batch, layers, length, kv_heads · d_kv]`.

    With `cross` also `prefix.decoder.{cross_key,cross_value}`.

    Fields:
        length: number p of rows per layer; App. 8.1.2: "which is set to be 32".
        init_scale: initial standard deviation of the rows, as a fraction of that of the main model's own keys and
            values. The paper leaves it open. T5 does not divide scores by √d_kv, so rows as large as real keys would
            draw attention from the tokens before training.
        cross: whether the decoder's cross-attention has prefixes, too, as in HINT; the paper counts heads for
            self-attention only (open).
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
        if self.cross:
            self._needs_cross_attention(shape, "cross")
        return tuple(
            shape.block(f"prefix.{stack}.{part}", stack, site, self.length, shape.kv_inner)
            for stack, site, names in self._sites(shape)
            for part in names
        )

    def init_std(self, main: PreTrainedModel | None, shape: MainShape) -> dict[str, Tensor]:
        """As `PeftKind.init_std`: `init_scale` times the standard deviation of the main model's keys and values.

        The input x̂ of the projections has unit root mean square before the norm's gain g, so with uncorrelated
        features Var[(W(g∘x̂))_i] = Σ_j W_ij² g_j², averaged over i per layer. T5 is initialised with Var[W_ij] = 1/d
        and g = 1, hence standard deviation 1 without weights. If keys or values have their own norm (Qwen 3, Gemma 4),
        its gains are their standard deviations. Without a norm of the input (OLMo 2), x is the sum of an embedding and
        the normed outputs of all layers below: g² is the sum of the embedding's mean square and the squared gains of
        their norms.
        """
        if main is None:
            return {block.name: torch.full((block.layers,), self.init_scale) for block in self.row_blocks(shape)}
        stds: dict[str, Tensor] = {}
        table = architecture(main.config)
        for stack, site, names in self._sites(shape):
            # Self-attention reads its layer's normed input, cross-attention the encoder's output.
            if site == "self_attention":
                sizes = _sizes(main, stack)
            else:
                sizes = [_gains(at(main, "encoder.final_layer_norm"), table.gain)] * shape.layers(stack)
            projections: tuple[Literal["k", "v"], ...] = ("k", "v")
            for part, projection in zip(names, projections, strict=True):
                target = projection if site == "self_attention" else f"cross_{projection}"
                maps = injection.sites(main, stack, target)
                per_layer = []
                for layer, (place, size) in enumerate(zip(maps, sizes, strict=True)):
                    norm = norm_of(projection, main.config, layers_with(main, stack, site)[layer])
                    if norm is not None:
                        gains = _gains(norm, table.gain)
                        per_layer.append(gains.square().mean().sqrt())
                        continue
                    product = injection.weight_of(place).detach().float() * size.to(injection.weight_of(place).device)
                    per_layer.append(product.square().sum(dim=1).mean().sqrt())
                stds[f"prefix.{stack}.{part}"] = self.init_scale * torch.stack(per_layer).cpu()
        return stds

    def bindings(self, main: PreTrainedModel, blocks: Blocks) -> dict[injection.Site, injection.Binding]:
        extra: dict[injection.Site, injection.Binding] = {}
        shape = MainShape.from_config(main.config)
        for stack, site, names in self._sites(shape):
            keys, values = (blocks[f"prefix.{stack}.{part}"] for part in names)
            for layer, attention in enumerate(injection.sites(main, stack, site)):
                extra[attention] = injection.ExtraKeyValues.from_blocks(
                    keys[:, layer], values[:, layer], shape.heads_in_front
                )
        for told in injection.positions(main):
            # A prefix is a past of as many tokens (PEFT's convention), so the first token is at position p.
            extra[told] = functools.partial(torch.add, other=self.length)
        return extra

    def _sites(self, shape: MainShape) -> Iterator[tuple[Stack, str, tuple[str, str]]]:
        """Stack, site and the names of its two blocks."""
        for stack in shape.stacks:
            yield stack, "self_attention", ("key", "value")
        if self.cross:
            yield "decoder", "cross_attention", ("cross_key", "cross_value")


def _sizes(main: PreTrainedModel, stack: Stack) -> list[Float[Tensor, " d"]]:
    """Root mean square of each feature of self-attention's input, for every layer."""
    table = architecture(main.config)
    if table.norm is not None:
        return [_gains(at(layer, table.norm), table.gain) for layer in layers_with(main, stack, "self_attention")]
    embeddings: Any = main.get_input_embeddings()
    squares: Tensor = embeddings.weight.detach().float().square().mean(dim=0)
    sizes = []
    for layer in layers(main, stack):
        sizes.append(squares.sqrt())
        for path in table.added:
            squares = squares + _gains(at(layer, path), table.gain).square().to(squares.device)
    return sizes


def _gains(norm: nn.Module, more: float) -> Float[Tensor, " d"]:
    """The gains of a norm: its weights plus `more`, which is not 0 for some architectures; 1 without weights."""
    weight: Any = getattr(norm, "weight", None)
    return torch.ones(1) if weight is None else weight.detach().float() + more


def prefix_length(kinds: Iterable[PeftKind]) -> int:
    """The number of tokens that prefixes among `kinds` count as."""
    return sum(kind.length for kind in kinds if isinstance(kind, Prefix))
