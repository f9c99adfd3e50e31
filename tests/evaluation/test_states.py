"""Measures of layer states against states of which each number is known, and against numpy."""

import math

import numpy as np
import pytest
import torch

from hart.evaluation.states import (
    batch_measures,
    consecutive_cosines,
    effective_rank,
    pairwise_cosine,
    stack_cosines,
    upper_half,
    variance_shares,
)

N, LAYERS, VECTORS, D = 3, 4, 2, 5
BOTH = (LAYERS, LAYERS)


def random_states(*lead: int) -> torch.Tensor:
    return torch.randn(*lead, 2, LAYERS, VECTORS, D)


def test_cosines_of_layers_against_numpy():
    states = random_states(N)
    found = consecutive_cosines(states, BOTH)
    flat = states.numpy().reshape(N, 2, LAYERS, -1)
    for stack in range(2):
        for layer in range(LAYERS - 1):
            one, two = flat[:, stack, layer], flat[:, stack, layer + 1]
            norms = np.linalg.norm(one, axis=1) * np.linalg.norm(two, axis=1)
            assert found[stack][layer] == pytest.approx(((one * two).sum(1) / norms).mean(), abs=1e-5)
    # Pairs 2-3 and 3-4 of three.
    assert upper_half(found) == pytest.approx(np.mean([found[0][1:], found[1][1:]]))
    assert stack_cosines(states, BOTH)[2] == pytest.approx(
        torch.cosine_similarity(states[:, 0, 2].flatten(1), states[:, 1, 2].flatten(1)).mean().item(), abs=1e-6
    )


def test_one_state_for_all_layers_has_cosine_one_and_a_single_layer_none():
    states = random_states(N)[:, :, :1].expand(-1, -1, LAYERS, -1, -1)
    assert upper_half(consecutive_cosines(states, BOTH)) == pytest.approx(1)
    assert upper_half(consecutive_cosines(states[:, :, :1], (1, 1))) is None


def test_layers_that_a_stack_does_not_have_are_left_out():
    states = random_states(N, 2)
    other = states.clone()
    other[:, :, 1, 2:] = 100 * torch.randn_like(other[:, :, 1, 2:])
    layers = (LAYERS, 2)
    for measure in (consecutive_cosines, stack_cosines, effective_rank):
        assert measure(states.flatten(0, 1), layers) == measure(other.flatten(0, 1), layers)
    assert variance_shares(states, layers) == variance_shares(other, layers)
    ours, theirs = (batch_measures(each.flatten(0, 1), layers) for each in (states, other))
    assert ours == theirs


@pytest.mark.parametrize("by", ["layers", "tasks", "demonstrations"])
def test_variance_of_one_cause_is_that_cause(by: str):
    shape = {"layers": (1, 1, 2, LAYERS), "tasks": (N, 1, 1, 1), "demonstrations": (1, 2, 1, 1)}[by]
    states = torch.randn(*shape, VECTORS, D).expand(N, 2, 2, LAYERS, -1, -1)
    shares = variance_shares(states, BOTH)
    assert shares[by] == pytest.approx(1, abs=1e-5) and sum(shares.values()) == pytest.approx(1)


def test_variance_shares_against_numpy():
    states = random_states(N, 2)
    x = states.numpy().reshape(N, 2, 2 * LAYERS, -1).astype(np.float64)
    total = ((x - x.mean((0, 1, 2))) ** 2).sum(-1).mean()
    expected = {
        "layers": ((x.mean((0, 1)) - x.mean((0, 1, 2))) ** 2).sum(-1).mean() / total,
        "tasks": ((x.mean(1) - x.mean((0, 1))) ** 2).sum(-1).mean() / total,
        "demonstrations": ((x - x.mean(1, keepdims=True)) ** 2).sum(-1).mean() / total,
    }
    assert variance_shares(states, BOTH) == pytest.approx(expected, abs=1e-5)


def test_states_that_do_not_vary_have_no_shares():
    assert set(variance_shares(torch.ones(N, 2, 2, LAYERS, 1, D), BOTH).values()) == {0.0}


def test_effective_rank_counts_directions():
    # Two orthogonal directions of equal size, centred: rank 2; one of them ten times smaller: exp(H(10/11, 1/11)).
    directions = torch.eye(D)[:2]
    for scale, expected in ((1.0, 2.0), (0.1, math.exp(-(10 / 11) * math.log(10 / 11) - (1 / 11) * math.log(1 / 11)))):
        rows = torch.stack([directions[0], -directions[0], scale * directions[1], -scale * directions[1]])
        assert effective_rank(rows[:, None, None, None], (1,)) == pytest.approx(expected, rel=1e-4)


def test_pairwise_cosine_is_the_mean_over_pairs():
    values = torch.randn(4, 3, 2)
    flat = values.flatten(1)
    pairs = [torch.cosine_similarity(flat[i], flat[j], dim=0) for i in range(4) for j in range(4) if i != j]
    assert pairwise_cosine(values) == pytest.approx(torch.stack(pairs).mean().item(), abs=1e-5)
    assert pairwise_cosine(values[:1]) is None


def test_measures_of_a_batch_are_those_of_one_set_per_task():
    states = random_states(N)
    found = batch_measures(states.requires_grad_(), BOTH)
    shares = variance_shares(states.detach().unsqueeze(1), BOTH)
    assert found["layer_cosine"].item() == pytest.approx(
        upper_half(consecutive_cosines(states.detach(), BOTH)), abs=1e-5
    )
    assert found["stack_cosine"].item() == pytest.approx(np.mean(stack_cosines(states.detach(), BOTH)), abs=1e-5)
    assert found["row_variance"].item() == pytest.approx(shares["tasks"], abs=1e-5)
    assert not any(value.requires_grad for value in found.values())
    assert batch_measures(torch.zeros(N, 2, 0, 1, 1), BOTH) == {}
