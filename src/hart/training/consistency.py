"""The local consistency loss (§3.2): the mean square of h^(t) − h^(t−1), with h^(t−1) detached.

The paper leaves open with which states a row of the current batch is compared. `SlotConsistency` follows the equation
literally: row i with row i of the previous batch, which belongs to another task. `TaskConsistency` compares a row with
the newest states of its own task, generated from other demonstrations: "the consistency between weights generated
based on different demonstrations" (abstract). The literal version pulls the states of all tasks together
(docs/results.md).

The update equation of §3.2 leaves α out, but §4.1 tunes it (α ∈ {1, 10, 20}), so the caller weights the term.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Pairing = Literal["slots", "task"]
Gather = Callable[[Tensor], Tensor]
"""Concatenates the rows of all processes, as `accelerate.Accelerator.gather` does."""

ON_DEVICE = 2**28
"""Most bytes of states of all tasks on the device; larger states are kept in main memory."""


class Consistency(ABC):
    """Comparison of the layer states of a step with those of earlier steps.

    Each micro-batch calls `loss`, each optimizer step ends with `advance`. The states of a whole step are kept, so a
    batch accumulated over many micro-batches of equal size has the same loss as in one pass, if their losses are
    averaged.

    Args:
        layers: number of layers of each stack of the main model; unused states of a shallower stack are ignored.
    """

    def __init__(self, layers: tuple[int, ...] | None = None) -> None:
        self._layers = layers if layers is not None and len(set(layers)) > 1 else None
        self._current: list[tuple[Tensor, Tensor]] = []

    @abstractmethod
    def loss(self, states: Tensor, slots: Tensor, tasks: Tensor, *, kept: Tensor | None = None) -> Tensor:
        """Compute L_cst of one micro-batch, and keep its states for later steps.

        Args:
            states: layer states `[b, ...]` (`[b, S, L, m, d]`), with gradient.
            slots: int64 `[b]`, the position of each row in the global batch, each once per step.
            tasks: int64 `[b]`, the index of each row's task.
            kept: the states to keep instead, e.g. those of a pass without dropout.

        Returns:
            Float32 scalar, the mean over all rows and elements; rows without earlier states count as 0.
        """

    @abstractmethod
    def advance(self, gather: Gather) -> None:
        """End an optimizer step: later steps are compared with the states since the last call."""

    @abstractmethod
    def state_dict(self, gather: Gather) -> dict[str, Tensor]:
        """The kept states of all processes; empty before the first step. Call it between `advance` and `loss`."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load the result of `state_dict`, in all processes."""

    def _distance(self, states: Tensor, partner: Tensor) -> Tensor:
        """The mean squared difference of each row."""
        squares = (states.float() - partner).square()
        if self._layers is not None:
            parts = [squares[:, stack, :layers].flatten(1) for stack, layers in enumerate(self._layers)]
            return torch.cat(parts, dim=1).mean(dim=1)
        return squares.flatten(1).mean(dim=1)


class SlotConsistency(Consistency):
    """Comparison of row i with row i of the previous batch, whatever their tasks: the literal equation."""

    def __init__(self, layers: tuple[int, ...] | None = None) -> None:
        super().__init__(layers)
        self._previous: tuple[Tensor, Tensor] | None = None

    def loss(self, states: Tensor, slots: Tensor, tasks: Tensor, *, kept: Tensor | None = None) -> Tensor:
        """As `Consistency.loss`; 0 at the first step.

        Raises:
            ValueError: the states have another shape than those of the previous step, or the previous step lacks a
                row's slot, because the steps differ in batch size or layout.
        """
        states = _without_broadcasts(states)
        self._current.append((slots.detach(), _kept(states, kept)))
        # A hypernetwork that generates no parameters (fusion alone) has no layer states.
        if self._previous is None or not states.numel():
            return torch.zeros((), device=states.device)
        if states.shape[1:] != self._previous[1].shape[1:]:
            raise ValueError(
                f"states of shape {list(states.shape[1:])} after states of shape {list(self._previous[1].shape[1:])}"
            )
        # States of a checkpoint are loaded on the CPU; they are moved to the device once.
        previous_slots, previous = (part.to(states.device) for part in self._previous)
        self._previous = previous_slots, previous
        match = slots[:, None] == previous_slots[None, :]
        paired = match.any(dim=1)
        if not paired.all():
            alone = ", ".join(str(slot) for slot in slots[~paired].tolist())
            raise ValueError(f"no states of the step before for the places {alone} of the batch")
        return self._distance(states, previous[match.long().argmax(dim=1)]).mean()

    def advance(self, gather: Gather) -> None:
        if self._current:
            slots, states = zip(*self._current, strict=True)
            self._previous = None  # states of a whole batch may take gigabytes: at most two copies
            self._previous = torch.cat(slots), torch.cat(states)
            self._current = []

    def state_dict(self, gather: Gather) -> dict[str, Tensor]:
        # Each process has the states of its own rows; after gathering, a row is found by its slot.
        if self._previous is None:
            return {}
        return {name: gather(part) for name, part in zip(("slots", "states"), self._previous, strict=True)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._previous = (state["slots"], state["states"]) if state else None
        self._current = []


class TaskConsistency(Consistency):
    """Comparison of each row with the newest states of its own task from any earlier step; 0 for a new task.

    Every process keeps one row per task, `[tasks, 2, L, m, d]` in float32. The rows of a step are exchanged once at its
    end, which is cheaper than sharding the tasks over processes and requesting rows before each pass. They are kept on
    the device if they fit into `ON_DEVICE` bytes, else in main memory (757 tasks of T5-Large: 149 MB).

    Args:
        tasks: number of training tasks.
    """

    def __init__(self, tasks: int, layers: tuple[int, ...] | None = None) -> None:
        super().__init__(layers)
        self._of_task: Tensor | None = None
        self._known = torch.zeros(tasks, dtype=torch.bool)
        self._places: list[tuple[Tensor, Tensor]] = []

    def loss(self, states: Tensor, slots: Tensor, tasks: Tensor, *, kept: Tensor | None = None) -> Tensor:
        states = _without_broadcasts(states)
        self._places.append((slots.detach(), tasks.detach()))
        self._current.append((slots.detach(), _kept(states, kept)))
        if self._of_task is None or not states.numel():
            return torch.zeros((), device=states.device)
        at = tasks.to(self._of_task.device)
        partner, known = self._of_task[at].to(states.device), self._known[at].to(states.device)
        return torch.where(known, self._distance(states, partner), 0.0).mean()

    def advance(self, gather: Gather) -> None:
        if not self._current:
            return
        slots = gather(torch.cat([slots for slots, _ in self._places]))
        order = slots.argsort()  # if a task has two rows, the one with the later slot is kept in every layout
        tasks = gather(torch.cat([tasks for _, tasks in self._places]))[order]
        states = gather(torch.cat([states for _, states in self._current]))[order]
        self._places, self._current = [], []
        if not states.numel():
            return
        if self._of_task is None:
            size = states[0].numel() * states.element_size() * len(self._known)
            device = states.device if size <= ON_DEVICE else torch.device("cpu")
            self._of_task = states.new_zeros((len(self._known), *states.shape[1:]), device=device)
            self._known = self._known.to(device)
        tasks, states = tasks.to(self._of_task.device), states.to(self._of_task.device)
        # Only the last row of each task, as the order of several writes to one index is undefined.
        last = (tasks[:, None] == tasks[None, :]).tril().sum(0) == 1
        self._of_task[tasks[last]] = states[last]
        self._known[tasks] = True

    def state_dict(self, gather: Gather) -> dict[str, Tensor]:
        if self._of_task is None:
            return {}
        tasks = self._known.nonzero().flatten()
        return {"tasks": tasks, "states": self._of_task[tasks]}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._places, self._current = [], []
        self._of_task, self._known = None, torch.zeros_like(self._known)
        if state:
            self._of_task = state["states"].new_zeros((len(self._known), *state["states"].shape[1:]))
            self._of_task[state["tasks"]] = state["states"]
            self._known[state["tasks"]] = True


def make_consistency(pairing: Pairing, tasks: int, layers: tuple[int, ...]) -> Consistency:
    """The consistency loss for a value of `training.pairing`.

    Args:
        tasks: number of training tasks.
        layers: number of layers of each stack of the main model.
    """
    return TaskConsistency(tasks, layers) if pairing == "task" else SlotConsistency(layers)


def _kept(states: Tensor, kept: Tensor | None) -> Tensor:
    return (states if kept is None else _without_broadcasts(kept)).detach().float()


def _without_broadcasts(states: Tensor) -> Tensor:
    """The states with size 1 in each broadcast dimension after the first.

    The shared scheme repeats one state for every layer as a view. The mean square over one copy is the same, and takes
    L times less memory.
    """
    for dim in range(1, states.dim()):
        if states.stride(dim) == 0 and states.shape[dim] > 1:
            states = states.narrow(dim, 0, 1)
    return states
