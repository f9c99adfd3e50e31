"""The heads: layer states → row blocks (App. 8.1.2).

"Each MLP consists of a layer normalization, 2 linear projections and a tanh non-linear activation."
Per family of blocks (encoder/decoder × key/value): LayerNorm with its own gain and shift per layer
→ one linear map d → (rows/m)·d shared by the layers → reshape to `rows` rows of d → tanh → one
linear map d → width per layer. All layers of a family are computed at once as a batched matrix
product. The linear maps have no biases: the paper gives each projection as a matrix, and so the
counts are 4·p·d² shared first maps and 4L second maps of d². The width is heads·d_kv of the main
model, which the paper's models have equal to d.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hart.hypernetwork.schemes import STACK_INDEX
from hart.peft import Blocks, RowBlock

TANH_SECOND_MOMENT = 0.394294
"""E[tanh²(x)] for x ~ N(0, 1), which is what the second maps receive before training."""


class LayerwiseNorm(nn.Module):
    """LayerNorm whose gain and shift differ per layer: `[layers, b, m, d]` → same shape."""

    def __init__(self, layers: int, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(layers, 1, 1, d_model))
        self.bias = nn.Parameter(torch.zeros(layers, 1, 1, d_model))

    def forward(self, states: Tensor) -> Tensor:
        normed = F.layer_norm(states, states.shape[-1:])
        return torch.addcmul(self.bias, normed, self.weight)


class BlockHead(nn.Module):
    """The MLPs of one family of blocks for all its layers.

    Args:
        block: the family.
        d_model: width of the states.
        state_rows: m, rows of one state; a divisor of the family's rows.

    Raises:
        ValueError: m does not divide the rows.
    """

    def __init__(self, block: RowBlock, d_model: int, state_rows: int) -> None:
        super().__init__()
        if block.rows % state_rows:
            raise ValueError(f"{block.name}: {block.rows} rows from states of {state_rows} rows")
        self.block = block
        self.norm = LayerwiseNorm(block.layers, d_model)
        self.first = nn.Linear(d_model, block.rows // state_rows * d_model, bias=False)
        self.second = nn.Parameter(torch.empty(block.layers, d_model, block.width))

    @torch.no_grad()
    def reset_parameters(self, std: Tensor) -> None:
        """Draw the weights so that generated rows of layer l have standard deviation `std[l]`.

        The norm's output has unit variance, so first maps of variance 1/d keep it, and second maps
        of variance std² / (d · E[tanh²]) yield std.

        Args:
            std: `[layers]`.
        """
        d_model = self.first.in_features
        nn.init.ones_(self.norm.weight)
        nn.init.zeros_(self.norm.bias)
        nn.init.normal_(self.first.weight, std=d_model**-0.5)
        scales = std / (d_model * TANH_SECOND_MOMENT) ** 0.5
        for layer, scale in enumerate(scales.tolist()):
            nn.init.normal_(self.second[layer], std=scale)

    def forward(self, states: Tensor) -> Tensor:
        """`[b, L, m, d]` → `[b, layers, rows, width]`, of which each layer's slice is
        contiguous."""
        # Layers first, so that the second maps are one batched product; matmul with the batch first
        # would copy the maps for every row of it.
        states = states[:, : self.block.layers].transpose(0, 1)
        layers, batch, _, d_model = states.shape
        rows = self.first(self.norm(states))
        activations = torch.tanh(rows).view(layers, batch * self.block.rows, d_model)
        made = torch.bmm(activations, self.second)
        return made.unflatten(1, (batch, self.block.rows)).transpose(0, 1)


class RowBlockHeads(nn.Module):
    """All families of a set of PEFT kinds: layer states `[b, 2, L, m, d]` → `Blocks`.

    Blocks of no rows need no head and come out empty.

    Args:
        blocks: what to generate, in order.
        d_model: width of the states.
        rows_of: which rows of a state serve a block (`GenerationScheme.rows_of`).
    """

    def __init__(self, blocks: Sequence[RowBlock], d_model: int, rows_of: Callable[[RowBlock], slice]) -> None:
        super().__init__()
        self.blocks = tuple(blocks)
        self._rows = {block.name: rows_of(block) for block in blocks if block.rows}
        # Module names cannot contain dots.
        self.families = nn.ModuleDict(
            {
                block.name.replace(".", "_"): BlockHead(block, d_model, _length(self._rows[block.name]))
                for block in blocks
                if block.rows
            }
        )

    def reset_parameters(self, std: Mapping[str, Tensor]) -> None:
        """Draw all weights for rows of standard deviation `std[block name]` `[layers]`."""
        for head in self.heads():
            head.reset_parameters(std[head.block.name])

    def heads(self) -> list[BlockHead]:
        return [head for head in self.families.values() if isinstance(head, BlockHead)]

    def forward(self, states: Tensor) -> Blocks:
        made = {
            head.block.name: head(states[:, STACK_INDEX[head.block.stack], :, self._rows[head.block.name]])
            for head in self.heads()
        }
        batch = states.shape[0]
        return {
            block.name: made[block.name] if block.rows else states.new_zeros(batch, block.layers, 0, block.width)
            for block in self.blocks
        }


def _length(rows: slice) -> int:
    return rows.stop - rows.start
