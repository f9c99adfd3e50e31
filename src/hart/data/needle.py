"""The needle collection: each task is a text of facts, and each query asks for one of them.

The text is the task's definition, which only the hypernetwork reads; the query only names the key. So an answer can
only come from the adaptation. The texts' lengths cycle through `LENGTHS`, in tokens of the tokenizer of `mini-base`;
the length is the task's category, which evaluations report separately. Pairs are drawn at random, so that a value can
only be known from its text, and the splits share no text.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from hart.data.base import Collection
from hart.data.procedural.lexicon import ALL_WORDS, DAYS, NAMES, PLACES
from hart.data.tasks import Demonstration, Instance, Task
from hart.errors import HartError

if TYPE_CHECKING:
    from hart.data.config import DataConfig

LENGTHS = (32, 64, 128, 256)
TOKENS_PER_FACT = 4  # key, verb, value, full stop
FRAME = 8  # tokens around the facts: the frame of `hart.data.prompts`, and the end of sequence
TASKS = {"train": 4000, "validation": 40, "test": 40}
_SPLIT_SEEDS = {"train": 0, "validation": 1, "test": 2}

KEYS = tuple(sorted({*NAMES, *PLACES, *DAYS, *ALL_WORDS}))


def build_task(index: int, split: str) -> Task:
    """The task with number `index`: a text of distinct keys with their values, and a query for each key.

    Its only demonstration asks for the first fact; with `data.num_demonstrations: 0` only the text is shown.
    """
    rng = np.random.default_rng((_SPLIT_SEEDS[split], index))
    length = LENGTHS[index % len(LENGTHS)]
    facts = (length - FRAME) // TOKENS_PER_FACT
    keys = [KEYS[i] for i in rng.permutation(len(KEYS))[:facts]]
    values = [ALL_WORDS[i] for i in rng.integers(len(ALL_WORDS), size=facts)]
    name = f"needle_{split}_{index}"
    return Task(
        definition=" ".join(f"{key} has {value} ." for key, value in zip(keys, values, strict=True)),
        demonstrations=(Demonstration(keys[0], values[0]),),
        name=name,
        categories=(f"{length} tokens",),
        instances=tuple(
            Instance(key, (value,), f"{name}-{i}") for i, (key, value) in enumerate(zip(keys, values, strict=True))
        ),
    )


class Needle(Collection):
    name = "needle"
    hub_name = None
    has_validation = True

    def load(self, data: "DataConfig", split: str) -> list[Task]:
        """As `Collection.load`; the first `data.validation_tasks` validation tasks (0: all), first queries of each."""
        if split not in TASKS:
            raise HartError(f"needle: split '{split}' is unknown; use one of {', '.join(TASKS)}")
        count, cap = TASKS[split], data.max_test_instances if split == "test" else data.max_train_instances
        if split == "validation" and data.validation_tasks:
            count = min(count, data.validation_tasks)
        tasks = [build_task(index, split) for index in range(count)]
        return [replace(task, instances=task.instances[:cap]) for task in tasks]
