"""The two losses of a HART step: prediction (Eq. 5) and local consistency (§3.2).

The total is L_pred + α·L_cst. The update equation of §3.2 leaves α out, but §4.1 tunes it
(α ∈ {1, 10, 20}), so the caller weights the second term.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORED = -100
"""The label of padding."""


def prediction_loss(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cross entropy of the target tokens (Eq. 5), summed, and how many tokens that is.

    Sum and count are returned apart so that accumulated and sharded batches can be divided by the
    number of tokens of the whole batch. Computed in float32 whatever the type of the logits.

    Args:
        logits: `[b, u, v]`.
        labels: `[b, u]` int64, -100 where there is no target.

    Returns:
        The sum in nats (float32 scalar) and the number of target tokens (int64 scalar).
    """
    total = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")
    return total, (labels != IGNORED).sum()


class ConsistencyState:
    """Local consistency (§3.2): MSE between the layer states of consecutive optimizer steps.

    L_cst of step t is the mean square of h^(t) − h^(t−1), with h^(t−1) detached; 0 at the first
    step. The paper does not say how batches are compared; this is the literal reading of the
    equation per row: row i of this step's batch against row i of the last one's. Each micro-batch
    calls `loss`, each optimizer step ends with `advance`. The states of a whole step are kept, so a
    batch accumulated over many micro-batches gives the loss of the same batch in one piece,
    provided that equal micro-batches are averaged.
    """

    def __init__(self) -> None:
        self._previous: tuple[Tensor, Tensor] | None = None
        self._current: list[tuple[Tensor, Tensor]] = []

    def loss(self, states: Tensor, slots: Tensor) -> Tensor:
        """L_cst of one micro-batch, and remember its states for the next optimizer step.

        Args:
            states: layer states `[b, ...]` (`[b, 2, L, m, d]`), with gradient.
            slots: int64 `[b]`, the position of each row in the global batch, each once a step.

        Returns:
            Float32 scalar, the mean over all rows and elements; 0 at the first step.

        Raises:
            ValueError: the states have another shape than those of the previous step, or a row's
                slot was not filled there: the steps are not batches of one size in one layout.
        """
        states = _without_broadcasts(states)
        self._current.append((slots.detach(), states.detach().float()))
        # No layer states at all: a hypernetwork that generates no parameters (fusion alone).
        if self._previous is None or not states.numel():
            return torch.zeros((), device=states.device)
        if states.shape[1:] != self._previous[1].shape[1:]:
            raise ValueError(
                f"states of shape {list(states.shape[1:])} after states of shape {list(self._previous[1].shape[1:])}"
            )
        # A checkpoint is read on the CPU; it moves to the states' device once.
        previous_slots, previous = (part.to(states.device) for part in self._previous)
        self._previous = previous_slots, previous
        match = slots[:, None] == previous_slots[None, :]
        paired = match.any(dim=1)
        if not paired.all():
            alone = ", ".join(str(slot) for slot in slots[~paired].tolist())
            raise ValueError(f"no states of the step before for the places {alone} of the batch")
        partner = previous[match.long().argmax(dim=1)]
        return (states.float() - partner).square().flatten(1).mean(dim=1).mean()

    def advance(self) -> None:
        """End an optimizer step: the states seen since the last call become the previous ones."""
        if self._current:
            slots, states = zip(*self._current, strict=True)
            self._previous = torch.cat(slots), torch.cat(states)
            self._current = []

    def state_dict(self) -> dict[str, Tensor]:
        """The previous step's slots and states; empty before the first step.

        To be taken between optimizer steps, after `advance`.
        """
        return {} if self._previous is None else dict(zip(("slots", "states"), self._previous, strict=True))

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from what `state_dict` returned."""
        self._previous = (state["slots"], state["states"]) if state else None
        self._current = []


def _without_broadcasts(states: Tensor) -> Tensor:
    """One copy along each dimension after the first that is a mere broadcast.

    The shared scheme repeats one state for every layer as a view. The mean square is the same over
    one of the copies, and takes L times less memory than the view written out.
    """
    for dim in range(1, states.dim()):
        if states.stride(dim) == 0 and states.shape[dim] > 1:
            states = states.narrow(dim, 0, 1)
    return states
