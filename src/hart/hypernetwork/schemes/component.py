"""HINT's scheme: one cross-attention from learned (layer, component) embeddings (§4.1; Ivison et al. 2022).

There is no decoder: the embedding of each layer and component attends once to the encoded demonstrations. A component
is a row of a prefix, or a whole matrix or bias of another kind. To have few parameters, the embedding is the sum of a
learned vector of the layer and one of the component, per stack. Norm, residual and heads are those of T5's
cross-attention; the paper does not describe them.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from hart.errors import HartError
from hart.hypernetwork.schemes.base import GenerationScheme, register
from hart.peft.base import RowBlock
from hart.runtime.third_party.transformers import T5Stack

EPSILON = 1e-6


@register
class Component(GenerationScheme):
    """States of m vectors, one for each component of a layer; a block is generated only from its own vectors.

    Args:
        d_model: width of the encoder's output.
        layers: L.
        blocks: blocks to generate, which determine the components.
        stacks: S.
        heads: number of heads of the cross-attention, each of width d_model / heads.

    Raises:
        HartError: `heads` does not divide d_model.
    """

    name = "component"
    uses_decoder = False

    def __init__(
        self, d_model: int, layers: int, blocks: Sequence[RowBlock], stacks: int = 2, *, heads: int | None = None
    ) -> None:
        super().__init__()
        if heads is not None and (type(heads) is not int or heads < 1 or d_model % heads):
            raise HartError(f"scheme.component.heads must be a divisor of d_model {d_model} or null, not {heads!r}")
        self.layers = layers
        self.stacks = stacks
        # Heads of width 64, as in T5 from small to XL, if 64 divides the width.
        self.heads = heads or (d_model // 64 if d_model % 64 == 0 else 1)
        self._vectors: dict[str, slice] = {}
        self.state_vectors = 0
        for stack in {block.stack for block in blocks}:
            # Axis 1 of the states is the stack, so components count from 0 in each stack.
            used = 0
            for block in (each for each in blocks if each.stack == stack):
                count = block.rows if block.name.startswith("prefix.") else 1
                self._vectors[block.name] = slice(used, used + count)
                used += count
            self.state_vectors = max(self.state_vectors, used)
        self.z = nn.Parameter(torch.empty(stacks, layers, 1, d_model))
        self.components = nn.Parameter(torch.empty(stacks, 1, self.state_vectors, d_model))
        self.norm = nn.Parameter(torch.empty(d_model))
        self.query, self.key, self.value, self.output = (nn.Linear(d_model, d_model, bias=False) for _ in range(4))

    def vectors_of(self, block: RowBlock) -> slice:
        return self._vectors[block.name]

    @torch.no_grad()
    def reset_parameters(self, std: float) -> None:
        """Draw embeddings whose sums have standard deviation `std`, and projections that keep the input's variance."""
        for embedding in (self.z, self.components):
            nn.init.normal_(embedding, std=std * 0.5**0.5)
        nn.init.ones_(self.norm)
        width = self.z.shape[-1]
        for linear in (self.key, self.value, self.output):
            nn.init.normal_(linear.weight, std=width**-0.5)
        # As in T5, scores are not divided by the root of the head width; query weights start smaller by it instead.
        nn.init.normal_(self.query.weight, std=(width * (width // self.heads)) ** -0.5)

    def forward(
        self, decoder: T5Stack | None, memory: Float[Tensor, "n s d"], memory_mask: Shaped[Tensor, "n s"]
    ) -> Float[Tensor, "n S L m d"]:
        embeddings = (self.z + self.components).flatten(0, 2)
        normed = F.rms_norm(embeddings, embeddings.shape[-1:], self.norm, EPSILON)
        queries = self.query(normed).unflatten(-1, (self.heads, -1)).transpose(0, 1)
        keys, values = (
            linear(memory).unflatten(-1, (self.heads, -1)).transpose(1, 2) for linear in (self.key, self.value)
        )
        attended = F.scaled_dot_product_attention(
            queries.expand(memory.shape[0], -1, -1, -1),
            keys,
            values,
            attn_mask=memory_mask[:, None, None, :].bool(),
            scale=1.0,
        )
        states = embeddings + self.output(attended.transpose(1, 2).flatten(2))
        states = F.rms_norm(states, states.shape[-1:], eps=EPSILON)
        return states.unflatten(1, (self.stacks, self.layers, self.state_vectors))
