"""The frozen main model as the hypernetwork's encoder (doc-to-lora, SHINE): its own hidden states of the task's text.

`MainStates` runs the main model over the text, without gradients, and takes what chosen layers give. `StatesToMemory`,
which is trained, makes of them the memory that the hypernetwork's decoder reads. Nothing of the main model is copied.

Causal attention and padding on the right leave the states of a task what they are alone, in a batch of any tasks.
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
from hart.peft.architectures import layers as layers_of
from hart.peft.injection import Binding, Site, binding, learned_positions

DEFAULT_DEPTH = 0.75
"""Of the layer that is read where none is named: above it, states turn towards the next token."""


def chosen_layers(named: Sequence[int] | None, depth: int) -> list[int]:
    """The layers to read, counted from 1, of a main model with `depth` of them.

    Raises:
        HartError: none, one that there is not, or one named twice.
    """
    if named is None:
        return [max(1, round(DEFAULT_DEPTH * depth))]
    if not named or len(set(named)) < len(named) or not all(1 <= layer <= depth for layer in named):
        raise HartError(
            f"model.encoder_layers: must name different layers of 1 to {depth}, which the base has, not {list(named)}"
        )
    return list(named)


class MainStates:
    """Hidden states of a frozen decoder-only main model; no module, so that nothing of it is trained or saved.

    Args:
        main: the stock model.
        layers: whose outputs are taken, counted from 1.
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
            HartError: more tokens than the main model has learned positions (GPT-2).
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
            # Not by calling it: the hooks of ZeRO-3 know the base's own module, and those of its parts are enough.
            self._read.forward(input_ids=ids, attention_mask=mask, use_cache=False)
        return [states[index] for index in range(len(self._layers))]


def _lowest(main: PreTrainedModel, count: int) -> nn.Module:
    """The main model without its head and the layers above the lowest `count`: the same modules, not copies."""
    stack = copy.copy(main.base_model)
    name = architecture(main.config).stacks["decoder"].rpartition(".")[2]
    stack._modules = {**stack._modules, name: nn.ModuleList(layers_of(main, "decoder")[:count])}
    return stack


def _take(states: dict[int, Tensor], index: int, _: Tensor, output: Tensor) -> Tensor:
    states[index] = output
    return output


class WidthMap(nn.Linear):
    """A linear map between the widths of two networks, without bias: at first the identity where they are equal, else
    one that keeps sizes."""

    def __init__(self, width: int, other: int) -> None:
        super().__init__(width, other, bias=False)

    def reset_parameters(self) -> None:
        if self.in_features == self.out_features:
            nn.init.eye_(self.weight)
        else:
            nn.init.normal_(self.weight, std=self.in_features**-0.5)


class StatesToMemory(nn.Module):
    """States of k layers → memory: each divided by its root mean square, a learned weighted sum, one linear map.

    Of the ways to read several layers the sum is the smallest: k numbers beside the map of one layer, where a map of
    all of them side by side is k times as large. Layers grow in size from the bottom to the top, so each is scaled
    before it is added.

    Args:
        layers: k.
        width: of the main model.
        d_model: of the memory.
    """

    def __init__(self, layers: int, width: int, d_model: int) -> None:
        super().__init__()
        # At first their mean; one layer's weight would only scale the map.
        self.weights = nn.Parameter(torch.full((layers,), 1 / layers)) if layers > 1 else None
        self.projection = WidthMap(width, d_model)

    def forward(self, states: Sequence[Float[Tensor, "n s x"]]) -> Float[Tensor, "n s d"]:
        normed = [F.rms_norm(each.float(), each.shape[-1:]) for each in states]
        if self.weights is not None:
            normed = [torch.einsum("knsx,k->nsx", torch.stack(normed), self.weights.float())]
        made: Tensor = self.projection(normed[0].to(self.projection.weight.dtype))
        return made
