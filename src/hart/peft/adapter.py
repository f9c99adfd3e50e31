"""Adapters (Houlsby et al. 2019) parallel to the feed-forward, as in HINT.

y = FF(x̂) + gelu(x̂ Dᵀ + b_D) U + b_U, where x̂ is the feed-forward's input after its norm. D, b_D, U and b_U are
generated.
"""

import functools
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from hart.errors import HartError
from hart.peft import injection
from hart.peft.base import Blocks, MainShape, PeftKind, RowBlock, register


@register
@dataclass(frozen=True)
class Adapter(PeftKind):
    """Adapters as blocks `adapter.{stack}.{down,up}` `[batch, layers, bottleneck, d_model]`.

    With biases also `.down_bias` `[batch, layers, 1, bottleneck]` and `.up_bias` `[batch, layers, 1, d_model]`.

    Fields:
        bottleneck: width of the adapter's inner layer.
        biases: whether b_D and b_U are generated, too (HINT), or left out.
    """

    name: ClassVar[str] = "adapter"
    identity_at_start: ClassVar[bool] = True

    bottleneck: int = 64
    biases: bool = True

    def __post_init__(self) -> None:
        self._whole_number("bottleneck")
        if not isinstance(self.biases, bool):
            raise HartError(f"peft.adapter.biases must be true or false, not {self.biases!r}")

    def row_blocks(self, shape: MainShape) -> tuple[RowBlock, ...]:
        sizes = {"down": (self.bottleneck, shape.d_model), "up": (self.bottleneck, shape.d_model)}
        if self.biases:
            sizes |= {"down_bias": (1, self.bottleneck), "up_bias": (1, shape.d_model)}
        return tuple(
            shape.block(f"adapter.{stack}.{part}", stack, "feed_forward", rows, width)
            for stack in shape.stacks
            for part, (rows, width) in sizes.items()
        )

    def init_std(self, main: PreTrainedModel | None, shape: MainShape) -> dict[str, Tensor]:
        """As `PeftKind.init_std`; all blocks except the down-projection start at 0, so the adapter changes nothing."""
        return {
            block.name: torch.full((block.layers,), block.width**-0.5 if block.name.endswith(".down") else 0.0)
            for block in self.row_blocks(shape)
        }

    def bindings(self, main: PreTrainedModel, blocks: Blocks) -> dict[injection.Site, injection.Binding]:
        changes: dict[injection.Site, injection.Binding] = {}
        for stack in MainShape.from_config(main.config).stacks:
            down, up, down_bias, up_bias = (
                blocks.get(f"adapter.{stack}.{part}") for part in ("down", "up", "down_bias", "up_bias")
            )
            assert down is not None and up is not None
            for layer, module in enumerate(injection.sites(main, stack, "feed_forward")):
                changes[module] = functools.partial(
                    _add_adapter,
                    down[:, layer],
                    up[:, layer],
                    None if down_bias is None else down_bias[:, layer],
                    None if up_bias is None else up_bias[:, layer],
                )
        return changes


def _add_adapter(
    down: Tensor, up: Tensor, down_bias: Tensor | None, up_bias: Tensor | None, inputs: Tensor, output: Tensor
) -> Tensor:
    inner = injection.product(inputs, injection.for_batch(down, inputs).transpose(1, 2))
    if down_bias is not None:
        inner = inner + injection.for_batch(down_bias, inputs)
    made = injection.product(F.gelu(inner), injection.for_batch(up, inputs))
    if up_bias is not None:
        made = made + injection.for_batch(up_bias, inputs)
    return output + made
