"""HART's autoregressive scheme: layer states are decoded one after another (§3.1, App. 8.1.2).

h_1 = H_dec(z), h_l = H_dec(h_{l−1}): L decoding steps of two positions each. The first position of step l serves layer
l of the main encoder, the second layer l of the main decoder (without an encoder, a step has one position). Our choices
for what the paper leaves open: step l attends to all earlier steps (a decoder that "autoregressively decodes a
sequence"), its two positions attend to each other, and h_l is the decoder's output after its final norm, fed back as
the next embedding. Orders other than bottom layer to top are those of Table 7 (App. 8.2).

A recursion that feeds states back unchanged through one decoder converges to a fixed point: the states of the upper
layers become equal (docs/results.md). `feedback` and `step_embeddings` change the fed-back input; the scheme `causal`
has no feedback.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from hart.errors import HartError
from hart.hypernetwork.decoding import DecoderPass, relative_bias
from hart.hypernetwork.schemes.base import GenerationScheme, register
from hart.hypernetwork.schemes.order import LayerOrder, Order
from hart.peft.base import RowBlock
from hart.runtime.third_party.transformers import T5Stack

History = Literal["all", "last"]
Feedback = Literal["state", "scaled", "before_norm", "residual"]


@register
class Autoregressive(GenerationScheme):
    """L cached steps from a learnable z `[S, d]` (App. 8.1.2: z ∈ R^{2×d}); states have m = 1 vector.

    Args:
        d_model: width of the decoder.
        layers: L, the number of steps.
        blocks: blocks to generate from the states; unused here.
        stacks: S, the number of positions of a step, one per stack.
        history: the steps that step l attends to: `all` earlier steps, or `last`, only its own input h_{l−1} (literally
            the equations of §3.1).
        order: order of the layers' steps: `bottom_up`, `top_down`, or `random`, a fixed permutation. A stack with fewer
            than L layers leaves the steps of the missing layers unused.
        order_seed: seed of the permutation; the result is the same in every process and on every machine.
        feedback: the next step's input: the `state` h_{l−1}; the state `scaled` to the root mean square of z, the size
            of embeddings; the hidden vectors `before_norm`, without the decoder's final norm; or the `residual` sum of
            h_{l−1} and its step's input.
        step_embeddings: whether a learned vector of each step, initially zero, is added to the fed-back input.

    Raises:
        HartError: `history`, `order` or `feedback` is unknown, or the seed is not a whole number ≥ 0.
    """

    name = "autoregressive"
    state_vectors = 1

    def __init__(
        self,
        d_model: int,
        layers: int,
        blocks: Sequence[RowBlock],
        stacks: int = 2,
        *,
        history: History = "all",
        order: Order = "bottom_up",
        order_seed: int = 0,
        feedback: Feedback = "state",
        step_embeddings: bool = False,
    ) -> None:
        super().__init__()
        for name, value, choices in (
            ("history", history, get_args(History)),
            ("feedback", feedback, get_args(Feedback)),
        ):
            if value not in choices:
                raise HartError(f"scheme.autoregressive.{name} must be one of {', '.join(choices)}, not {value!r}")
        if type(step_embeddings) is not bool:
            raise HartError(f"scheme.autoregressive.step_embeddings must be true or false, not {step_embeddings!r}")
        self.layer_order = LayerOrder(self.name, layers, order, order_seed)
        self.layers = layers
        self.stacks = stacks
        self.history = history
        self.order = order
        self.order_seed = order_seed
        self.feedback = feedback
        self.step_embeddings = step_embeddings
        self.z = nn.Parameter(torch.empty(stacks, d_model))
        self.step_embedding = nn.Parameter(torch.empty(layers, stacks, d_model)) if step_embeddings else None

    def reset_parameters(self, std: float) -> None:
        nn.init.normal_(self.z, std=std)
        if self.step_embedding is not None:
            nn.init.zeros_(self.step_embedding)

    def forward(
        self, decoder: T5Stack | None, memory: Float[Tensor, "n s d"], memory_mask: Shaped[Tensor, "n s"]
    ) -> Float[Tensor, "n S L m d"]:
        assert decoder is not None
        bias = relative_bias(decoder, self.layers * self.stacks)
        decoding = DecoderPass(decoder, memory, memory_mask)
        inputs = self.z.expand(memory.shape[0], -1, -1)
        steps: list[Tensor] = []
        for step in range(self.layers):
            if self.step_embedding is not None:
                inputs = inputs + self.step_embedding[step]
            end = (step + 1) * self.stacks
            begin = 0 if self.history == "all" else end - self.stacks
            state = decoding.step(inputs, bias[:, :, end - self.stacks : end, begin:end])
            steps.append(state)
            inputs = self._fed_back(inputs, state, decoding.before_norm)
            if self.history == "last":
                decoding.forget()
        # [n, S, d] for each layer
        return torch.stack([steps[step] for step in self.layer_order.step_of_layer], dim=2).unsqueeze(3)

    def _fed_back(
        self, inputs: Float[Tensor, "n S d"], state: Float[Tensor, "n S d"], before_norm: Float[Tensor, "n S d"]
    ) -> Float[Tensor, "n S d"]:
        if self.feedback == "before_norm":
            return before_norm
        if self.feedback == "residual":
            return inputs + state
        if self.feedback == "scaled":
            return state * (_size(self.z) / _size(state))
        return state


def _size(vectors: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows 1"]:
    """Root mean square of each vector."""
    return vectors.square().mean(dim=-1, keepdim=True).sqrt()
