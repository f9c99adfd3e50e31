"""Prediction and consistency losses against definitions written out by hand."""

import itertools
import math

import pytest
import torch
from torch import nn

from hart.training.losses import ConsistencyState, prediction_loss

STATE = (2, 3, 1, 4)
"""Stacks, layers, rows, width of the states in these tests."""


def random_states(batch: int) -> torch.Tensor:
    return torch.randn(batch, *STATE, requires_grad=True)


def test_prediction_loss_is_the_negative_log_probability_of_the_targets():
    logits = torch.randn(2, 3, 5)
    labels = torch.tensor([[4, 0, -100], [2, -100, -100]])
    total, count = prediction_loss(logits, labels)
    log_p = logits.log_softmax(-1)
    assert count == 3
    torch.testing.assert_close(total, -(log_p[0, 0, 4] + log_p[0, 1, 0] + log_p[1, 0, 2]))


def test_prediction_loss_of_uniform_bf16_logits_is_log_of_the_vocabulary():
    total, count = prediction_loss(torch.zeros(2, 3, 7, dtype=torch.bfloat16), torch.ones(2, 3, dtype=torch.int64))
    assert total.dtype == torch.float32
    torch.testing.assert_close(total / count, torch.tensor(math.log(7)))


def test_prediction_loss_takes_labels_that_are_not_contiguous():
    logits, labels = torch.randn(2, 3, 5), torch.randint(5, (3, 2)).T
    expected, _ = prediction_loss(logits, labels.contiguous())
    assert torch.equal(prediction_loss(logits, labels)[0], expected)


def test_first_step_is_zero_and_can_be_differentiated_in_a_sum():
    states = random_states(2)
    loss = ConsistencyState().loss(states, torch.arange(2))
    assert loss == 0
    (states.sum() + loss).backward()


def test_rows_are_paired_by_slot_whatever_their_order():
    first, second = random_states(3), random_states(3)
    consistency = ConsistencyState()
    consistency.loss(first, torch.tensor([0, 1, 2]))
    consistency.advance()
    loss = consistency.loss(second[[2, 0, 1]], torch.tensor([2, 0, 1]))
    torch.testing.assert_close(loss, nn.functional.mse_loss(second, first))


def test_gradient_reaches_this_step_only():
    first, second = random_states(2), random_states(2)
    consistency = ConsistencyState()
    consistency.loss(first, torch.arange(2))
    consistency.advance()
    consistency.loss(second, torch.arange(2)).backward()
    assert first.grad is None
    assert second.grad is not None
    torch.testing.assert_close(second.grad, 2 * (second - first).detach() / second.numel())


@pytest.mark.parametrize("micro", [1, 2, 8])
def test_accumulation_does_not_change_the_loss(micro: int):
    """Three steps of 8 rows: the averaged losses of micro-batches are the loss of the whole
    batch."""
    steps = [random_states(8) for _ in range(3)]
    pairs = itertools.pairwise(steps)
    expected = [0.0, *(nn.functional.mse_loss(b, a).item() for a, b in pairs)]
    consistency = ConsistencyState()
    for states, whole in zip(steps, expected, strict=True):
        parts = [consistency.loss(states[i : i + micro], torch.arange(i, i + micro)) for i in range(0, 8, micro)]
        consistency.advance()
        assert torch.stack(parts).mean().item() == pytest.approx(whole, rel=1e-6)


def test_a_row_without_a_partner_is_an_error_and_not_a_zero():
    """No step of a run has a slot that the step before had not: batches are whole and their size is fixed."""
    first, more = random_states(2), random_states(4)
    consistency = ConsistencyState()
    consistency.loss(first, torch.arange(2))
    consistency.advance()
    with pytest.raises(ValueError, match="no states of the step before for the places 2, 3 of the batch"):
        consistency.loss(more, torch.arange(4))


def test_continues_from_a_checkpoint(tmp_path):
    first, second = random_states(2), random_states(2)
    uninterrupted, resumed = ConsistencyState(), ConsistencyState()
    uninterrupted.loss(first, torch.arange(2))
    uninterrupted.advance()
    torch.save(uninterrupted.state_dict(), tmp_path / "state.pt")
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    slots = torch.arange(2)
    assert torch.equal(resumed.loss(second, slots), uninterrupted.loss(second, slots))


def test_checkpoint_before_the_first_step_is_empty():
    consistency = ConsistencyState()
    consistency.load_state_dict(ConsistencyState().state_dict())
    assert consistency.loss(random_states(1), torch.arange(1)) == 0


def test_states_shared_by_all_layers_are_kept_once():
    """The shared scheme's states are views; the loss is that of the written-out states."""
    first, second = (torch.randn(2, 2, 1, 3, 4).expand(-1, -1, 5, -1, -1) for _ in range(2))
    consistency = ConsistencyState()
    consistency.loss(first, torch.arange(2))
    consistency.advance()
    loss = consistency.loss(second, torch.arange(2))
    torch.testing.assert_close(loss, nn.functional.mse_loss(second, first))
    assert consistency.state_dict()["states"].numel() == first.numel() // 5


def test_states_of_no_layers_cost_nothing():
    consistency = ConsistencyState()
    for _ in range(2):
        assert consistency.loss(torch.zeros(2, 2, 0, 1, 4), torch.arange(2)) == 0
        consistency.advance()


def test_bf16_states_are_compared_in_float32():
    first, second = random_states(2).bfloat16(), random_states(2).bfloat16()
    consistency = ConsistencyState()
    consistency.loss(first, torch.arange(2))
    consistency.advance()
    loss = consistency.loss(second, torch.arange(2))
    torch.testing.assert_close(loss, nn.functional.mse_loss(second.float(), first.float()))


def test_states_of_another_shape_are_refused():
    consistency = ConsistencyState()
    consistency.loss(torch.zeros(1, 2, 3), torch.arange(1))
    consistency.advance()
    with pytest.raises(ValueError, match="states of shape"):
        consistency.loss(torch.zeros(1, 2, 4), torch.arange(1))
