"""Measures of layer states: do they differ by layer, by task and by demonstrations (§3.1, App. 8.3, Fig. 5)?

All take states `[n, S, L, m, d]` as the hypernetwork returns them (S = 2 stacks of the main model: encoder, decoder)
and the layers that each stack has: states of further layers serve nothing and are left out. The m vectors of a state
count as one long one. Cosines are between vectors as they are, not centred.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

COLLAPSED = 0.98
"""Mean cosine of consecutive layers' states in the upper half from which on they count as one."""

ALIKE = 0.05
"""Share of the states' variance between tasks below which the tasks count as one."""


def consecutive_cosines(states: Float[Tensor, "n S L m d"], layers: Sequence[int]) -> list[list[float]]:
    """For each stack the cosine between the states of layers l and l + 1, mean over n; L − 1 numbers."""
    vectors = states.float().flatten(3)
    pairs = F.cosine_similarity(vectors[:, :, 1:], vectors[:, :, :-1], dim=-1).mean(dim=0)
    return [pairs[stack, : max(0, count - 1)].tolist() for stack, count in enumerate(layers)]


def upper_half(cosines: Sequence[Sequence[float]]) -> float | None:
    """Mean of `consecutive_cosines` over the pairs of the upper half of layers of all stacks; None without a pair."""
    chosen = [value for each in cosines for value in each[len(each) // 2 :]]
    return sum(chosen) / len(chosen) if chosen else None


def stack_cosines(states: Float[Tensor, "n S L m d"], layers: Sequence[int]) -> list[float]:
    """Cosine between the states that a step makes for the two stacks, per layer, mean over n; empty for one stack."""
    if states.shape[1] < 2:
        return []
    vectors = states.float().flatten(3)
    pairs = F.cosine_similarity(vectors[:, 0], vectors[:, 1], dim=-1).mean(dim=0)
    return pairs[: min(layers)].tolist()


def variance_shares(states: Float[Tensor, "T s S L m d"], layers: Sequence[int]) -> dict[str, float]:
    """How the variance of states divides among layers, tasks and demonstration sets; the shares add to 1.

    With x[t, s, p] the state of task t, demonstration set s and place p (a layer of a stack), and means written
    without their index: `layers` is the mean of ‖x[p] − x‖², `tasks` of ‖x[t, p] − x[p]‖², `demonstrations` of
    ‖x[t, s, p] − x[t, p]‖², each over the mean of ‖x[t, s, p] − x‖².

    Args:
        states: of T tasks under s demonstration sets each.

    Returns:
        The shares; all 0 where the states do not vary at all.
    """
    places = _places(states.flatten(0, 1), layers).unflatten(0, states.shape[:2])
    of_task = places.mean(dim=1)
    of_place = of_task.mean(dim=0)
    parts = {
        "layers": of_place - of_place.mean(dim=0),
        "tasks": of_task - of_place,
        "demonstrations": places - of_task.unsqueeze(1),
    }
    sizes = {name: part.square().sum(dim=-1).mean().item() for name, part in parts.items()}
    total = sum(sizes.values())
    return {name: size / total if total else 0.0 for name, size in sizes.items()}


def effective_rank(states: Float[Tensor, "n S L m d"], layers: Sequence[int]) -> float:
    """exp(H) of the singular values of all centred states, divided by their sum: how many directions they fill."""
    places = _places(states, layers).flatten(0, 1)
    values = torch.linalg.svdvals(places - places.mean(dim=0))
    shares = values / values.sum()
    return torch.special.entr(shares).nansum().exp().item()


def pairwise_cosine(values: Float[Tensor, "n ..."]) -> float | None:
    """Mean cosine between what two of n tasks have, over all pairs; None for a single task."""
    vectors = F.normalize(values.float().flatten(1), dim=1)
    n = vectors.shape[0]
    if n < 2:
        return None
    return ((vectors @ vectors.T).sum() - vectors.square().sum()).item() / (n * (n - 1))


def batch_measures(states: Float[Tensor, "n S L m d"], layers: Sequence[int]) -> dict[str, Tensor]:
    """What one training batch tells, as scalars on its device: `layer_cosine`, of consecutive layers in the upper
    half; `stack_cosine`, of the two stacks; `row_variance`, the share of the states' variance between rows.

    Empty where there are no states.
    """
    if not states.numel():
        return {}
    vectors = states.detach().float().flatten(3)
    found: dict[str, Tensor] = {}
    pairs = F.cosine_similarity(vectors[:, :, 1:], vectors[:, :, :-1], dim=-1).mean(dim=0)
    upper = [pairs[stack, (count - 1) // 2 : count - 1] for stack, count in enumerate(layers) if count > 1]
    if upper:
        found["layer_cosine"] = torch.cat(upper).mean()
    if states.shape[1] > 1:
        found["stack_cosine"] = F.cosine_similarity(vectors[:, 0], vectors[:, 1], dim=-1)[:, : min(layers)].mean()
    places = _places(states.detach(), layers)
    centred = places - places.mean(dim=(0, 1))
    between = (places - places.mean(dim=0)).square().sum(dim=-1).mean()
    found["row_variance"] = between / centred.square().sum(dim=-1).mean().clamp_min(torch.finfo(torch.float32).tiny)
    return found


def one_state(states: Float[Tensor, "n S L m d"]) -> bool:
    """Whether one state serves all layers by construction (the shared scheme), so that its cosine of 1 says nothing."""
    return states.numel() > 0 and states.shape[2] > 1 and states.stride(2) == 0


def collapses(layer_cosine: float | None, between_tasks: float | None) -> list[str]:
    """What has become one, in words: the states of consecutive layers, those of all tasks; mostly nothing.

    Args:
        layer_cosine: of consecutive layers in the upper half; None where there is none, or one state serves all layers.
        between_tasks: share of the states' variance.
    """
    found = []
    if layer_cosine is not None and layer_cosine >= COLLAPSED:
        found.append(
            f"the states of consecutive layers are one (cosine {layer_cosine:.3f} in the upper half): "
            "try model.scheme {name: causal}"
        )
    if between_tasks is not None and between_tasks < ALIKE:
        found.append(
            f"the states hardly differ between tasks ({between_tasks:.3f} of their variance): "
            "try training.pairing task, or a lower training.alpha"
        )
    return found


def _places(states: Float[Tensor, "n S L m d"], layers: Sequence[int]) -> Float[Tensor, "n p md"]:
    """One vector for each layer that a stack has."""
    vectors = states.float().flatten(3)
    return torch.cat([vectors[:, stack, :count] for stack, count in enumerate(layers)], dim=1)
