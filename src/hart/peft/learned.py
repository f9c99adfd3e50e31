"""PEFT parameters that are learned directly, one set for all tasks (§4.1, PEFT baselines).

They are Prefix-Tuning and LoRA of the paper's tables: the blocks that a hypernetwork would generate, bound to the main
model in the same way, as trained parameters. Prefixes are not reparametrised through an MLP (Li & Liang 2021 use one;
this paper does not mention it).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hart.peft.base import Blocks, MainShape, build_kinds, row_blocks


class LearnedWeights(nn.Module):
    """One parameter `[1, layers, rows, width]` for each block of some PEFT kinds.

    Args:
        peft: configuration of the kinds.
        shape: shape of the main model.

    Raises:
        HartError: a kind or field is unknown.
    """

    def __init__(self, peft: Sequence[Mapping[str, Any]], shape: MainShape) -> None:
        super().__init__()
        self.kinds = build_kinds(peft)
        self.shape = shape
        self._blocks = row_blocks(self.kinds, shape)
        # Names of parameters cannot contain dots.
        self.values = nn.ParameterDict(
            {_key(block.name): torch.empty(1, block.layers, block.rows, block.width) for block in self._blocks}
        )

    @torch.no_grad()
    def reset_parameters(self, main: PreTrainedModel | None) -> None:
        """Draw the rows with the initial standard deviation of each kind (`PeftKind.init_std`)."""
        for kind in self.kinds:
            for name, std in kind.init_std(main, self.shape).items():
                rows = self.values[_key(name)]
                rows.copy_(torch.randn(rows.shape) * std.view(1, -1, 1, 1))

    def forward(self) -> Blocks:
        return {block.name: self.values[_key(block.name)] for block in self._blocks}


def _key(name: str) -> str:
    return name.replace(".", "_")
