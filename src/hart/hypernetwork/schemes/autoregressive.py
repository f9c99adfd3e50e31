"""HART's scheme: the states of all layers, one after the other (§3.1, App. 8.1.2).

h_1 = H_dec(z), h_l = H_dec(h_{l−1}): L decoding steps of two positions each, of which the first
serves layer l of the main encoder and the second layer l of the main decoder. What the paper leaves open, and
is chosen here: step l attends to all earlier steps (a decoder that "autoregressively decodes a
sequence"), its two positions see each other, and h_l is the decoder's output after its final norm, fed
back as the next embedding. Other orders than from the bottom layer to the top are those of Table 7 (App. 8.2).
"""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from hart.errors import HartError
from hart.hypernetwork.decoding import DecoderPass, relative_bias
from hart.hypernetwork.schemes.base import GenerationScheme, register
from hart.peft.base import RowBlock
from hart.runtime.third_party.transformers import T5Stack

History = Literal["all", "last"]
Order = Literal["bottom_up", "top_down", "random"]

PER_STEP = 2
"""Positions of a step: one for the encoder's layer and one for the decoder's: z ∈ R^{2×d} (App. 8.1.2)."""


@register
class Autoregressive(GenerationScheme):
    """L cached steps from a learnable z `[2, d]`; states have m = 1 vector.

    Args:
        d_model: width of the decoder.
        layers: L, the number of steps.
        blocks: what is generated from the states; not needed here.
        history: what step l may see: `all` earlier steps, or `last`, only its own input h_{l−1},
            the equations of §3.1 to the letter.
        order: in which the layers get their steps: `bottom_up`, `top_down`, or `random`, a fixed permutation. Of a
            stack with fewer layers than L, the steps of layers that it has not go unused.
        order_seed: of the permutation; the same in every process and on every machine.

    Raises:
        HartError: unknown `history` or `order`, or a seed that is no whole number ≥ 0.
    """

    name = "autoregressive"
    state_vectors = 1

    def __init__(
        self,
        d_model: int,
        layers: int,
        blocks: Sequence[RowBlock],
        *,
        history: History = "all",
        order: Order = "bottom_up",
        order_seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value, choices in (("history", history, get_args(History)), ("order", order, get_args(Order))):
            if value not in choices:
                raise HartError(f"scheme.autoregressive.{name} must be one of {', '.join(choices)}, not {value!r}")
        if type(order_seed) is not int or order_seed < 0:
            raise HartError(f"scheme.autoregressive.order_seed must be a whole number ≥ 0, not {order_seed!r}")
        self.layers = layers
        self.history = history
        self.order = order
        self.order_seed = order_seed
        self.layer_of_step = layer_order(layers, order, order_seed)
        self._step_of_layer = [self.layer_of_step.index(layer) for layer in range(layers)]
        self.z = nn.Parameter(torch.empty(PER_STEP, d_model))

    def reset_parameters(self, std: float) -> None:
        nn.init.normal_(self.z, std=std)

    def forward(
        self, decoder: T5Stack | None, memory: Float[Tensor, "n s d"], memory_mask: Shaped[Tensor, "n s"]
    ) -> Float[Tensor, "n 2 L m d"]:
        assert decoder is not None
        bias = relative_bias(decoder, self.layers * PER_STEP)
        decoding = DecoderPass(decoder, memory, memory_mask)
        state = self.z.expand(memory.shape[0], -1, -1)
        steps: list[Tensor] = []
        for layer in range(self.layers):
            end = (layer + 1) * PER_STEP
            begin = 0 if self.history == "all" else end - PER_STEP
            state = decoding.step(state, bias[:, :, end - PER_STEP : end, begin:end])
            steps.append(state)
            if self.history == "last":
                decoding.forget()
        # [n, 2, d] for each layer
        return torch.stack([steps[step] for step in self._step_of_layer], dim=2).unsqueeze(3)


def layer_order(layers: int, order: Order, seed: int = 0) -> list[int]:
    """Which layer, counted from 0 at the bottom, each step serves."""
    if order == "random":
        return np.random.default_rng(seed).permutation(layers).tolist()
    return list(range(layers))[:: -1 if order == "top_down" else 1]
