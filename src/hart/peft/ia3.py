"""(IA)³ (Liu et al. 2022): vectors that scale keys, values and the inner activation of the feed-forward.

Not in the paper; an example of a further PEFT kind in one file. The vectors are stored as their difference from 1.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hart.errors import HartError
from hart.peft import injection
from hart.peft.base import Blocks, MainShape, PeftKind, RowBlock, Stack, register

_MODULES = {"key": "k", "value": "v", "ff": "feed_forward_inner", "cross_key": "cross_k", "cross_value": "cross_v"}


@register
@dataclass(frozen=True)
class Ia3(PeftKind):
    """(IA)³ as blocks `ia3.{stack}.{key,value}` `[batch, layers, 1, kv_inner]` and `.ff` `[batch, layers, 1, d_ff]`.

    All blocks start at 0 (no change). A mixture of experts has no `.ff`.

    Fields:
        cross: whether the decoder's cross-attention has vectors, too (`ia3.decoder.cross_key`, `.cross_value`).
    """

    name: ClassVar[str] = "ia3"
    identity_at_start: ClassVar[bool] = True

    cross: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.cross, bool):
            raise HartError(f"peft.ia3.cross must be true or false, not {self.cross!r}")

    def row_blocks(self, shape: MainShape) -> tuple[RowBlock, ...]:
        if self.cross:
            self._needs_cross_attention(shape, "cross")
        return tuple(
            shape.block(f"ia3.{stack}.{part}", stack, _MODULES[part], 1, shape.d_ff if part == "ff" else shape.kv_inner)
            for stack, part in self._parts(shape)
        )

    def init_std(self, main: PreTrainedModel | None, shape: MainShape) -> dict[str, Tensor]:
        return {block.name: torch.zeros(block.layers) for block in self.row_blocks(shape)}

    def bindings(self, main: PreTrainedModel, blocks: Blocks) -> dict[injection.Site, injection.Binding]:
        changes: dict[injection.Site, injection.Binding] = {}
        for stack, part in self._parts(MainShape.from_config(main.config)):
            difference = blocks[f"ia3.{stack}.{part}"]
            for layer, module in enumerate(injection.sites(main, stack, _MODULES[part])):
                scale = _scale_input if isinstance(module, injection.Input) else _scale
                changes[module] = functools.partial(scale, difference[:, layer])
        return changes

    def _parts(self, shape: MainShape) -> Iterator[tuple[Stack, str]]:
        """Stack and part of every vector."""
        for stack in shape.stacks:
            for part in _MODULES:
                if part == "ff" and shape.experts:
                    continue
                if not part.startswith("cross_") or (self.cross and stack == "decoder"):
                    yield stack, part


def _scale_input(difference: Tensor, inputs: Tensor) -> Tensor:
    return _scale(difference, inputs, inputs)


def _scale(difference: Tensor, _: Tensor, output: Tensor) -> Tensor:
    return output * (1 + injection.for_batch(difference, output))
