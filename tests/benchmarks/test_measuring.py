"""Counts and comparisons of the benchmarks, against known numbers and torch's own counter."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from hart.benchmarks import Figure
from hart.benchmarks.growth import exponent
from hart.benchmarks.measuring import alternate, count, ratios
from hart.benchmarks.models import hypernetwork, t5_config


def test_flops_and_memory_of_a_product() -> None:
    left, right = torch.randn(30, 40), torch.randn(40, 50)
    counted = count(lambda: (left @ right).tanh().sum())
    assert counted.flops == 2 * 30 * 40 * 50
    assert counted.calls["aten.mm"] == counted.calls["aten.tanh"] == 1
    size = 30 * 50 * 4
    assert (counted.peak, counted.live) == (2 * size, 0)  # the product and its tanh; its sum comes when it is gone
    assert counted.allocated == 2 * size + 4
    assert counted.largest["aten.mm"] == size


def test_views_and_given_tensors_are_no_allocations() -> None:
    given = torch.randn(8, 8)
    assert count(lambda: given.t()[2:].expand(3, -1, -1)).allocated == 0


def test_memory_that_waits_for_the_backward_pass_is_seen() -> None:
    weight = torch.randn(16, 16, requires_grad=True)

    def run() -> None:
        (weight @ weight).tanh().exp().sum().backward()
        weight.grad = None

    # Of the product, its tanh and its exp the first is not needed again.
    assert count(run).peak >= 2 * 16 * 16 * 4


def test_fused_attention_on_the_cpu_is_counted() -> None:
    query, key = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8)
    with torch.no_grad():
        counted = count(lambda: F.scaled_dot_product_attention(query, key, key))
    assert counted.flops == 2 * 2 * 2 * 3 * 5 * 7 * 8


def test_counts_agree_with_those_of_torch() -> None:
    network = hypernetwork(t5_config("tiny", vocabulary=100))
    ids = torch.randint(100, (2, 12))
    with FlopCounterMode(display=False) as expected:
        network(ids, torch.ones_like(ids))
    assert count(lambda: network(ids, torch.ones_like(ids))).flops == pytest.approx(
        expected.get_total_flops(), rel=0.02
    )


def test_variants_take_turns_and_ratios_are_of_pairs() -> None:
    order: list[str] = []
    times = alternate({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3, "cpu")
    assert order == ["b", "a", "a", "b"] * 2  # the first pair warms up
    assert [len(values) for values in times.values()] == [3, 3]
    assert ratios({"a": [2.0, 9.0, 30.0], "b": [1.0, 3.0, 10.0]}, "a", "b") == [2.0, 3.0, 3.0]


def test_a_figure_is_the_median_of_its_repeats() -> None:
    figure = Figure("a pass", "another", [2.0, 9.0, 3.0, 1.0, 4.0], "none", ("≤", 3.0))
    assert (figure.value, figure.quartiles, figure.met) == (3.0, (2.0, 4.0), True)
    assert figure.to_dict()["value"] == 3.0
    assert Figure("a pass", "another", [2.0], "none").quartiles is None


def test_exponent_of_a_power_law() -> None:
    assert exponent([1, 2, 4], [5, 20, 80]) == pytest.approx(2)
