"""Checking of a folder of task files before training, with the code with which training reads it.

One task is in memory at a time, and a hash of 8 bytes per test row, by which equal training rows are found.
"""

import hashlib
from array import array
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from hart.data.input_format import InputFormat
from hart.data.prompts import NAMES, Cuts, Tokenizer
from hart.data.sampling import Demonstrations, TrainingDataset
from hart.data.super_natural_instructions import instances_that_count, validation_names
from hart.data.task_folders import TASKS, list_file, read_list, task_file
from hart.data.tasks import Task
from hart.errors import HartError

UNLIMITED = 10**9
"""Limit in tokens for measuring uncut texts."""


@dataclass(frozen=True)
class Limits:
    """The limits and settings with which a model or a configuration reads tasks.

    Attributes:
        form: the input format.
        tokenizer, reader: tokenizers of queries and answers, and of tasks.
        demonstrations, queries_per_task: settings of training.
        max_train_instances, max_test_instances, seed: choice of a task's instances; None: all.
        validation_tasks: number of training tasks that are set aside.
    """

    form: InputFormat
    tokenizer: Tokenizer
    reader: Tokenizer
    demonstrations: Demonstrations = "fixed"
    queries_per_task: int = 1
    max_train_instances: int | None = None
    max_test_instances: int | None = None
    seed: int = 0
    validation_tasks: int = 0


@dataclass
class Counts:
    """Counts of the tasks and rows in one list.

    Attributes:
        tasks, rows: numbers of readable tasks, and of their instances.
        repeated: rows equal to an earlier row of their task.
        contradicting: rows with the input of an earlier row of their task, but other outputs.
        shown: rows with the input of a demonstration of their task.
        empty_outputs, empty_inputs: rows with a blank output or input.
        same_definition, same_rows: training tasks with the definition of a test task, and training rows in a test task.
    """

    tasks: int = 0
    rows: int = 0
    repeated: int = 0
    contradicting: int = 0
    shown: int = 0
    empty_inputs: int = 0
    empty_outputs: int = 0
    same_definition: int = 0
    same_rows: int = 0


@dataclass
class Lengths:
    """Lengths of uncut texts in tokens, including the end of sequence, and the number above the limit."""

    limit: int
    texts: int = 0
    tokens: int = 0
    longest: int = 0
    cut: int = 0

    def add(self, tokens: int) -> bool:
        """Count a text; returns whether it is longer than the limit."""
        self.texts += 1
        self.tokens += tokens
        self.longest = max(self.longest, tokens)
        self.cut += tokens > self.limit
        return tokens > self.limit

    @property
    def mean(self) -> float:
        return self.tokens / max(self.texts, 1)


@dataclass
class Report:
    """The result of checking a folder.

    Attributes:
        splits: list, "train" or "test" → its counts.
        lengths: lengths of tasks, queries and targets; empty without limits.
        refused: errors at which training or evaluation would stop, one line each.
        warnings: warning → names of its tasks (the first `NAMES`).
    """

    folder: Path
    splits: dict[str, Counts] = field(default_factory=lambda: {"train": Counts(), "test": Counts()})
    lengths: dict[str, Lengths] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    warnings: dict[str, list[str]] = field(default_factory=dict)

    def warn(self, what: str, task: str) -> None:
        tasks = self.warnings.setdefault(what, [])
        if len(tasks) < NAMES and task not in tasks[-1:]:
            tasks.append(task)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready values."""
        lengths = {
            what: {**vars(each), "mean": round(each.mean, 1)} for what, each in self.lengths.items() if each.texts
        }
        return {
            "folder": str(self.folder),
            "splits": {name: vars(counts) for name, counts in self.splits.items()},
            "lengths": lengths,
            "refused": self.refused,
            "warnings": self.warnings,
        }


def check_folder(
    folder: Path, limits: Limits | None = None, *, advance: Callable[[int], None] = lambda _: None
) -> Report:
    """Check the tasks in the lists of a folder, test tasks first.

    Args:
        limits: limits of the model or configuration; None leaves out lengths and all checks that need them.
        advance: called with 1 after each task.

    Raises:
        HartError: there is no such folder.
    """
    if not folder.is_dir():
        raise HartError(f"{folder}: no such folder; give one that hart tasks make wrote, or a clone of S-NI")
    report = Report(folder)
    if limits is not None:
        form = limits.form
        both = form.max_demonstrations_length
        report.lengths = {
            "task": Lengths(both),
            "query": Lengths(both if form.in_context else form.max_query_length),
            "target": Lengths(form.max_target_length),
        }
    tested = _Tested()
    lists = {official: _list(folder, official, report) for official in ("test", "train")}
    if limits is not None and lists["train"]:
        try:
            validation_names(lists["train"], limits.validation_tasks, limits.seed, str(folder))
        except HartError as error:
            report.refused.append(f"data.{error}")
    cuts = Cuts()
    for official, names in lists.items():
        for name in names:
            task = _read(folder, name, official, report)
            if task is not None:
                _count(task, official, report, tested)
                if limits is not None:
                    _measure(task, official, limits, report, cuts)
            advance(1)
        tested.close()
    report.warnings |= {kind: [each.removeprefix("task ") for each in names] for kind, names in cuts.found().items()}
    _unlisted(folder, lists, report)
    return report


def count_tasks(folder: Path) -> int:
    """Number of tasks in the lists of a folder; 0 if they cannot be read."""
    try:
        paths = [list_file(folder, official) for official in ("train", "test")]
        return sum(len(read_list(path)) for path in paths if path.exists())
    except HartError:
        return 0


def _list(folder: Path, official: str, report: Report) -> list[str]:
    path = list_file(folder, official)
    try:
        names = read_list(path) if path.exists() else []
    except HartError as error:
        report.refused.append(str(error))
        return []
    if not names and official == "train":
        wanted = "names no task to train on" if path.exists() else "no such file"
        report.refused.append(f"{path}: {wanted}; write one task name per line")
    elif not names:  # the test list is only read by an evaluation, and is optional
        report.warn("the list of test tasks is empty or missing, and hart evaluate --data sni needs one", str(path))
    return names


def _read(folder: Path, name: str, official: str, report: Report) -> Task | None:
    try:
        task = Task.from_file(task_file(folder, name))
    except HartError as error:
        report.refused.append(str(error))
        return None
    if not task.instances:
        what = "train on" if official == "train" else "evaluate on"
        report.refused.append(f"{task_file(folder, name)}: has no Instances to {what}; add some")
    return task


def _unlisted(folder: Path, lists: dict[str, list[str]], report: Report) -> None:
    listed = {name for names in lists.values() for name in names}
    for name in sorted(set(lists["train"]) & set(lists["test"])):
        report.warn("is in the list of training tasks and in that of test tasks", name)
    for path in sorted((folder / TASKS).glob("*.json")):
        if path.stem not in listed:
            report.warn("is in neither list of tasks and is never read", path.stem)


def _count(task: Task, official: str, report: Report, tested: "_Tested") -> None:
    counts = report.splits[official]
    counts.tasks += 1
    counts.rows += len(task.instances)
    answers: dict[int, set[int]] = defaultdict(set)
    shown = {_hash(each.input) for each in task.demonstrations}
    rows = array("Q")
    found: dict[str, int] = defaultdict(int)
    for instance in task.instances:
        asked, row = _hash(instance.input), _hash(instance.input, *sorted(instance.references))
        found["repeated"] += row in answers[asked]
        found["contradicting"] += bool(answers[asked]) and row not in answers[asked]
        found["shown"] += asked in shown
        found["empty_inputs"] += not instance.input.strip()
        found["empty_outputs"] += not all(each.strip() for each in instance.references)
        answers[asked].add(row)
        rows.append(row)
    if official == "train":
        found["same_definition"] = int(bool(task.definition.strip()) and tested.has_definition(task.definition))
        found["same_rows"] = tested.count(rows)
    else:
        tested.add(task.definition, rows)
    for what, number in found.items():
        if number:
            setattr(counts, what, getattr(counts, what) + number)
            report.warn(_WARNINGS[what], task.name)
    if not task.definition.strip():
        report.warn("has no definition; a model that reads definitions cannot be trained on it", task.name)
    if not task.demonstrations:
        report.warn("has no demonstrations; to train on it, data.num_demonstrations must be 0", task.name)
    if any(not each.output.strip() for each in task.demonstrations):
        report.warn("has a demonstration with an empty output", task.name)
    if len(shown) < len(task.demonstrations):
        report.warn("has several demonstrations with the same input", task.name)


_WARNINGS = {
    "repeated": "repeats rows",
    "contradicting": "has rows with the same input and different outputs",
    "shown": "has rows with the input of one of its demonstrations",
    "empty_inputs": "has rows with an empty input",
    "empty_outputs": "has rows with an empty output",
    "same_definition": "is a training task and has the definition of a test task",
    "same_rows": "is a training task and has rows of a test task",
}


def _measure(task: Task, official: str, limits: Limits, report: Report, cuts: Cuts) -> None:
    """Measure the lengths of a task, and record the errors and cuts of training (for test tasks: of adapting)."""
    form, name = limits.form, f"task {task.label}"
    most = limits.max_train_instances if official == "train" else limits.max_test_instances
    kept = instances_that_count(task.name, len(task.instances), official, most, limits.seed)
    task = replace(task, instances=tuple(task.instances[index] for index in kept))
    open_form = replace(
        form, max_demonstrations_length=UNLIMITED, max_query_length=UNLIMITED, max_target_length=UNLIMITED
    )
    fixed = official == "test" or limits.demonstrations == "fixed"  # adapting uses the demonstrations of the file
    try:
        if fixed:
            form.note_unread(task, cuts)
        if official == "train" and task.instances:
            dataset = TrainingDataset(
                [task],
                limits.tokenizer,
                form,
                length=1,
                seed=limits.seed,
                demonstrations=limits.demonstrations,
                queries_per_task=limits.queries_per_task,
                reader=limits.reader,
                cuts=cuts,
            )
            (task,) = dataset.tasks
        elif form.demonstrations_to == "hypernetwork":
            form.check_readable(task)
            form.encode_groups(limits.reader, task, cuts)
    except HartError as error:
        report.refused.append(str(error))
        return
    if form.demonstrations_to == "hypernetwork" and fixed:
        for group in open_form.encode_groups(limits.reader, task):
            report.lengths["task"].add(len(group))
    for instance in task.instances:
        if report.lengths["query"].add(len(open_form.encode_input(limits.tokenizer, task, instance.input, blank=True))):
            form.encode_input(limits.tokenizer, task, instance.input, cuts, name=name, blank=True)
        for text in instance.references:
            if report.lengths["target"].add(len(open_form.encode_target(limits.tokenizer, text))):
                form.encode_target(limits.tokenizer, text, cuts, name=name)


class _Tested:
    """Hashes of the definitions and rows of the test tasks."""

    def __init__(self) -> None:
        self._definitions: set[int] = set()
        self._rows = array("Q")
        self._sorted = np.zeros(0, dtype=np.uint64)

    def add(self, definition: str, rows: Sequence[int]) -> None:
        self._definitions.add(_hash(" ".join(definition.split()).casefold()))
        self._rows.extend(rows)

    def close(self) -> None:
        """Sort the hashes, after the last test task."""
        if len(self._rows):
            self._sorted = np.unique(np.frombuffer(self._rows, dtype=np.uint64))
            self._rows = array("Q")

    def has_definition(self, definition: str) -> bool:
        return _hash(" ".join(definition.split()).casefold()) in self._definitions

    def count(self, rows: "array[int]") -> int:
        if not len(rows) or not len(self._sorted):
            return 0
        return int(np.isin(np.frombuffer(rows, dtype=np.uint64), self._sorted).sum())


def _hash(*texts: str) -> int:
    """A hash of 64 bits of the texts, without surrounding white space."""
    joined = "\0".join(text.strip() for text in texts)
    return int.from_bytes(hashlib.blake2b(joined.encode(), digest_size=8).digest(), "little")
