"""Orders of layers: permutations determined by the seed."""

import pytest
import torch

from hart.errors import HartError
from hart.hypernetwork.schemes.order import LayerOrder


def order_of(layers: int, order: str, seed: int = 0) -> list[int]:
    return LayerOrder("causal", layers, order, seed).layer_of_step  # type: ignore[arg-type]


def test_orders_are_permutations_that_the_seed_decides():
    assert order_of(4, "bottom_up") == [0, 1, 2, 3]
    assert order_of(4, "top_down") == [3, 2, 1, 0]
    drawn = {tuple(order_of(24, "random", seed)) for seed in range(5)}
    assert len(drawn) == 5
    assert all(sorted(order) == list(range(24)) for order in drawn)
    # Not drawn from torch's generator: every process of a run must agree.
    torch.manual_seed(1)
    assert tuple(order_of(24, "random", 0)) in drawn


def test_steps_of_layers_are_the_reverse():
    order = LayerOrder("causal", 24, "random", 3)
    assert [order.layer_of_step[step] for step in order.step_of_layer] == list(range(24))


@pytest.mark.parametrize(("order", "seed", "says"), [("up", 0, "order must be one of"), ("random", -1, "order_seed")])
def test_unknown_ones_are_refused(order: str, seed: int, says: str):
    with pytest.raises(HartError, match=f"scheme.causal.{says}"):
        order_of(4, order, seed)
