"""Measures of layer states: do they differ by layer, by task and by demonstrations (§3.1, App. 8.3, Fig. 5)?

All take states `[n, S, L, m, d]` as the hypernetwork returns them (S stacks of the main model)
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
    """How the variance of states divides among its causes; the shares add to 1.

    A plain decomposition of the sum of squares around the mean of all. With x[t, s, k, l] the state of task t,
    demonstration set s, stack k and layer l, and means written without their index, it has five orthogonal parts:

    - `stacks`: x[k] − x;
    - `layers`: x[k, l] − x[k], what tells the layers of a stack apart whatever the task;
    - `tasks`: x[t, k] − x[k], what tells the tasks apart in all layers of a stack alike;
    - `tasks_by_layer`: x[t, k, l] − x[t, k] − x[k, l] + x[k], the rest between tasks: what is another in each layer;
    - `demonstrations`: x[t, s, k, l] − x[t, k, l], between the demonstration sets of one task.

    Args:
        states: of T tasks under s demonstration sets each.

    Returns:
        The shares; all 0 where the states do not vary at all.
    """
    vectors = states.float().flatten(4)
    stacks = [vectors[:, :, stack, :count] for stack, count in enumerate(layers)]
    centre = torch.cat(stacks, dim=2).mean(dim=(0, 1, 2))
    sizes = dict.fromkeys(("stacks", "layers", "tasks", "tasks_by_layer", "demonstrations"), 0.0)
    for of_set in stacks:  # [T, s, l, md]
        of_cell = of_set.mean(dim=1)
        of_task, of_layer = of_cell.mean(dim=1, keepdim=True), of_cell.mean(dim=0)
        of_stack = of_layer.mean(dim=0)
        parts = {
            "stacks": of_stack - centre,
            "layers": of_layer - of_stack,
            "tasks": of_task - of_stack,
            "tasks_by_layer": of_cell - of_task - of_layer + of_stack,
            "demonstrations": of_set - of_cell.unsqueeze(1),
        }
        for name, part in parts.items():  # stacks count by their layers
            sizes[name] += of_set.shape[2] * part.square().sum(dim=-1).mean().item()
    total = sum(sizes.values())
    return {name: size / total if total else 0.0 for name, size in sizes.items()}


def effective_rank(states: Float[Tensor, "n S L m d"], layers: Sequence[int]) -> float:
    """exp(H) of the singular values of all centred states, divided by their sum: how many directions they fill."""
    places = _places(states, layers).flatten(0, 1).double()
    places -= places.mean(dim=0)
    # Their squares are the eigenvalues of the smaller of two products; there are many more states than directions.
    product = places.T @ places if places.shape[0] > places.shape[1] else places @ places.T
    values = torch.linalg.eigvalsh(product).clamp_min(0).sqrt()
    shares = values / values.sum()
    return torch.special.entr(shares).nansum().exp().item()


def pairwise_cosine(*values: Float[Tensor, "n ..."]) -> float | None:
    """Mean cosine between what two of n tasks have, all `values` of a task as one vector; None for a single task."""
    n = values[0].shape[0]
    if n < 2:
        return None
    vectors = (each.flatten(1).double() for each in values)
    products = torch.stack([each @ each.T for each in vectors]).sum(dim=0)
    sizes = products.diagonal().sqrt().clamp_min(torch.finfo(products.dtype).tiny)
    cosines = products / sizes / sizes.unsqueeze(1)
    return ((cosines.sum() - cosines.trace()) / (n * (n - 1))).item()


@torch.no_grad()
def batch_measures(
    states: Float[Tensor, "n S L m d"], layers: Sequence[int], *, one_state: bool = False
) -> dict[str, Tensor]:
    """What one training batch tells, as scalars on its device, which is not waited for.

    `layer_cosine`, of consecutive layers in the upper half, unless `one_state` serves all; `stack_cosine`, of the
    two stacks; `row_variance`, the share of the states' variance between rows (of `variance_shares`, what depends on
    the task). Empty where there are no states.
    """
    if not states.numel():
        return {}
    if one_state:
        states, layers = states[:, :, :1], [1] * states.shape[1]
    vectors = states.float().flatten(3)
    found: dict[str, Tensor] = {}
    pairs = F.cosine_similarity(vectors[:, :, 1:], vectors[:, :, :-1], dim=-1).mean(dim=0)
    upper = [pairs[stack, (count - 1) // 2 : count - 1] for stack, count in enumerate(layers) if count > 1]
    if upper:
        found["layer_cosine"] = torch.cat(upper).mean()
    if states.shape[1] > 1:
        found["stack_cosine"] = F.cosine_similarity(vectors[:, 0], vectors[:, 1], dim=-1)[:, : min(layers)].mean()
    places = _places(states, layers)
    of_place = places.mean(dim=0)
    between = (places - of_place).square().sum(dim=-1).mean()
    total = (places - of_place.mean(dim=0)).square().sum(dim=-1).mean()
    found["row_variance"] = between / total.clamp_min(torch.finfo(torch.float32).tiny)
    return found


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
            "train longer, or where training.alpha is above 0 try training.pairing task, or a lower alpha"
        )
    return found


def _places(states: Float[Tensor, "n S L m d"], layers: Sequence[int]) -> Float[Tensor, "n p md"]:
    """One vector for each layer that a stack has."""
    vectors = states.float().flatten(3)
    return torch.cat([vectors[:, stack, :count] for stack, count in enumerate(layers)], dim=1)
