"""The needle collection: each task is a text of facts of its own, each query asks for one of them.

The text is the task's definition, so that only the hypernetwork reads it; the query names the key alone. What the
generated weights do not hold, no answer can have. Texts have `LENGTHS` tokens with the tokenizer of `mini-base`, a
length each in turn, and the length is the task's category: evaluations report each by itself. Pairs are drawn at
random, so that nothing but the text tells a value, and no text of one split is one of another.
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
FRAME = 8  # tokens around the facts: what `hart.data.prompts` writes, and the end of sequence
TASKS = {"train": 4000, "validation": 40, "test": 40}
_SPLIT_SEEDS = {"train": 0, "validation": 1, "test": 2}

KEYS = tuple(sorted({*NAMES, *PLACES, *DAYS, *ALL_WORDS}))


def build_task(index: int, split: str) -> Task:
    """The task of that number: a text of different keys and a value for each, and a query for each key.

    Its one demonstration asks for the first fact; `data.num_demonstrations: 0` leaves the text alone.
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
        """Of the validation split the first `data.validation_tasks` (0: all); of a task's queries the first ones."""
        if split not in TASKS:
            raise HartError(f"needle: split '{split}' is unknown; use one of {', '.join(TASKS)}")
        count, cap = TASKS[split], data.max_test_instances if split == "test" else data.max_train_instances
        if split == "validation" and data.validation_tasks:
            count = min(count, data.validation_tasks)
        tasks = [build_task(index, split) for index in range(count)]
        return [replace(task, instances=task.instances[:cap]) for task in tasks]
