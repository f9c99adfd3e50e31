"""The bidirectional scheme: all layer states at once, each attending to all others (§1, Fig. 1).

It is the experiment that motivates HART: "we train the decoder to generate a sequence of hidden states using
bidirectional attention, with each state responsible for learning the weights for an individual layer". Its attention
map shows the dependencies between layers.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from hart.errors import HartError
from hart.hypernetwork.decoding import DecoderPass, relative_bias
from hart.hypernetwork.schemes.base import GenerationScheme, register
from hart.hypernetwork.schemes.order import LayerOrder
from hart.peft.base import RowBlock
from hart.runtime.third_party.transformers import T5Stack


@register
class Bidirectional(GenerationScheme):
    """One bidirectional pass over z `[S·L·m, d]`: m learned inputs per layer and stack.

    Positions are in the order of the autoregressive scheme's steps: encoder layer 1, decoder layer 1, encoder layer 2,
    … So with m = 1 the distances between layers in the decoder's relative bias are the same in both schemes. T5 gives
    all later positions the bias of distance 0.

    Args:
        d_model: width of the decoder.
        layers: L.
        blocks: blocks to generate from the states; unused here.
        stacks: S.
        rows: m, the number of vectors of a state, which must divide the rows of every block. HART has 1; with the
            prefix length each row of the prefix has its own state, as in HyperTuning.

    Raises:
        HartError: `rows` is not a whole number ≥ 1.
    """

    name = "bidirectional"

    def __init__(
        self, d_model: int, layers: int, blocks: Sequence[RowBlock], stacks: int = 2, *, rows: int = 1
    ) -> None:
        super().__init__()
        if type(rows) is not int or rows < 1:
            raise HartError(f"scheme.{self.name}.rows must be a whole number ≥ 1, not {rows!r}")
        self.layers = layers
        self.stacks = stacks
        self.rows = self.state_vectors = rows
        self.layer_order = LayerOrder(self.name, layers)
        self.z = nn.Parameter(torch.empty(layers * self.stacks * rows, d_model))

    def reset_parameters(self, std: float) -> None:
        nn.init.normal_(self.z, std=std)

    def forward(
        self, decoder: T5Stack | None, memory: Float[Tensor, "n s d"], memory_mask: Shaped[Tensor, "n s"]
    ) -> Float[Tensor, "n S L m d"]:
        states, _ = self._run(decoder, memory, memory_mask)
        by_step = states.unflatten(1, (self.layers, self.stacks, self.rows)).transpose(1, 2)
        return by_step[:, :, self.layer_order.step_of_layer]

    def attention_maps(
        self, decoder: T5Stack | None, memory: Float[Tensor, "n s d"], memory_mask: Shaped[Tensor, "n s"]
    ) -> Float[Tensor, "n S L L"]:
        """The attention maps of Fig. 1: self-attention of the last decoder layer, averaged over heads and rows.

        Returns:
            For each stack of the main model, the attention of one layer's state (third axis) to another layer's state
            of the same stack (fourth axis). Rows sum to 1 over all stacks together, so to less than 1 for each of two
            stacks.
        """
        _, weights = self._run(decoder, memory, memory_mask)
        shape = (self.layers, self.stacks, self.rows)
        pairs = weights.mean(dim=1).unflatten(1, shape).mean(dim=3).unflatten(3, shape).sum(dim=5)
        by_step = torch.stack([pairs[:, :, i, :, i] for i in range(self.stacks)], dim=1)
        order = self.layer_order.step_of_layer
        return by_step[:, :, order][:, :, :, order]

    def bias(self, decoder: T5Stack) -> Float[Tensor, "1 heads x x"]:
        """The bias of the self-attention scores of the x = S·L·m positions."""
        return relative_bias(decoder, self.z.shape[0])

    def _run(
        self, decoder: T5Stack | None, memory: Float[Tensor, "n s d"], memory_mask: Shaped[Tensor, "n s"]
    ) -> tuple[Float[Tensor, "n x d"], Float[Tensor, "n heads x x"]]:
        """The states at x = S·L·m positions, and the attention weights of the last layer."""
        assert decoder is not None
        inputs = self.z.expand(memory.shape[0], -1, -1)
        decoding = DecoderPass(decoder, memory, memory_mask)
        states = decoding.step(inputs, self.bias(decoder))
        return states, decoding.attention_weights
