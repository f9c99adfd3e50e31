"""The heads, which map layer states to row blocks (App. 8.1.2).

"Each MLP consists of a layer normalization, 2 linear projections and a tanh non-linear activation."
For each family of blocks (for a T5 with prefixes: encoder/decoder × key/value): LayerNorm with its own gain and shift
per layer → one linear map d → (rows/m)·d shared by the layers → reshape to `rows` rows of d → tanh → one linear map
d → width per layer. All layers of a family are computed at once as a batched matrix product. The linear maps have no
biases, as the paper gives each projection as a matrix: 4·p·d² numbers for the shared first maps and 4L second maps of
d². The width is heads·d_kv of the main model, which equals d in the paper's models.

Not in the paper: with `bias` a learned bias, the same for all tasks, is added to each generated row (as in text-to-lora
and doc-to-lora). The parts above have none: the norms' shifts pass through tanh and two maps together with the state.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from hart.peft.base import STACKS, Blocks, RowBlock, Stack

TANH_SECOND_MOMENT = 0.394294
"""E[tanh²(x)] for x ~ N(0, 1): the second moment of the second maps' input before training."""


class LayerwiseNorm(nn.Module):
    """LayerNorm whose gain and shift differ per layer."""

    def __init__(self, layers: int, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(layers, 1, 1, d_model))
        self.bias = nn.Parameter(torch.zeros(layers, 1, 1, d_model))

    def forward(self, states: Float[Tensor, "L n m d"]) -> Float[Tensor, "L n m d"]:
        normed = F.layer_norm(states, states.shape[-1:])
        return torch.addcmul(self.bias, normed, self.weight)


class BlockHead(nn.Module):
    """The MLPs of one family of blocks for all its layers.

    Args:
        block: the family.
        d_model: width of the states.
        vectors: number m of vectors of a state from which the block is generated; a divisor of the family's rows.
        bias: whether a learned bias, the same for all tasks and 0 before training, is added to the rows.

    Raises:
        ValueError: m does not divide the rows.
    """

    def __init__(self, block: RowBlock, d_model: int, vectors: int, *, bias: bool = False) -> None:
        super().__init__()
        if block.rows % vectors:
            raise ValueError(f"{block.name}: {block.rows} rows from states of {vectors} rows")
        self.block = block
        self.norm = LayerwiseNorm(block.layers, d_model)
        self.first = nn.Linear(d_model, block.rows // vectors * d_model, bias=False)
        self.second = nn.Parameter(torch.empty(block.layers, d_model, block.width))
        self.bias = nn.Parameter(torch.zeros(block.layers, block.rows, block.width)) if bias else None

    @torch.no_grad()
    def reset_parameters(self, std: Float[Tensor, " L"]) -> None:
        """Draw the weights so that generated rows of layer l have standard deviation `std[l]`.

        The norm's output has unit variance; first maps of variance 1/d keep it, and second maps of variance
        std² / (d · E[tanh²]) yield std.
        """
        d_model = self.first.in_features
        nn.init.ones_(self.norm.weight)
        nn.init.zeros_(self.norm.bias)
        nn.init.normal_(self.first.weight, std=d_model**-0.5)
        scales = std / (d_model * TANH_SECOND_MOMENT) ** 0.5
        for layer, scale in enumerate(scales.tolist()):
            nn.init.normal_(self.second[layer], std=scale)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, states: Float[Tensor, "n _L m d"]) -> Float[Tensor, "n L p width"]:
        """The family's rows, contiguous for each layer. States of layers without such rows are ignored."""
        # Layers first, so that the second maps are one batched product; with the batch first, matmul would copy the
        # maps for every row.
        own = self.block.of
        states = (states[:, : self.block.layers] if own is None else states[:, list(own)]).transpose(0, 1)
        layers, batch, _, d_model = states.shape
        activations = torch.tanh(self.first(self.norm(states))).view(layers, batch * self.block.rows, d_model)
        made = torch.bmm(activations, self.second)
        made = made.unflatten(1, (batch, self.block.rows))
        if self.bias is not None:
            made = made + self.bias[:, None]
        return made.transpose(0, 1)


class RowBlockHeads(nn.Module):
    """The heads of all families of a set of PEFT kinds.

    Blocks without rows have no head and are empty.

    Args:
        blocks: the blocks to generate, in order.
        d_model: width of the states.
        vectors_of: maps a block to the vectors of a state that serve it (`GenerationScheme.vectors_of`).
        stacks: stacks of the main model, in the order of axis 1 of the states.
        bias: as in `BlockHead`.
    """

    def __init__(
        self,
        blocks: Sequence[RowBlock],
        d_model: int,
        vectors_of: Callable[[RowBlock], slice],
        stacks: Sequence[Stack] = STACKS,
        *,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.blocks = tuple(blocks)
        self.stacks = tuple(stacks)
        self._vectors = {block.name: vectors_of(block) for block in blocks if block.rows}
        # Module names cannot contain dots.
        self.families = nn.ModuleDict(
            {
                block.name.replace(".", "_"): BlockHead(block, d_model, _length(self._vectors[block.name]), bias=bias)
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

    def forward(self, states: Float[Tensor, "n S L m d"]) -> Blocks:
        made = {
            head.block.name: head(states[:, self.stacks.index(head.block.stack), :, self._vectors[head.block.name]])
            for head in self.heads()
        }
        batch = states.shape[0]
        return {
            block.name: made[block.name] if block.rows else states.new_zeros(batch, block.layers, 0, block.width)
            for block in self.blocks
        }


def _length(vectors: slice) -> int:
    return vectors.stop - vectors.start
