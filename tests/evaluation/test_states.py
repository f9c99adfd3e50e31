"""Measures of layer states, against states with known numbers and numpy."""

import math

import numpy as np
import pytest
import torch

from hart.evaluation.states import (
    batch_measures,
    collapses,
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


# What the states are made of: the axes [T, s, S, L] along which one cause makes them differ.
CAUSES = {
    "stacks": (1, 1, 2, 1),
    "layers": (1, 1, 1, LAYERS),
    "tasks": (N, 1, 2, 1),
    "tasks_by_layer": (N, 1, 2, LAYERS),
    "demonstrations": (N, 2, 2, LAYERS),
}


def caused_by(cause: str) -> torch.Tensor:
    """States that differ for one reason alone."""
    states = torch.randn(*CAUSES[cause], VECTORS, D)
    if cause == "tasks":
        states = states - states.mean(0)
    if cause == "tasks_by_layer":
        states = states - states.mean(0)
        states = states - states.mean(3, keepdim=True)
    if cause == "demonstrations":
        states = states - states.mean(1, keepdim=True)
    return states.expand(N, 2, 2, LAYERS, -1, -1)


@pytest.mark.parametrize("cause", CAUSES)
def test_variance_of_one_cause_is_that_cause(cause: str):
    shares = variance_shares(caused_by(cause), BOTH)
    # The mean over layers of what differs by layer is what differs by stack; two stacks of two draws have one.
    own = shares["layers"] + shares["stacks"] if cause == "layers" else shares[cause]
    assert own == pytest.approx(1, abs=1e-5) and sum(shares.values()) == pytest.approx(1)


def test_causes_add_up_with_the_sizes_they_have():
    parts = {cause: caused_by(cause) for cause in CAUSES}
    parts["layers"] = parts["layers"] - parts["layers"].mean(3, keepdim=True)
    parts["stacks"] = parts["stacks"] - parts["stacks"].mean(2, keepdim=True)
    sizes = {cause: part.square().sum((-1, -2)).mean().item() for cause, part in parts.items()}
    expected = {cause: size / sum(sizes.values()) for cause, size in sizes.items()}
    assert variance_shares(sum(parts.values()), BOTH) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("layers", [BOTH, (LAYERS, 2)])
def test_variance_shares_against_numpy(layers: tuple[int, int]):
    states = random_states(N, 2)
    x = states.numpy().astype(np.float64).reshape(N, 2, 2, LAYERS, -1)
    # One row per state that exists, with its task, set, stack and layer; means by their labels.
    cells = [(t, s, k, layer) for t in range(N) for s in range(2) for k in range(2) for layer in range(layers[k])]
    rows = np.array([x[cell] for cell in cells])
    labels = np.array(cells)

    def mean_by(*columns: int) -> np.ndarray:
        alike = (labels[:, None, columns] == labels[None, :, columns]).all(-1)
        return (alike @ rows) / alike.sum(1, keepdims=True)

    task, demonstrations, stack, layer = range(4)
    of_stack, of_layer, of_task = mean_by(stack), mean_by(stack, layer), mean_by(task, stack)
    of_cell = mean_by(task, stack, layer)
    parts = {
        "stacks": of_stack - rows.mean(0),
        "layers": of_layer - of_stack,
        "tasks": of_task - of_stack,
        "tasks_by_layer": of_cell - of_task - of_layer + of_stack,
        "demonstrations": rows - of_cell,
    }
    total = ((rows - rows.mean(0)) ** 2).sum()
    assert variance_shares(states, layers) == pytest.approx(
        {name: (part**2).sum() / total for name, part in parts.items()}, abs=1e-5
    )


def test_states_that_do_not_vary_have_no_shares():
    assert set(variance_shares(torch.ones(N, 2, 2, LAYERS, 1, D), BOTH).values()) == {0.0}


def test_effective_rank_counts_directions():
    # Two orthogonal directions of equal size, centred: rank 2; one of them ten times smaller: exp(H(10/11, 1/11)).
    directions = torch.eye(D)[:2]
    for scale, expected in ((1.0, 2.0), (0.1, math.exp(-(10 / 11) * math.log(10 / 11) - (1 / 11) * math.log(1 / 11)))):
        rows = torch.stack([directions[0], -directions[0], scale * directions[1], -scale * directions[1]])
        assert effective_rank(rows[:, None, None, None], (1,)) == pytest.approx(expected, rel=1e-4)


def test_effective_rank_is_that_of_the_singular_values():
    for n in (2, 40):  # fewer and more states than directions
        states = random_states(n)
        places = states.flatten(3).flatten(0, 2).numpy().astype(np.float64)
        values = np.linalg.svd(places - places.mean(0), compute_uv=False)
        shares = values[values > 1e-9] / values.sum()
        assert effective_rank(states, BOTH) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-4)


def test_pairwise_cosine_is_the_mean_over_pairs():
    values = torch.randn(4, 3, 2)
    flat = values.flatten(1)
    pairs = [torch.cosine_similarity(flat[i], flat[j], dim=0) for i in range(4) for j in range(4) if i != j]
    assert pairwise_cosine(values) == pytest.approx(torch.stack(pairs).mean().item(), abs=1e-5)
    assert pairwise_cosine(values[:, :1], values[:, 1:]) == pytest.approx(pairwise_cosine(values), abs=1e-6)
    assert pairwise_cosine(values[:1]) is None


def test_measures_of_a_batch_are_those_of_one_set_per_task():
    states = random_states(N)
    found = batch_measures(states.requires_grad_(), BOTH)
    shares = variance_shares(states.detach().unsqueeze(1), BOTH)
    assert found["layer_cosine"].item() == pytest.approx(
        upper_half(consecutive_cosines(states.detach(), BOTH)), abs=1e-5
    )
    assert found["stack_cosine"].item() == pytest.approx(np.mean(stack_cosines(states.detach(), BOTH)), abs=1e-5)
    assert found["row_variance"].item() == pytest.approx(shares["tasks"] + shares["tasks_by_layer"], abs=1e-5)
    assert not any(value.requires_grad for value in found.values())
    assert batch_measures(torch.zeros(N, 2, 0, 1, 1), BOTH) == {}


def test_one_state_for_all_layers_has_no_cosine_of_layers_in_a_batch():
    one = random_states(N)[:, :, :1]
    repeated = one.expand(-1, -1, LAYERS, -1, -1)
    # Of another dtype a view is written out: nothing of the numbers tells that they are one state by construction.
    found = batch_measures(repeated.bfloat16().float(), BOTH, one_state=True)
    assert "layer_cosine" in batch_measures(repeated, BOTH)
    assert [*found] == ["stack_cosine", "row_variance"]
    written_out = batch_measures(repeated, BOTH)
    assert all(found[name].item() == pytest.approx(written_out[name].item(), abs=1e-2) for name in found)


@pytest.mark.parametrize(
    ("layer_cosine", "between_tasks", "says"),
    [
        (0.97, 0.06, []),
        (None, None, []),
        (0.98, 0.05, ["consecutive layers are almost equal (cosine 0.980"]),
        (0.5, 0.049, ["hardly differ between tasks (0.049"]),
        (1.0, 0.0, ["consecutive layers are almost equal (cosine 1.000", "hardly differ between tasks (0.000"]),
    ],
)
def test_what_has_become_one_is_said(layer_cosine: float | None, between_tasks: float | None, says: list[str]):
    found = collapses(layer_cosine, between_tasks)
    assert len(found) == len(says) and all(text in each for text, each in zip(says, found, strict=True))
