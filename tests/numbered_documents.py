"""Documents of numbered words, whose tokens show document and position."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

from torch.utils.data import DataLoader

from hart.data.input_format import InputFormat
from hart.data.sampling import Example
from hart.data.segments import SegmentDataset

FORM = InputFormat(max_demonstrations_length=64, max_query_length=24, max_target_length=20)
DOCUMENTS = 12
EOS = 1
Make = Callable[..., SegmentDataset]


class Words:
    """One token per word: `w7` is 7 + 2."""

    eos_token_id = EOS

    def __call__(self, text: str, *, add_special_tokens: bool, verbose: bool) -> dict[str, list[int]]:
        return {"input_ids": [int(word[1:]) + 2 for word in text.split()]}


def document(number: int) -> str:
    """Consecutive numbers."""
    size = 16 + 13 * number
    return " ".join(f"w{1000 * number + i}" for i in range(size))


def write(path: Path, texts: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text, "url": "x"}) + "\n" for text in texts)


def parts(example) -> list[list[int]]:
    (read,) = example["demo_ids"]
    every = [read, example["query_ids"], example["labels"]]
    assert all(tokens[-1] == EOS for tokens in every)
    return [tokens[:-1] for tokens in every]


def loaded(dataset: SegmentDataset, indices: range) -> list[Example]:
    """Examples as two workers read them."""
    loader = DataLoader(
        dataset, sampler=indices, batch_size=4, num_workers=2, collate_fn=list, multiprocessing_context="fork"
    )
    return [example for batch in loader for example in batch]
