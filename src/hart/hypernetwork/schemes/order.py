"""The order in which the states of the main model's layers are generated (Table 7, App. 8.2)."""

from typing import Literal, get_args

import numpy as np

from hart.errors import HartError

Order = Literal["bottom_up", "top_down", "random"]


class LayerOrder:
    """The mapping between steps and layers (counted from 0 at the bottom), in both directions.

    Args:
        scheme: name of the scheme, for messages.
        layers: L, the number of steps.
        order: `bottom_up` (HART), `top_down`, or `random`, a fixed permutation.
        seed: seed of the permutation; the result is the same in every process and on every machine.

    Raises:
        HartError: the order is unknown, or the seed is not a whole number ≥ 0.
    """

    def __init__(self, scheme: str, layers: int, order: Order = "bottom_up", seed: int = 0) -> None:
        if order not in get_args(Order):
            raise HartError(f"scheme.{scheme}.order must be one of {', '.join(get_args(Order))}, not {order!r}")
        if type(seed) is not int or seed < 0:
            raise HartError(f"scheme.{scheme}.order_seed must be a whole number ≥ 0, not {seed!r}")
        if order == "random":
            self.layer_of_step: list[int] = np.random.default_rng(seed).permutation(layers).tolist()
        else:
            self.layer_of_step = list(range(layers))[:: -1 if order == "top_down" else 1]
        self.step_of_layer = [self.layer_of_step.index(layer) for layer in range(layers)]
