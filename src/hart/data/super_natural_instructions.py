"""Super-NaturalInstructions (S-NI; §4.1), from a folder or from the hub.

A folder is laid out as a clone of allenai/natural-instructions: ``tasks/<name>.json`` and the lists
``splits/default/{train,test}_tasks.txt``, one task name a line. These lists are the English track
(757 training and 119 test tasks in release 2.6); the excluded tasks and the cross-lingual lists are
not read. On the hub a row is one instance with one of its references, the definition and the first
two positive examples of its task; rows are grouped into tasks again.

The instances follow the published protocol: for training at most 100 per task after a shuffle, for
testing the first 100 in file order (the official test files are shuffled already).
"""

from array import array
from dataclasses import replace
from itertools import count, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

from hart.data.base import Collection
from hart.data.hub import cached_snapshot, unreachable
from hart.data.streams import named_stream
from hart.data.task_folders import TASKS, draw_names, list_file, read_list, task_file
from hart.data.tasks import Task
from hart.errors import HartError

if TYPE_CHECKING:
    from hart.data.config import DataConfig

DEFAULT_HUB_NAME = "jayelm/natural-instructions"
"""A hub copy with the positive examples; most other copies have no demonstrations."""

Split = Literal["train", "validation", "test"]


class SuperNaturalInstructions(Collection):
    name = "sni"
    hub_name = DEFAULT_HUB_NAME

    def load(self, data: "DataConfig", split: str) -> list[Task]:
        """As `Collection.load`; validation tasks are `data.validation_tasks` of the official training tasks."""
        return load_sni(
            data.dir,
            split,
            max_instances=data.max_test_instances if split == "test" else data.max_train_instances,
            seed=data.seed,
            validation_tasks=data.validation_tasks,
            hub_name=data.hub_name or self.hub_name,
        )


def load_sni(
    data_dir: str | Path | None,
    split: str,
    *,
    max_instances: int | None,
    seed: int = 0,
    validation_tasks: int = 0,
    hub_name: str = DEFAULT_HUB_NAME,
) -> list[Task]:
    """Load the tasks of a split, with their instances by the published protocol.

    Args:
        data_dir: folder in the official layout; None loads ``hub_name`` from the hub.
        split: "train", "validation" or "test". Validation tasks are ``validation_tasks`` of the
            official training tasks, drawn by ``seed`` and then never part of "train".
        max_instances: limit per task (100 in Tk-Instruct and later work); None: all.
        seed: seed of the choice of validation tasks, and of training and validation instances.

    Returns:
        The tasks in the order of the split's list. Training and validation instances are shuffled by
        (seed, task name), so a task has the same instances whatever other tasks are loaded.

    Raises:
        HartError: no such split; a folder, list or task file is missing or malformed; a task has
            no instances; there are not enough training tasks; the hub cannot be reached.
    """
    if split not in get_args(Split):
        raise HartError(f"split: '{split}' is not one of {', '.join(get_args(Split))}")
    if max_instances is not None and max_instances < 1:
        raise HartError(f"max_instances: must be at least 1, not {max_instances}")
    if split == "validation" and validation_tasks < 1:
        raise HartError("validation_tasks: is 0, so there is no validation split; set the number of tasks")
    official = "test" if split == "test" else "train"
    source: _Source = _Hub(hub_name, official) if data_dir is None else _Folder(Path(data_dir), official)
    names = source.names
    if official == "train":
        held_out = validation_names(names, validation_tasks, seed, source.source)
        names = [name for name in names if (name in held_out) == (split == "validation")]
    tasks = []
    for name in names:
        available = source.count_instances(name)
        if available == 0:
            raise HartError(f"{source.source}: task '{name}' has no Instances; add some")
        tasks.append(source.task(name, instances_that_count(name, available, official, max_instances, seed)))
    return tasks


def instances_that_count(name: str, available: int, official: str, most: int | None, seed: int) -> list[int]:
    """Indices of the task's instances in an official split ("train" or "test"), in order: at most `most`."""
    order = range(available)
    if official == "train":
        order = named_stream(seed, "instances", name).permutation(available).tolist()
    return list(order[:most])


def validation_names(names: list[str], number: int, seed: int, source: str) -> set[str]:
    """The names of the training tasks that are set aside for validation.

    Raises:
        HartError: no training task would be left.
    """
    if not 0 <= number < len(names):
        raise HartError(
            f"validation_tasks: {number} of the {len(names)} training tasks of {source} "
            "cannot be split off; at least one must be left for training"
        )
    return draw_names(names, number, seed, "validation")


class _Source(Protocol):
    """The tasks of one official split, from a folder or the hub."""

    source: str
    names: list[str]

    def count_instances(self, name: str) -> int: ...

    def task(self, name: str, instances: list[int]) -> Task:
        """The named task with the instances of these indices, in this order."""
        ...


class _Folder:
    def __init__(self, folder: Path, official: str) -> None:
        self.source = str(folder)
        split_list = list_file(folder, official)
        for needed, what in (
            (folder, "folder"),
            (folder / TASKS, "folder"),
            (split_list, "file"),
        ):
            if needed == split_list and official == "test" and (folder / TASKS).is_dir() and not needed.exists():
                raise HartError(
                    f"{needed}: no such list of test tasks; hart tasks make --test-tasks or --test-rows writes one, or "
                    "write one task name per line"
                )
            if not needed.exists():
                raise HartError(
                    f"{needed}: no such {what}; the data folder must be laid out as a clone of "
                    "allenai/natural-instructions (tasks/ and splits/default/)"
                )
        self.names = read_list(split_list)
        if not self.names:
            raise HartError(
                f"{split_list}: lists no task; write one task name per line"
                f"{' (hart tasks make --test-tasks sets some aside)' if official == 'test' else ''}"
            )
        # All names are checked before any file is read, so that a missing last task fails early.
        self._files = {name: task_file(folder, name) for name in self.names}
        for name, file in self._files.items():
            if not file.is_file():
                raise HartError(f"{split_list}: names the task '{name}', but {file} does not exist")
        self._last: tuple[str, Task] | None = None

    def _read(self, name: str) -> Task:
        # A task is counted, then read: the last file is kept, as files have up to 6,500 instances.
        if self._last is None or self._last[0] != name:
            self._last = (name, Task.from_file(self._files[name]))
        return self._last[1]

    def count_instances(self, name: str) -> int:
        return len(self._read(name).instances)

    def task(self, name: str, instances: list[int]) -> Task:
        task = self._read(name)
        return replace(task, instances=tuple(task.instances[index] for index in instances))


class _Hub:
    """Rows of the hub copy: task_name, id, definition, inputs, targets, pos_<k>_{input,output,…}.

    Rows of one instance are adjacent, one per reference. There are millions of rows, so only the
    first row number of each instance is in memory.
    """

    def __init__(self, hub_name: str, official: str) -> None:
        self.source = f"{hub_name} ({official})"
        self._rows = _load_rows(hub_name, official)
        self._starts = array("q")  # first row of each instance; the last entry is the number of rows
        self._instances: dict[str, array[int]] = {}  # task -> its positions in _starts
        previous = ("", "")
        for offset, batch in zip(
            count(0, _BATCH),
            self._rows.select_columns(["task_name", "id"]).iter(batch_size=_BATCH),
            strict=False,
        ):
            keys = zip(batch["task_name"], batch["id"], strict=True)
            for row, key in enumerate(keys, start=offset):
                if key != previous:
                    self._instances.setdefault(key[0], array("q")).append(len(self._starts))
                    self._starts.append(row)
                    previous = key
        self._starts.append(len(self._rows))
        self.names = list(self._instances)
        if not self.names:
            raise HartError(f"{self.source}: the split has no rows; choose another hub data set")

    def count_instances(self, name: str) -> int:
        return len(self._instances[name])

    def task(self, name: str, instances: list[int]) -> Task:
        positions = [self._instances[name][index] for index in instances]
        spans = [range(self._starts[at], self._starts[at + 1]) for at in positions]
        rows = self._rows[[row for span in spans for row in span]]
        content: dict[str, Any] = {
            "Definition": rows["definition"][0],
            "Positive Examples": _positive_examples(rows),
            "Instances": [],
        }
        first = 0
        for span in spans:
            end = first + len(span)
            content["Instances"].append(
                {
                    "id": rows["id"][first],
                    "input": rows["inputs"][first],
                    "output": rows["targets"][first:end],
                }
            )
            first = end
        return Task.from_dict(content, source=f"{self.source} task '{name}'", name=name)


_BATCH = 10_000
_COLUMNS = ("task_name", "id", "definition", "inputs", "targets", "pos_0_input", "pos_0_output")


def _positive_examples(rows: dict[str, list[Any]]) -> list[dict[str, str]]:
    examples = []
    for index in takewhile(lambda index: f"pos_{index}_input" in rows, count()):
        values = {key: rows.get(f"pos_{index}_{key}", [None])[0] or "" for key in ("input", "output", "explanation")}
        # A task with fewer examples than there are columns leaves the rest of them empty.
        if values["input"] or values["output"]:
            examples.append(values)
    return examples


def _load_rows(hub_name: str, official: str) -> Any:
    import datasets  # here, because it takes longer to import than most commands take to run

    try:
        rows = datasets.load_dataset(hub_name, split=official)
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        instead = "give the folder of a clone of allenai/natural-instructions instead (data.dir)"
        failed = unreachable(hub_name, f"loaded from the hub, split '{official}'", error, instead)
        # `datasets` only finds data sets that it has prepared, not files in the hub's cache.
        folder = cached_snapshot(hub_name) if isinstance(error, OSError) else None
        if folder is None:
            raise failed from error
        try:
            rows = datasets.load_dataset(str(folder), split=official)
        except (datasets.exceptions.DatasetsError, OSError, ValueError) as again:
            raise failed from again
    missing = [column for column in _COLUMNS if column not in rows.column_names]
    if missing:
        raise HartError(
            f"{hub_name}: the rows have no column {', '.join(missing)}; choose a hub data set with the layout of "
            f"{DEFAULT_HUB_NAME}"
        )
    return rows
