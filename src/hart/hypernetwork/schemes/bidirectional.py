"""All layer states at once, each attending to all others (§1, Fig. 1).

The experiment that motivates HART: "we train the decoder to generate a sequence of hidden states using bidirectional
attention, with each state responsible for learning the weights for an individual layer". Its attention map shows which
layers depend on which.
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

    Positions have the order of the autoregressive scheme's steps: encoder layer 1, decoder layer 1, encoder layer 2, …
    So with one row the decoder's relative bias sees the same distances between layers in both schemes. T5 gives all
    later positions the bias of distance 0.

    Args:
        d_model: width of the decoder.
        layers: L.
        blocks: what is generated from the states; not needed here.
        stacks: S.
        rows: m, vectors of a state, which must divide the rows of every block. HART has 1; the prefix length gives
            each row of the prefix its own state, as in HyperTuning.

    Raises:
        HartError: `rows` is no whole number ≥ 1.
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
        """Self-attention of the last decoder layer, averaged over its heads and the rows of a state: what Fig. 1 draws.

        Returns:
            For each stack of the main model, how much the state of a layer (third axis) attends to
            that of another layer of the same stack (fourth axis). Rows sum to 1 over all stacks together, so to less
            than 1 for each of two stacks.
        """
        _, weights = self._run(decoder, memory, memory_mask)
        shape = (self.layers, self.stacks, self.rows)
        pairs = weights.mean(dim=1).unflatten(1, shape).mean(dim=3).unflatten(3, shape).sum(dim=5)
        by_step = torch.stack([pairs[:, :, i, :, i] for i in range(self.stacks)], dim=1)
        order = self.layer_order.step_of_layer
        return by_step[:, :, order][:, :, :, order]

    def bias(self, decoder: T5Stack) -> Float[Tensor, "1 heads x x"]:
        """What is added to the self-attention scores of the x = S·L·m positions."""
        return relative_bias(decoder, self.z.shape[0])

    def _run(
        self, decoder: T5Stack | None, memory: Float[Tensor, "n s d"], memory_mask: Shaped[Tensor, "n s"]
    ) -> tuple[Float[Tensor, "n x d"], Float[Tensor, "n heads x x"]]:
        """States at x = S·L·m positions, and attention weights of the last layer."""
        assert decoder is not None
        inputs = self.z.expand(memory.shape[0], -1, -1)
        decoding = DecoderPass(decoder, memory, memory_mask)
        states = decoding.step(inputs, self.bias(decoder))
        return states, decoding.attention_weights
