"""Collation of training examples into padded batches of tensors; padding is always on the right."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from hart.data.sampling import Example

IGNORED_LABEL = -100
"""Label of padding, which losses ignore (the convention of torch's cross entropy)."""


class Collator:
    """Pads a list of b examples to a batch.

    Returns a dict of int64 tensors, with m = ``queries_per_task``:

    - ``demo_ids`` [b/m, s] and ``demo_mask`` [b/m, s], only if the examples have demonstrations; row
      g belongs to the queries m·g to m·(g+1) − 1. If a task has several groups: [b/m, groups, s]
    - ``query_ids`` [b, t] and ``query_mask`` [b, t]
    - ``teacher_ids`` [b, x] and ``teacher_mask`` [b, x], only if a teacher reads the examples
    - ``labels`` [b, u], padded with -100
    - ``slots`` [b], index of each example in the data set
    - ``task_index`` [b]

    `demo_pad_token_id` is the padding of a hypernetwork with its own tokenizer.

    Masks are 1 on tokens and 0 on padding. s, t, x and u are the largest lengths in the batch.
    """

    def __init__(self, pad_token_id: int, *, queries_per_task: int = 1, demo_pad_token_id: int | None = None) -> None:
        self.pad_token_id = pad_token_id
        self.demo_pad_token_id = pad_token_id if demo_pad_token_id is None else demo_pad_token_id
        self.queries_per_task = queries_per_task

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        batch: dict[str, Tensor] = {}
        if "demo_ids" in examples[0]:
            demos = [example["demo_ids"] for example in examples[:: self.queries_per_task]]
            batch["demo_ids"], batch["demo_mask"] = pad_groups(demos, self.demo_pad_token_id)
        queries = [example["query_ids"] for example in examples]
        batch["query_ids"], batch["query_mask"] = pad(queries, self.pad_token_id)
        if "teacher_ids" in examples[0]:
            taught = [example["teacher_ids"] for example in examples]
            batch["teacher_ids"], batch["teacher_mask"] = pad(taught, self.pad_token_id)
        batch["labels"], _ = pad([example["labels"] for example in examples], IGNORED_LABEL)
        batch["slots"] = torch.tensor([example["slot"] for example in examples])
        batch["task_index"] = torch.tensor([example["task_index"] for example in examples])
        return batch


def pad(
    sequences: Sequence[Sequence[int]], padding: int, device: torch.device | None = None
) -> tuple[Int[Tensor, "b t"], Int[Tensor, "b t"]]:
    """Token ids, padded on the right with the token `padding`, and their mask."""
    width = max(map(len, sequences))
    ids = [[*sequence, *[padding] * (width - len(sequence))] for sequence in sequences]
    masks = [[1] * len(sequence) + [0] * (width - len(sequence)) for sequence in sequences]
    return torch.tensor(ids, device=device), torch.tensor(masks, device=device)


def pad_groups(
    tasks: Sequence[Sequence[Sequence[int]]], padding: int, device: torch.device | None = None
) -> tuple[Int[Tensor, "n *g s"], Int[Tensor, "n *g s"]]:
    """Token ids of tasks in groups, and their mask: ``[n, s]`` if every task has one group, else ``[n, g, s]``.

    A task with fewer groups has rows of padding after them.
    """
    most = max(map(len, tasks))
    rows = [row for groups in tasks for row in [*groups, *[[]] * (most - len(groups))]]
    ids, mask = pad(rows, padding, device)
    return (ids, mask) if most == 1 else (ids.unflatten(0, (-1, most)), mask.unflatten(0, (-1, most)))
