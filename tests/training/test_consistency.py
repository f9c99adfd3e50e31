"""The consistency loss against an explicit implementation of its definition."""

import itertools

import pytest
import torch
from torch import nn

from hart.training.consistency import Consistency, SlotConsistency, TaskConsistency, make_consistency

STATE = (2, 3, 1, 4)
"""Stacks, layers, rows, width of the states in these tests."""


def random_states(batch: int) -> torch.Tensor:
    return torch.randn(batch, *STATE, requires_grad=True)


def alone(rows: torch.Tensor) -> torch.Tensor:
    """What one process gathers."""
    return rows


def slot_loss(consistency: SlotConsistency, states: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    return consistency.loss(states, slots, torch.zeros_like(slots))


def test_first_step_is_zero_and_can_be_differentiated_in_a_sum():
    states = random_states(2)
    loss = slot_loss(SlotConsistency(), states, torch.arange(2))
    assert loss == 0
    (states.sum() + loss).backward()


def test_rows_are_paired_by_slot_whatever_their_order():
    first, second = random_states(3), random_states(3)
    consistency = SlotConsistency()
    slot_loss(consistency, first, torch.tensor([0, 1, 2]))
    consistency.advance(alone)
    loss = slot_loss(consistency, second[[2, 0, 1]], torch.tensor([2, 0, 1]))
    torch.testing.assert_close(loss, nn.functional.mse_loss(second, first))


def test_gradient_reaches_this_step_only():
    first, second = random_states(2), random_states(2)
    consistency = SlotConsistency()
    slot_loss(consistency, first, torch.arange(2))
    consistency.advance(alone)
    slot_loss(consistency, second, torch.arange(2)).backward()
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
    consistency = SlotConsistency()
    for states, whole in zip(steps, expected, strict=True):
        parts = [slot_loss(consistency, states[i : i + micro], torch.arange(i, i + micro)) for i in range(0, 8, micro)]
        consistency.advance(alone)
        assert torch.stack(parts).mean().item() == pytest.approx(whole, rel=1e-6)


def test_a_row_without_a_partner_is_an_error_and_not_a_zero():
    """No step of a run has a slot that the step before had not: batches are whole and their size is fixed."""
    first, more = random_states(2), random_states(4)
    consistency = SlotConsistency()
    slot_loss(consistency, first, torch.arange(2))
    consistency.advance(alone)
    with pytest.raises(ValueError, match="no states of the step before for the places 2, 3 of the batch"):
        slot_loss(consistency, more, torch.arange(4))


def test_continues_from_a_checkpoint(tmp_path):
    first, second = random_states(2), random_states(2)
    uninterrupted, resumed = SlotConsistency(), SlotConsistency()
    slot_loss(uninterrupted, first, torch.arange(2))
    uninterrupted.advance(alone)
    torch.save(uninterrupted.state_dict(alone), tmp_path / "state.pt")
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    slots = torch.arange(2)
    assert torch.equal(slot_loss(resumed, second, slots), slot_loss(uninterrupted, second, slots))


def test_checkpoint_before_the_first_step_is_empty():
    consistency = SlotConsistency()
    consistency.load_state_dict(SlotConsistency().state_dict(alone))
    assert slot_loss(consistency, random_states(1), torch.arange(1)) == 0


def test_states_shared_by_all_layers_are_kept_once():
    """The shared scheme's states are views; the loss is that of the written-out states."""
    first, second = (torch.randn(2, 2, 1, 3, 4).expand(-1, -1, 5, -1, -1) for _ in range(2))
    consistency = SlotConsistency()
    slot_loss(consistency, first, torch.arange(2))
    consistency.advance(alone)
    loss = slot_loss(consistency, second, torch.arange(2))
    torch.testing.assert_close(loss, nn.functional.mse_loss(second, first))
    assert consistency.state_dict(alone)["states"].numel() == first.numel() // 5


def test_states_of_no_layers_cost_nothing():
    consistency = SlotConsistency()
    for _ in range(2):
        assert slot_loss(consistency, torch.zeros(2, 2, 0, 1, 4), torch.arange(2)) == 0
        consistency.advance(alone)


def test_bf16_states_are_compared_in_float32():
    first, second = random_states(2).bfloat16(), random_states(2).bfloat16()
    consistency = SlotConsistency()
    slot_loss(consistency, first, torch.arange(2))
    consistency.advance(alone)
    loss = slot_loss(consistency, second, torch.arange(2))
    torch.testing.assert_close(loss, nn.functional.mse_loss(second.float(), first.float()))


def test_states_of_another_shape_are_refused():
    consistency = SlotConsistency()
    slot_loss(consistency, torch.zeros(1, 2, 3), torch.arange(1))
    consistency.advance(alone)
    with pytest.raises(ValueError, match="states of shape"):
        slot_loss(consistency, torch.zeros(1, 2, 4), torch.arange(1))


def rows_of(*numbers: int) -> torch.Tensor:
    """States of which each is full of its number."""
    return torch.tensor(numbers, dtype=torch.float32)[:, None, None, None, None].expand(-1, *STATE).clone()


def task_step(consistency: Consistency, states: torch.Tensor, *tasks: int) -> float:
    loss = consistency.loss(states, torch.arange(len(tasks)), torch.tensor(tasks))
    consistency.advance(alone)
    return loss.item()


def test_of_a_task_the_newest_states_count_and_a_new_task_nothing():
    consistency = TaskConsistency(tasks=4)
    assert task_step(consistency, rows_of(1, 2), 0, 1) == 0
    assert task_step(consistency, rows_of(4, 7), 1, 2) == (4 - 2) ** 2 / 2
    assert task_step(consistency, rows_of(2, 5, 9, 9), 0, 1, 2, 3) == (1 + 1 + 4 + 0) / 4


def test_of_two_rows_of_one_task_the_later_place_is_kept_however_the_batch_is_cut():
    for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
        consistency = TaskConsistency(tasks=2)
        values = rows_of(3, 5, 8)
        for at in order:
            consistency.loss(values[[at]], torch.tensor([at]), torch.tensor([0, 0, 1])[[at]])
        consistency.advance(alone)
        assert task_step(consistency, rows_of(0, 0), 0, 1) == (5**2 + 8**2) / 2


def test_processes_learn_of_each_others_rows():
    """What this process gathers comes from two: its own rows and those of a batch half that it never saw."""
    consistency = TaskConsistency(tasks=2)
    others = iter((torch.tensor([1]), torch.tensor([1]), rows_of(6)))
    consistency.loss(rows_of(2), torch.tensor([0]), torch.tensor([0]))
    consistency.advance(lambda rows: torch.cat((rows, next(others))))
    assert task_step(consistency, rows_of(0), 1) == 36


def test_gradient_of_the_task_loss_reaches_this_step_only():
    first, second = random_states(2), random_states(2)
    consistency = TaskConsistency(tasks=3)
    task_step(consistency, first, 0, 1)
    consistency.loss(second, torch.arange(2), torch.tensor([1, 2])).backward()
    assert first.grad is None and second.grad is not None
    expected = torch.zeros_like(second)
    expected[0] = 2 * (second[0] - first[1]).detach() / second.numel()
    torch.testing.assert_close(second.grad, expected)


def test_task_states_continue_from_a_checkpoint():
    consistency, resumed = TaskConsistency(tasks=5), TaskConsistency(tasks=5)
    task_step(consistency, random_states(2), 3, 1)
    saved = consistency.state_dict(alone)
    assert saved["tasks"].tolist() == [1, 3]
    resumed.load_state_dict(saved)
    states = random_states(3)
    assert task_step(resumed, states, 1, 2, 3) == task_step(consistency, states, 1, 2, 3) > 0
    resumed.load_state_dict({})
    assert resumed.state_dict(alone) == {} and task_step(resumed, states, 1, 2, 3) == 0


def test_many_tasks_are_kept_in_main_memory(monkeypatch):
    monkeypatch.setattr("hart.training.consistency.ON_DEVICE", 0)
    consistency = TaskConsistency(tasks=2)
    task_step(consistency, rows_of(1), 1)
    assert consistency.state_dict(alone)["states"].device.type == "cpu"
    assert task_step(consistency, rows_of(3), 1) == 4


@pytest.mark.parametrize("pairing", ["slots", "task"])
def test_the_states_that_are_kept_may_be_others(pairing: str):
    consistency = make_consistency(pairing, 1, (3, 3))  # type: ignore[arg-type]
    place = torch.zeros(1, dtype=torch.int64)
    consistency.loss(rows_of(9), place, place, kept=rows_of(2))
    consistency.advance(alone)
    assert consistency.loss(rows_of(5), place, place) == 9


@pytest.mark.parametrize("pairing", ["slots", "task"])
def test_states_of_layers_that_a_stack_does_not_have_do_not_count(pairing: str):
    """An encoder of three layers and a decoder of one: the decoder's states of layers 2 and 3 serve nothing."""
    consistency = make_consistency(pairing, 1, (3, 1))  # type: ignore[arg-type]
    first, second, place = random_states(1), random_states(1), torch.zeros(1, dtype=torch.int64)
    consistency.loss(first, place, place)
    consistency.advance(alone)
    loss = consistency.loss(second, place, place)
    squares = (second - first) ** 2
    counted = torch.cat((squares[:, 0].flatten(), squares[:, 1, :1].flatten()))
    torch.testing.assert_close(loss, counted.mean())
