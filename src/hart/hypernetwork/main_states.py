"""The frozen main model as the hypernetwork's encoder: its hidden states of the task's text (doc-to-lora, SHINE).

`MainStates` runs the main model over the text, without gradients, and returns the outputs of chosen layers. The trained
`StatesToMemory` maps them to the memory that the hypernetwork's decoder reads. No part of the main model is copied.

With causal attention and padding on the right, the states of a task do not depend on the other tasks in the batch.
"""

import copy
import functools
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from hart.errors import HartError
from hart.peft.architectures import architecture
from hart.peft.injection import Binding, Site, binding, learned_positions
from hart.peft.modules import layers as layers_of

DEFAULT_DEPTH = 0.75
"""Relative depth of the default layer; states of higher layers specialise in predicting the next token."""


def chosen_layers(named: Sequence[int] | None, depth: int) -> list[int]:
    """The layers to read, counted from 1, of a main model with `depth` layers.

    Raises:
        HartError: `named` is empty, or names a layer that does not exist or the same layer twice.
    """
    if named is None:
        return [max(1, round(DEFAULT_DEPTH * depth))]
    if not named or len(set(named)) < len(named) or not all(1 <= layer <= depth for layer in named):
        raise HartError(
            f"model.encoder_layers: must be different layers from 1 to {depth}, the depth of the base, not "
            f"{list(named)}"
        )
    return list(named)


class MainStates:
    """Hidden states of a frozen decoder-only main model. Not an `nn.Module`, so its weights are not trained or saved.

    Args:
        main: the stock model.
        layers: layers whose outputs are returned, counted from 1.
    """

    def __init__(self, main: PreTrainedModel, layers: Sequence[int]) -> None:
        self._main = main
        self._read = _lowest(main, max(layers))
        self._layers = [layers_of(main, "decoder")[layer - 1] for layer in layers]

    @torch.no_grad()
    def __call__(self, ids: Int[Tensor, "n s"], mask: Shaped[Tensor, "n s"]) -> list[Float[Tensor, "n s x"]]:
        """The states of each chosen layer.

        Args:
            ids, mask: padded on the right.

        Raises:
            HartError: there are more tokens than learned positions of the main model (GPT-2).
        """
        most = learned_positions(self._main)
        if most is not None and ids.shape[1] > most:
            raise HartError(
                f"data.max_demonstrations_length: the base reads a task of {ids.shape[1]} tokens and has {most} "
                "positions; lower it"
            )
        states: dict[int, Tensor] = {}
        taken: dict[Site, Binding] = {
            layer: functools.partial(_take, states, index) for index, layer in enumerate(self._layers)
        }
        with binding(taken):
            # `forward` instead of a call: ZeRO-3 has hooks on the base's own module, and those of its parts suffice.
            self._read.forward(input_ids=ids, attention_mask=mask, use_cache=False)
        return [states[index] for index in range(len(self._layers))]


def _lowest(main: PreTrainedModel, count: int) -> nn.Module:
    """The lowest `count` layers of the main model, without its head; they share its modules."""
    stack = copy.copy(main.base_model)
    name = architecture(main.config).stacks["decoder"].rpartition(".")[2]
    stack._modules = {**stack._modules, name: nn.ModuleList(layers_of(main, "decoder")[:count])}
    return stack


def _take(states: dict[int, Tensor], index: int, _: Tensor, output: Tensor) -> Tensor:
    states[index] = output
    return output


class WidthMap(nn.Linear):
    """A linear map without bias between the widths of two networks.

    It is initialised to the identity for equal widths, otherwise to a random map that keeps the size of its input.
    """

    def __init__(self, width: int, other: int) -> None:
        super().__init__(width, other, bias=False)

    def reset_parameters(self) -> None:
        if self.in_features == self.out_features:
            nn.init.eye_(self.weight)
        else:
            nn.init.normal_(self.weight, std=self.in_features**-0.5)


class StatesToMemory(nn.Module):
    """States of k layers → memory: each divided by its root mean square, a learned weighted sum, one linear map.

    The sum adds only k numbers to the map of one layer; a map of all layers side by side would be k times as large.
    States grow in size from the bottom to the top layer, so each is scaled before the sum.

    Args:
        layers: number k of layers.
        width: width of the main model.
        d_model: width of the memory.
    """

    def __init__(self, layers: int, width: int, d_model: int) -> None:
        super().__init__()
        # Initialised to the mean. A single layer needs no weight, which would only scale the map.
        self.weights = nn.Parameter(torch.full((layers,), 1 / layers)) if layers > 1 else None
        self.projection = WidthMap(width, d_model)

    def forward(self, states: Sequence[Float[Tensor, "n s x"]]) -> Float[Tensor, "n s d"]:
        normed = [F.rms_norm(each.float(), each.shape[-1:]) for each in states]
        if self.weights is not None:
            normed = [torch.einsum("knsx,k->nsx", torch.stack(normed), self.weights.float())]
        made: Tensor = self.projection(normed[0].to(self.projection.weight.dtype))
        return made
