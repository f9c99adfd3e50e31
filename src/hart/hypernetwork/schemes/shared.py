"""HyperTuning's scheme: one state shared by all layers (§2.2 Eq. 3–4, App. 8.1.2).

It is one decoder pass over 2m learnable inputs with bidirectional self-attention. In every layer, the first m states
serve the encoder of the main model and the last m its decoder (without an encoder there are m inputs); only the heads'
norms and second linear maps differ by layer. This is the baseline for HART's layer-by-layer states.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from hart.errors import HartError
from hart.hypernetwork.decoding import DecoderPass, relative_bias
from hart.hypernetwork.schemes.base import GenerationScheme, register
from hart.peft.base import RowBlock
from hart.runtime.third_party.transformers import T5Stack


@register
class Shared(GenerationScheme):
    """One bidirectional pass over z `[S·m, d]`; the states are views that repeat it for each layer.

    Args:
        d_model: width of the decoder.
        layers: L, the number of layers that share the state.
        blocks: blocks to generate.
        stacks: S.
        rows: m, the number of vectors of a state, which must divide the rows of every block; None: their greatest
            common divisor. This is the prefix length p if only prefixes are generated, as in the paper.

    Raises:
        HartError: `rows` is not a whole number ≥ 1.
    """

    name = "shared"
    shared_by_layers = True

    def __init__(
        self, d_model: int, layers: int, blocks: Sequence[RowBlock], stacks: int = 2, *, rows: int | None = None
    ) -> None:
        super().__init__()
        if rows is not None and (type(rows) is not int or rows < 1):
            raise HartError(f"scheme.shared.rows must be a whole number ≥ 1 or null, not {rows!r}")
        self.layers = layers
        self.stacks = stacks
        self.rows = rows
        self.state_vectors = rows or math.gcd(*(block.rows for block in blocks))
        self.z = nn.Parameter(torch.empty(stacks * self.state_vectors, d_model))

    @property
    def positions(self) -> int:
        return self.stacks * self.state_vectors

    def reset_parameters(self, std: float) -> None:
        nn.init.normal_(self.z, std=std)

    def forward(
        self, decoder: T5Stack | None, memory: Float[Tensor, "n s d"], memory_mask: Shaped[Tensor, "n s"]
    ) -> Float[Tensor, "n S L m d"]:
        assert decoder is not None
        inputs = self.z.expand(memory.shape[0], -1, -1)
        decoding = DecoderPass(decoder, memory, memory_mask)
        states = decoding.step(inputs, relative_bias(decoder, inputs.shape[1]))
        per_stack = states.unflatten(1, (self.stacks, 1, self.state_vectors))
        return per_stack.expand(-1, -1, self.layers, -1, -1)
