"""The Public Pool of Prompts (P3; §4.2), from a folder of subsets or from the hub.

A task is a subset: one data set with one prompt template. It has no definition: the rows are whole prompts, and the
demonstrations are other rows. The folder has one folder per subset with its splits as JSON lines or parquet, as in the
hub's parquet branch (`hart.data.p3.instances`).

Training uses the `train` rows of T0's mixture. The test uses the `validation` rows of the held-out tasks (§4.2: "P3
held-out validation set"), each task with one fixed set of demonstrations from its `train` rows.
"""

import fnmatch
import logging
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from hart.data.hub import cached_snapshot, unreachable
from hart.data.p3.instances import read_instances, split_files
from hart.data.p3.names import canonical, dataset_of, held_out, held_out_column, is_scoring_copy, training_mixture
from hart.data.prompts import Cuts
from hart.data.streams import named_stream
from hart.data.tasks import Demonstration, Instance, Task
from hart.errors import HartError

logger = logging.getLogger(__name__)

DEFAULT_HUB_NAME = "bigscience/P3"
PARQUET_BRANCH = "refs/convert/parquet"
"""The hub's parquet copy, used because the scripts of the main branch no longer run."""

#: Number of rows above which demonstrations are drawn without a permutation of all rows.
_MANY = 100_000


def load_p3(
    data_dir: str | Path | None,
    split: str,
    *,
    subsets: Sequence[str] | None = None,
    num_demonstrations: int = 16,
    max_instances: int | None = None,
    seed: int = 0,
    validation_tasks: int = 0,
    hub_name: str = DEFAULT_HUB_NAME,
) -> list[Task]:
    """The subsets of a split as tasks, sorted by name; the category of a task is its data set.

    Args:
        data_dir: folder of subsets; None loads them from `hub_name`.
        split: "train", "validation" or "test". Validation tasks are the subsets with answer choices of
            `validation_tasks` training data sets, drawn by `seed`; no subset of these is then part of "train".
        subsets: names or patterns (`super_glue_boolq_*`); None: T0's mixture for training and validation, the eight
            held-out tasks for the test.
        num_demonstrations: number of instances in each task's fixed set of demonstrations.
        max_instances: number of first instances kept per task; None: all.
        seed: seed of the demonstrations and the validation data sets.

    Raises:
        HartError: there is no such folder or split, a name matches no subset, a held-out task is among the training
            subsets, there are too few data sets to set some aside, the hub cannot be reached, or rows are bad
            (`read_instances`).
    """
    if split not in ("train", "validation", "test"):
        raise HartError(f"split: '{split}' is not one of train, validation, test")
    present = _hub_names(hub_name) if data_dir is None else _folder_names(Path(data_dir))
    source = hub_name if data_dir is None else str(data_dir)
    if split == "test":
        names = _matching(subsets, present, source, "data.test_subsets", _held_out_names())
    else:
        names = _matching(subsets, present, source, "data.train_subsets", training_mixture())
        for name in names:
            if held_out_column(name):
                raise HartError(f"data.train_subsets: {name} belongs to a held-out task; leave it for the test")
    folder = Path(data_dir) if data_dir is not None else _download(hub_name, [present[name] for name in names])
    if split != "test":
        aside = _set_aside(folder, [(name, present[name]) for name in names], validation_tasks, seed, split)
        names = [name for name in names if (dataset_of(name) in aside) == (split == "validation")]
    cuts = Cuts()
    if split == "validation":
        scored = [name for name in names if _has_choices(folder / present[name])]
        for name in sorted({*names} - {*scored}):
            cuts.note("is used neither for training nor for validation, as it has no answer choices", f"subset {name}")
        names = scored
    tasks = [
        _task(name, folder / present[name], split, num_demonstrations, max_instances, seed, cuts)
        for name in sorted(names)
    ]
    cuts.tell(logger)
    return tasks


def _held_out_names() -> frozenset[str]:
    return frozenset().union(*(own for datasets in held_out().values() for own in datasets.values()))


def _matching(
    patterns: Sequence[str] | None, present: Collection[str], source: str, field: str, default: frozenset[str]
) -> list[str]:
    if patterns is None:
        names = [name for name in present if name in default]
        if not names:
            which = "the held-out tasks" if "test" in field else "T0's training mixture"
            raise HartError(f"{source}: has no subset of {which}; name the subsets in {field}")
        return names
    chosen: dict[str, None] = {}
    for pattern in patterns:
        found = fnmatch.filter(present, canonical(pattern) if "*" not in pattern else pattern)
        if not found:
            raise HartError(f"{field}: {pattern} matches no subset of {source}")
        chosen |= dict.fromkeys(found)
    if not chosen:
        raise HartError(f"{field}: is empty; name subsets, or leave it out")
    return list(chosen)


def _set_aside(folder: Path, names: Sequence[tuple[str, str]], number: int, seed: int, split: str) -> set[str]:
    """The names of the data sets whose subsets are the validation tasks."""
    if split == "validation" and number < 1:
        raise HartError("validation_tasks: is 0, so there is no validation split; set the number of data sets")
    if not number:
        return set()
    every = {dataset_of(name) for name, _ in names}
    possible = sorted({dataset_of(name) for name, place in names if _has_choices(folder / place)})
    if number > len(possible) or number >= len(every):
        raise HartError(
            f"validation_tasks: {number} of the {len(possible)} training data sets with answer choices in {folder} "
            "cannot be set aside; at least one data set must be left for training"
        )
    drawn = named_stream(seed, "validation").choice(len(possible), size=number, replace=False)
    return {possible[i] for i in drawn}


def _has_choices(subset: Path) -> bool:
    return bool(split_files(subset, "validation")) and bool(read_instances(subset, "validation")[0].choices)


def _task(name: str, subset: Path, split: str, shots: int, max_instances: int | None, seed: int, cuts: Cuts) -> Task:
    training = split == "train"
    pool = read_instances(subset, "train", cuts=cuts)
    instances = pool if training else read_instances(subset, "validation", check_answers=True)
    if max_instances is not None:
        instances = instances[:max_instances]
    if training and len(pool) < 2:
        raise HartError(f"{subset}: train has one row, so none is left as a demonstration; add some")
    queries: set[str] = set() if training else {instance.input.strip() for instance in instances}
    demonstrations = _draw(pool, shots, queries, named_stream(seed, "demonstrations", name))
    if not demonstrations:
        raise HartError(
            f"{subset}: all train rows have inputs of {split} rows, so none is left as a demonstration; add some"
        )
    if len(demonstrations) < shots and not training:
        kind = f"has fewer than {shots} demonstrations"
        cuts.note(kind, f"task {name}", f"has {len(demonstrations)} of {shots} demonstrations")
    return Task("", demonstrations, name=name, categories=[dataset_of(name)], instances=instances)


def _draw(
    pool: Sequence[Instance], shots: int, queries: Collection[str], rng: np.random.Generator
) -> list[Demonstration]:
    """Up to `shots` instances of the pool with distinct inputs that are no query's (ignoring outer white space)."""
    many = len(pool) > _MANY
    order = rng.choice(len(pool), 4 * shots, replace=False) if many else rng.permutation(len(pool))
    found: dict[str, Demonstration] = {}
    for at in order.tolist():
        instance = pool[at]
        if len(found) == shots:
            break
        text = instance.input.strip()
        if text not in queries:
            found.setdefault(text, Demonstration(instance.input, instance.references[0]))
    return list(found.values())


def _folder_names(folder: Path) -> dict[str, str]:
    """Canonical name → name of the subset's folder."""
    try:
        names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise HartError(f"{folder}: cannot be read as a folder of P3 subsets ({error.strerror})") from None
    found = {canonical(name): name for name in names if not is_scoring_copy(name)}
    if not found:
        raise HartError(f"{folder}: has no subsets; expected one folder per subset, with train and validation rows")
    return found


def _hub_names(hub_name: str) -> dict[str, str]:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFolder

    try:
        entries = HfApi().list_repo_tree(hub_name, repo_type="dataset", revision=PARQUET_BRANCH)
        names = [entry.path for entry in entries if isinstance(entry, RepoFolder)]
    except Exception as error:
        folder = cached_snapshot(hub_name, PARQUET_BRANCH)
        if folder is None:
            raise _unreachable(hub_name, error) from error
        return _folder_names(folder)
    return {canonical(name): name for name in names if not is_scoring_copy(name)}


def _download(hub_name: str, folders: Sequence[str]) -> Path:
    """Download the train and validation rows of these subsets that are missing in the hub's cache."""
    from huggingface_hub import snapshot_download

    wanted = [f"{folder}/{part}{split}/*" for folder in folders for part in ("", "partial-") for split in _SPLITS]
    try:
        path = snapshot_download(hub_name, repo_type="dataset", revision=PARQUET_BRANCH, allow_patterns=wanted)
    except Exception as error:
        raise _unreachable(hub_name, error) from error
    return Path(path)


_SPLITS = ("train", "validation")


def _unreachable(hub_name: str, error: Exception) -> HartError:
    return unreachable(hub_name, "loaded from the hub", error, "give a folder of subsets (data.dir)")
