"""Padding: every row is recovered, masks and labels mark exactly the tokens."""

from typing import Any

import torch

from hart.data.collate import Collator, pad_groups
from hart.data.sampling import Example

PAD = 7  # not 0, and also a token in one of the rows: padding is known from the mask alone
EXAMPLES = [
    Example(demo_ids=[[4, 5, 1]], query_ids=[3, 1], labels=[9, 8, 7, 1], slot=12, task_index=2),
    Example(demo_ids=[[4, 7, 6, 5, 1]], query_ids=[1], labels=[1], slot=13, task_index=0),
]


def test_rows_come_back_from_the_batch() -> None:
    batch = Collator(PAD)(EXAMPLES)
    for row, example in enumerate(EXAMPLES):
        for name, tokens in (("demo", example["demo_ids"][0]), ("query", example["query_ids"])):
            ids, mask = batch[f"{name}_ids"][row], batch[f"{name}_mask"][row]
            length = len(tokens)
            assert ids[:length].tolist() == tokens
            assert (ids[length:] == PAD).all()
            assert mask.tolist() == [1] * length + [0] * (len(mask) - length)
        labels = batch["labels"][row]
        assert labels[labels != -100].tolist() == example["labels"]
        assert labels[: len(example["labels"])].tolist() == example["labels"]
    assert batch["slots"].tolist() == [12, 13]
    assert batch["task_index"].tolist() == [2, 0]


def test_width_is_the_longest_row() -> None:
    batch = Collator(PAD)(EXAMPLES)
    assert tuple(batch[key].shape[1] for key in ("demo_ids", "query_ids", "labels")) == (5, 2, 4)


def test_tensors_are_contiguous_integers() -> None:
    batch = Collator(PAD)(EXAMPLES)
    assert all(tensor.dtype == torch.int64 and tensor.is_contiguous() for tensor in batch.values())


def test_without_demonstrations_there_are_no_demonstration_tensors() -> None:
    examples: list[Any] = [{key: value for key, value in example.items() if key != "demo_ids"} for example in EXAMPLES]
    assert set(Collator(PAD)(examples)) == {
        "query_ids",
        "query_mask",
        "labels",
        "slots",
        "task_index",
    }


def test_groups_of_a_task_are_rows_of_its_own() -> None:
    ids, mask = pad_groups([[[4, 5, 1]], [[6, 1], [8, 9, 1]]], PAD)
    assert ids.tolist() == [[[4, 5, 1], [PAD] * 3], [[6, 1, PAD], [8, 9, 1]]]
    assert mask.tolist() == [[[1, 1, 1], [0] * 3], [[1, 1, 0], [1, 1, 1]]]
    one, _ = pad_groups([[[4, 5, 1]], [[6, 1]]], PAD)
    assert one.tolist() == [[4, 5, 1], [6, 1, PAD]]
