"""LoRA (Hu et al. 2021): generated low-rank changes of linear maps.

§4.1: "add a pair of rank-decomposition weight matrices to each attention weight matrix". As in HINT, both matrices of a
pair are generated and their product is scaled by alpha / rank. They act as two thin products beside the frozen map; the
changed weight matrix is never formed, so each row of a batch can have its own LoRA.
"""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hart.errors import HartError
from hart.peft import injection
from hart.peft.base import Blocks, MainShape, PeftKind, RowBlock, Stack, register

SELF, CROSS, FEED_FORWARD = ("q", "k", "v", "o"), ("cross_q", "cross_k", "cross_v", "cross_o"), ("wi", "wo")
TARGETS = (*SELF, *CROSS, *FEED_FORWARD)


@register
@dataclass(frozen=True)
class Lora(PeftKind):
    """LoRA as blocks `lora.{stack}.{target}.a` `[batch, layers, rank, in]` and `.b` `[batch, layers, rank, out]`.

    A target's output becomes y + (alpha / rank) · (x Aᵀ) B.

    Fields:
        rank: rank of the change.
        alpha: numerator of the scale; the paper gives neither rank nor alpha (open; HINT scales by alpha / rank).
        targets: the changed maps of each layer: q, k, v, o of self-attention; cross_q, … of the decoder's
            cross-attention; wi (both input maps of a gated feed-forward; Llama's gate and up) and wo (Llama's down),
            except in a mixture of experts. HINT uses q and v.
    """

    name: ClassVar[str] = "lora"
    identity_at_start: ClassVar[bool] = True

    rank: int = 16
    alpha: float = 16.0
    targets: list[str] = field(default_factory=lambda: ["q", "v"])

    def __post_init__(self) -> None:
        self._whole_number("rank")
        if type(self.alpha) not in (int, float) or not 0 < self.alpha < math.inf:
            raise HartError(f"peft.lora.alpha must be a number > 0, not {self.alpha!r}")
        targets = self.targets
        if not isinstance(targets, list) or not targets or any(target not in TARGETS for target in targets):
            raise HartError(f"peft.lora.targets must be a list of some of {', '.join(TARGETS)}, not {targets!r}")
        if len(set(targets)) < len(targets):
            raise HartError(f"peft.lora.targets names a target twice: {', '.join(targets)}")

    def row_blocks(self, shape: MainShape) -> tuple[RowBlock, ...]:
        if set(self.targets) & set(CROSS):
            self._needs_cross_attention(shape, "targets")
        if set(self.targets) & set(FEED_FORWARD):
            self._needs_dense(shape, "targets")
        return tuple(
            shape.block(f"lora.{stack}.{site}.{part}", stack, site, self.rank, width)
            for stack, site in self._sites(shape)
            for part, width in zip("ab", shape.widths(site), strict=True)
        )

    def init_std(self, main: PreTrainedModel | None, shape: MainShape) -> dict[str, Tensor]:
        """As `PeftKind.init_std`; B starts at 0, so LoRA changes nothing, and A such that A x keeps the size of x."""
        return {
            block.name: torch.full((block.layers,), block.width**-0.5 if block.name.endswith(".a") else 0.0)
            for block in self.row_blocks(shape)
        }

    def bindings(self, main: PreTrainedModel, blocks: Blocks) -> dict[injection.Site, injection.Binding]:
        scale = self.alpha / self.rank
        changes: dict[injection.Site, injection.Binding] = {}
        for stack, site in self._sites(MainShape.from_config(main.config)):
            a, b = blocks[f"lora.{stack}.{site}.a"], blocks[f"lora.{stack}.{site}.b"]
            for layer, module in enumerate(injection.sites(main, stack, site)):
                changes[module] = functools.partial(_add_low_rank, a[:, layer], b[:, layer], scale)
        return changes

    def _sites(self, shape: MainShape) -> Iterator[tuple[Stack, str]]:
        """Stack and module name of every map that is changed."""
        for stack in shape.stacks:
            for target in self.targets:
                if stack == "encoder" and target in CROSS:
                    continue
                yield from (
                    (stack, site) for site in (("wi_0", "wi_1") if shape.gated and target == "wi" else (target,))
                )


def _add_low_rank(a: Tensor, b: Tensor, scale: float, inputs: Tensor, output: Tensor) -> Tensor:
    a, b = injection.for_batch(a, inputs), injection.for_batch(b, inputs)
    low = injection.product(inputs, a.transpose(1, 2))
    if b.shape[0] == 1:
        return torch.addmm(output.flatten(0, 1), low.flatten(0, 1), b[0], alpha=scale).view_as(output)
    return torch.baddbmm(output, low, b, alpha=scale)
