"""All layer states at once, each attending to all others (§1, Fig. 1).

The experiment that motivates HART: "we train the decoder to generate a sequence of hidden states using bidirectional
attention, with each state responsible for learning the weights for an individual layer". Its attention map shows which
layers depend on which.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers.models.t5.modeling_t5 import T5Stack

from hart.hypernetwork.decoding import DecoderPass, relative_bias
from hart.hypernetwork.schemes import STACK_INDEX, GenerationScheme, register
from hart.peft import RowBlock


@register
class Bidirectional(GenerationScheme):
    """One bidirectional pass over z `[2L, d]`: a learned input per layer and stack; states have m = 1 row.

    The rows lie as the autoregressive scheme's steps do: encoder layer 1, decoder layer 1, encoder layer 2, … So
    the decoder's relative bias sees the same distances between layers in both schemes. T5 gives all later rows the
    bias of distance 0.

    Args:
        d_model: width of the decoder.
        layers: L.
        blocks: what is generated from the states; not needed here.
    """

    name = "bidirectional"
    state_rows = 1

    def __init__(self, d_model: int, layers: int, blocks: Sequence[RowBlock]) -> None:
        super().__init__()
        self.layers = layers
        self.z = nn.Parameter(torch.empty(layers * len(STACK_INDEX), d_model))

    def reset_parameters(self, std: float) -> None:
        nn.init.normal_(self.z, std=std)

    def forward(self, decoder: T5Stack | None, memory: Tensor, memory_mask: Tensor, *, cached: bool = True) -> Tensor:
        """As `GenerationScheme.forward`; there is one step, so `cached` makes no difference."""
        states, _ = self._run(decoder, memory, memory_mask)
        return states.unflatten(1, (self.layers, len(STACK_INDEX))).transpose(1, 2).unsqueeze(3)

    def attention_maps(self, decoder: T5Stack | None, memory: Tensor, memory_mask: Tensor) -> Tensor:
        """Self-attention of the last decoder layer, averaged over its heads: what Fig. 1 draws.

        Returns:
            `[b, 2, L, L]`: for each stack of the main model, how much the state of a layer (third axis) attends to
            that of another layer of the same stack (fourth axis). Rows sum to 1 over both stacks together, so to less
            than 1 here.
        """
        _, weights = self._run(decoder, memory, memory_mask)
        pairs = weights.mean(dim=1).unflatten(1, (self.layers, -1)).unflatten(3, (self.layers, -1))
        return torch.stack([pairs[:, :, i, :, i] for i in STACK_INDEX.values()], dim=1)

    def _run(self, decoder: T5Stack | None, memory: Tensor, memory_mask: Tensor) -> tuple[Tensor, Tensor]:
        """States `[b, 2L, d]` and attention weights of the last layer `[b, heads, 2L, 2L]`."""
        assert decoder is not None
        inputs = self.z.expand(memory.shape[0], -1, -1)
        decoding = DecoderPass(decoder, memory, memory_mask)
        states = decoding.step(inputs, relative_bias(decoder, inputs.shape[1]))
        return states, decoding.attention_weights
