"""Measures of layer states: do they differ by layer, by task and by demonstrations (§3.1, App. 8.3, Fig. 5)?

All take states `[n, S, L, m, d]` as the hypernetwork returns them (S stacks of the main model) and the number of layers
of each stack; states beyond a stack's layers are unused and left out. The m vectors of a state are concatenated.
Cosines are between vectors that are not centred.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

COLLAPSED = 0.98
"""Mean cosine between states of consecutive layers, in the upper half of layers, from which they count as collapsed."""

ALIKE = 0.05
"""Share of the variance of states between tasks below which states count as independent of the task."""


def consecutive_cosines(states: Float[Tensor, "n S L m d"], layers: Sequence[int]) -> list[list[float]]:
    """For each stack the L − 1 cosines between the states of layers l and l + 1, mean over n."""
    vectors = states.float().flatten(3)
    pairs = F.cosine_similarity(vectors[:, :, 1:], vectors[:, :, :-1], dim=-1).mean(dim=0)
    return [pairs[stack, : max(0, count - 1)].tolist() for stack, count in enumerate(layers)]


def upper_half(cosines: Sequence[Sequence[float]]) -> float | None:
    """Mean of `consecutive_cosines` over the upper half of the pairs of all stacks; None if there are no pairs."""
    chosen = [value for each in cosines for value in each[len(each) // 2 :]]
    return sum(chosen) / len(chosen) if chosen else None


def stack_cosines(states: Float[Tensor, "n S L m d"], layers: Sequence[int]) -> list[float]:
    """Cosine between the states of the two stacks, per layer, mean over n; empty for a single stack."""
    if states.shape[1] < 2:
        return []
    vectors = states.float().flatten(3)
    pairs = F.cosine_similarity(vectors[:, 0], vectors[:, 1], dim=-1).mean(dim=0)
    return pairs[: min(layers)].tolist()


def variance_shares(states: Float[Tensor, "T s S L m d"], layers: Sequence[int]) -> dict[str, float]:
    """Cause → share of the variance of states; the shares add up to 1.

    This decomposes the sum of squares around the overall mean. With x[t, s, k, l] the state of task t, demonstration
    set s, stack k and layer l, and means written without the index they are over, it has five orthogonal parts:

    - `stacks`: x[k] − x, between stacks;
    - `layers`: x[k, l] − x[k], between the layers of a stack, independent of the task;
    - `tasks`: x[t, k] − x[k], between tasks, common to all layers of a stack;
    - `tasks_by_layer`: x[t, k, l] − x[t, k] − x[k, l] + x[k], between tasks, different in each layer (interaction);
    - `demonstrations`: x[t, s, k, l] − x[t, k, l], between the demonstration sets of one task.

    Args:
        states: states of T tasks with s demonstration sets each.

    Returns:
        The shares; all 0 if the states are all equal.
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
    """Effective number of directions that the states span.

    It is exp(H), with H the entropy of the singular values of all centred states after division by their sum.
    """
    places = _places(states, layers).flatten(0, 1).double()
    places -= places.mean(dim=0)
    # Squared singular values are the eigenvalues of either product; the smaller one is cheaper.
    product = places.T @ places if places.shape[0] > places.shape[1] else places @ places.T
    values = torch.linalg.eigvalsh(product).clamp_min(0).sqrt()
    shares = values / values.sum()
    return torch.special.entr(shares).nansum().exp().item()


def pairwise_cosine(*values: Float[Tensor, "n ..."]) -> float | None:
    """Mean cosine over pairs of n tasks, with all `values` of a task as one vector; None for a single task."""
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
    """Measures of the states of one training batch, as scalars on their device, without synchronisation.

    `layer_cosine`: mean cosine between consecutive layers in the upper half; left out if `one_state` serves all layers.
    `stack_cosine`: mean cosine between the two stacks. `row_variance`: share of the variance of states between rows of
    the batch, which is `tasks` + `tasks_by_layer` of `variance_shares` for rows as tasks. Empty if there are no states.
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
    """Sentences about collapsed states, of consecutive layers or of all tasks; empty if neither has collapsed.

    Args:
        layer_cosine: mean cosine between consecutive layers in the upper half; None if there are no such layers, or all
            layers share one state.
        between_tasks: share of the variance of states between tasks.
    """
    found = []
    if layer_cosine is not None and layer_cosine >= COLLAPSED:
        found.append(
            f"the states of consecutive layers are almost equal (cosine {layer_cosine:.3f} in the upper half): "
            "try model.scheme {name: causal}"
        )
    if between_tasks is not None and between_tasks < ALIKE:
        found.append(
            f"the states hardly differ between tasks ({between_tasks:.3f} of their variance): "
            "train longer, or where training.alpha is above 0 try training.pairing task, or a lower alpha"
        )
    return found


def _places(states: Float[Tensor, "n S L m d"], layers: Sequence[int]) -> Float[Tensor, "n p md"]:
    """The states as one vector for each layer of each stack."""
    vectors = states.float().flatten(3)
    return torch.cat([vectors[:, stack, :count] for stack, count in enumerate(layers)], dim=1)
