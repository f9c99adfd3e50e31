"""The two losses of a HART step: prediction (Eq. 5) and local consistency (§3.2).

The total is L_pred + α·L_cst. The update equation of §3.2 leaves α out, but §4.1 tunes it
(α ∈ {1, 10, 20}), so the caller weights the second term.
"""

from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from hart.errors import HartError

Pairing = Literal["slots", "mean"]

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
    step. Each micro-batch calls `loss`, each optimizer step ends with `advance`. The states of a
    whole step are kept, so a batch accumulated over many micro-batches gives the loss of the same
    batch in one piece, provided that equal micro-batches are averaged.

    Args:
        pairing: the paper does not say how batches are compared. `slots` (default) is the literal
            reading of the equation per row: row i of this step's batch against row i of the last
            one's. `mean` compares the averages over the batch; as an average is not a sum over
            micro-batches, each micro-batch is then compared with the whole previous batch.

    Raises:
        HartError: unknown `pairing`.
    """

    def __init__(self, pairing: Pairing = "slots") -> None:
        if pairing not in get_args(Pairing):
            raise HartError(
                f"training.consistency_pairing must be one of {', '.join(get_args(Pairing))}, not {pairing!r}"
            )
        self.pairing = pairing
        self._previous: tuple[Tensor, Tensor] | None = None
        self._current: list[tuple[Tensor, Tensor]] = []

    def loss(self, states: Tensor, slots: Tensor) -> Tensor:
        """L_cst of one micro-batch, and remember its states for the next optimizer step.

        Args:
            states: layer states `[b, ...]` (`[b, 2, L, m, d]`), with gradient.
            slots: int64 `[b]`, the position of each row in the global batch, each once a step.

        Returns:
            Float32 scalar, the mean over all rows and elements. A row whose slot was not filled in
            the previous step (the first step, or a smaller last batch) counts as 0.

        Raises:
            ValueError: the states have another shape than those of the previous step.
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
        if self.pairing == "mean":
            return (states.float().mean(dim=0) - previous.mean(dim=0)).square().mean()
        match = slots[:, None] == previous_slots[None, :]
        # Indices instead of boolean selection: nothing here waits for the device.
        partner = previous[match.long().argmax(dim=1)]
        per_row = (states.float() - partner).square().flatten(1).mean(dim=1)
        return torch.where(match.any(dim=1), per_row, 0.0).mean()

    def advance(self) -> None:
        """End an optimizer step: the states seen since the last call become the previous ones."""
        if self._current:
            slots, states = zip(*self._current, strict=True)
            self._previous = torch.cat(slots), torch.cat(states)
            self._current = []

    def state_dict(self) -> dict[str, Any]:
        """The pairing and the previous step's slots and states (absent before the first step).

        To be taken between optimizer steps, after `advance`.
        """
        state: dict[str, Any] = {"pairing": self.pairing}
        if self._previous is not None:
            state["slots"], state["states"] = self._previous
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned.

        Raises:
            HartError: it was made with another pairing.
        """
        if state["pairing"] != self.pairing:
            raise HartError(
                f"the checkpoint was trained with training.consistency_pairing={state['pairing']}, "
                f"this run has {self.pairing}; use the same or start anew"
            )
        self._previous = (state["slots"], state["states"]) if "states" in state else None
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
