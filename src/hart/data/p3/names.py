"""The subsets of P3: T0's training mixture, the eight held-out tasks, and canonical names (§4.2, App. 8.1.3).

A subset is a data set with one prompt template, `{data set}_{template}`. The lists are those of the T0 paper's code:
38 training data sets with all their templates, and for each held-out task the templates that state the original task
and have answer choices. Copies of P3 differ in their spelling of names; `canonical` makes them equal.
"""

import functools
import json
import re
from importlib.resources import files
from typing import Any

#: A larger data set counts as this many rows for all its templates together (T0's sampling strategy).
MAX_DATASET_ROWS = 500_000


@functools.cache
def _mixture() -> dict[str, Any]:
    return json.loads((files("hart.data.p3") / "mixture.json").read_text(encoding="utf-8"))


def canonical(name: str) -> str:
    """A subset's name with single underscores, none at its ends, and ANLI's round before the template."""
    name = re.sub("_+", "_", name).strip("_")
    match = re.fullmatch(r"anli_(.+)_(r[123])", name)
    return f"anli_{match[2]}_{match[1]}" if match else name


def is_scoring_copy(name: str) -> bool:
    """Whether a subset on the hub is a copy of another one with one row per choice, which is not used here."""
    return canonical(name).endswith("_score_eval")


@functools.cache
def training_mixture() -> frozenset[str]:
    """Canonical names of all subsets of T0's training mixture: 38 data sets, 313 subsets."""
    return frozenset(canonical(f"{d}_{t}") for d, own in _mixture()["train"].items() for t in own["templates"])


@functools.cache
def held_out() -> dict[str, dict[str, frozenset[str]]]:
    """Column of the paper's table → its data sets → canonical names of their subsets, in the paper's order."""
    return {
        column: {d: frozenset(canonical(f"{d}_{t}") for t in templates) for d, templates in datasets.items()}
        for column, datasets in _mixture()["held_out"].items()
    }


def held_out_column(name: str) -> str | None:
    """The column of the paper's table with a subset's data set; None if the data set is not held out from training."""
    dataset = dataset_of(name)
    return next((column for column, datasets in held_out().items() if dataset in datasets), None)


@functools.cache
def dataset_of(name: str) -> str:
    """The data set of a subset: the longest known data set with which its name begins, else the whole name."""
    name = canonical(name)
    return max((known for known in _datasets() if name.startswith(f"{known}_")), key=len, default=name)


@functools.cache
def _datasets() -> tuple[str, ...]:
    mixture = _mixture()
    held = [dataset for datasets in mixture["held_out"].values() for dataset in datasets]
    return (*mixture["train"], *held, *mixture["other"])


def sampling_size(name: str, instances: int) -> int:
    """The subset's size for proportional task sampling: its number of instances, or T0's cap.

    A data set of more than 500,000 rows counts as 500,000 for all its templates together.
    """
    known = _mixture()["train"].get(dataset_of(name), {"rows": instances, "templates": [name]})
    if max(known["rows"], instances) <= MAX_DATASET_ROWS:
        return instances
    return min(instances, MAX_DATASET_ROWS // len(known["templates"]))
