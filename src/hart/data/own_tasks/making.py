"""Making task files from rows: the choice of demonstrations and instances, and the names of tasks.

A table becomes one task, or one for each value of a column. All rows of a task are in memory while its file is made, as
always when the file is read.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from hart.data.own_tasks.sources import Source
from hart.data.streams import named_stream
from hart.data.tables import Row, RowError
from hart.data.tasks import Instance, Task
from hart.errors import HartError
from hart.runtime.files import read_text

NAME = 60
"""Most characters of a task's name; with four bytes each, file systems still accept it."""
HELD_OUT = "_held_out"
"""Ending of the name of a task with the held-out rows of another task."""
MOST_LABELS, ROWS_PER_LABEL = 20, 3
"""Outputs count as labels if there are at most `MOST_LABELS` and on average at least `ROWS_PER_LABEL` rows of each."""


@dataclass(frozen=True)
class Fields:
    """The names of the columns of a table.

    Attributes:
        input, output: columns of the query, and of its answer (a text, a number, or a list of accepted answers).
        definition: column of the definition; None: it is not in the table.
        task: column of the task; None: all rows with the same definition are one task.
    """

    input: str = "input"
    output: str = "output"
    definition: str | None = None
    task: str | None = None


@dataclass(frozen=True)
class Made:
    """A task made from rows, with facts about them.

    Attributes:
        shown: places of the rows that became demonstrations.
        labels: number of labels; 0 if the outputs are not labels.
        untold: labels, in their first spelling, that are neither in a demonstration nor in the definition.
        left_out: number of rows left out because a demonstration has their input.
    """

    task: Task
    shown: tuple[str, ...]
    labels: int
    left_out: int
    untold: tuple[str, ...] = ()


@dataclass
class _Group:
    """The definition and rows of a future task; a row is its place, its input and its accepted answers."""

    definition: str
    rows: list[tuple[str, str, tuple[str, ...]]] = field(default_factory=list)


def make_tasks(
    source: Source,
    fields: Fields,
    *,
    name: str | None = None,
    definition: str | None = None,
    demonstrations: int = 2,
    seed: int | None = None,
    choices: bool = False,
    skip: Callable[[RowError], None] | None = None,
) -> list[Made]:
    """The tasks of a source.

    Args:
        name: name of the task; None: the source's. The names of several tasks begin with it.
        definition: definition of all rows; None: from the column `fields.definition`, else the file beside the table.
        demonstrations: number of rows that become demonstrations, at least one. They are the first rows, or with a
            `seed` random ones; if outputs are labels (`MOST_LABELS`), the first row of each label in turn.
        choices: make each task multiple-choice: its outputs are labels, and each instance has all of them as choices.
        skip: called with the error of a row that cannot be used; None: the error is raised.

    Raises:
        HartError: a row or a column is missing or malformed, a task has no definition or no rows, two tasks have the
            same name, or `choices` is set and outputs are not labels.
    """
    name = source.name if name is None else name
    if definition is None and fields.definition is None:
        definition = _definition_beside(source)
    groups: dict[str, _Group] = {}
    for row in _usable(source, fields, skip):
        own = definition if definition is not None else row.definition
        key = own if fields.task is None else row.task
        group = groups.setdefault(key, _Group(own))
        if group.definition != own:
            raise HartError(
                f"{row.place}: the definition differs from that of other rows of task {key!r}; "
                "give one definition to each task, or leave --task-field out"
            )
        group.rows.append((row.place, row.input, row.answers))
    if not groups:
        raise HartError(f"{source.label}: has no rows; give a table with at least {demonstrations} rows")
    names = _names(name, groups, by_value=fields.task is not None)
    return [
        _task(names[key], group, demonstrations, seed, choices, named_by=f"{source.label}: task {names[key]}")
        for key, group in groups.items()
    ]


def _definition_beside(source: Source) -> str:
    path = source.definition_file
    if path is None or not path.is_file():
        beside = "" if path is None else f", or write it into {path}"
        raise HartError(
            f"{source.label}: no definition; say what its rows ask for with --definition TEXT or "
            f"--definition-field COLUMN{beside}"
        )
    text = read_text(path, "the text of a definition").strip()
    if not text:
        raise HartError(f"{path}: is empty; write into it what the rows of {source.label} ask for")
    return text


class _Row(NamedTuple):
    """The texts of a row; those of unused columns are empty."""

    place: str
    input: str
    answers: tuple[str, ...]
    definition: str
    task: str


def _usable(source: Source, fields: Fields, skip: Callable[[RowError], None] | None) -> Iterator[_Row]:
    """The rows with all texts that a task needs; a missing column is an error of the whole table."""
    for row in source.table.rows():
        try:
            if isinstance(row, RowError):
                raise row
            _check_columns(source, fields, row)
            yield _Row(
                row.where,
                _cell(row.content[fields.input], fields.input, row.where),
                _answers(row.content[fields.output], fields.output, row.where),
                ""
                if fields.definition is None
                else _cell(row.content[fields.definition], fields.definition, row.where),
                "" if fields.task is None else _cell(row.content[fields.task], fields.task, row.where),
            )
        except RowError as problem:
            if skip is None:
                raise
            skip(problem)


def _check_columns(source: Source, fields: Fields, row: Row) -> None:
    wanted = {"input": fields.input, "output": fields.output, "definition": fields.definition, "task": fields.task}
    for what, column in wanted.items():
        if column is not None and column not in row.content:
            raise (HartError if source.has_columns else RowError)(
                f"{row.where}: has no field {column!r}, only {', '.join(map(repr, row.content)) or 'none'}; name the "
                f"right one with --{what}-field"
            )


def _answers(value: Any, column: str, place: str) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        return (_cell(value, column, place),)
    if not value:
        raise RowError(f"{place}: {column!r} is an empty list; give at least one accepted answer")
    return tuple(_cell(each, column, place) for each in value)


def _cell(value: Any, column: str, place: str) -> str:
    """A cell's non-blank text, stripped; a number is converted to its digits."""
    if isinstance(value, float) and not math.isfinite(value):
        value = ""  # pandas writes NaN for an empty cell
    if isinstance(value, int | float):
        value = str(value).lower() if isinstance(value, bool) else str(value)
    if not isinstance(value, str):
        raise RowError(f"{place}: {column!r} must be a text or a number")
    if not value.strip():
        raise RowError(f"{place}: {column!r} is empty; fill it, or remove the row")
    return value.strip()


def _names(name: str, groups: dict[str, _Group], *, by_value: bool) -> dict[str, str]:
    """A name for each task that is a valid file name and fits on one line of a list."""
    if by_value:
        names = {key: file_name(key) for key in groups}
    elif len(groups) == 1:
        names = {next(iter(groups)): file_name(name)}
    else:
        width = len(str(len(groups)))
        names = {key: f"{file_name(name)}_{number:0{width}}" for number, key in enumerate(groups, start=1)}
    refuse_twins(names.items())
    return names


def file_name(text: str) -> str:
    """A text as a task's name: other characters are replaced by underscores, and a long text is cut."""
    return re.sub(r"[^\w.-]+", "_", text.strip())[:NAME].strip("_.") or "task"


def refuse_twins(named: Iterable[tuple[str, str]]) -> None:
    """Raise `HartError` if two names are the same file name, also on file systems that ignore case.

    Args:
        named: the origin of each task, and its name.
    """
    seen: dict[str, str] = {}
    for origin, name in named:
        before = seen.get(name.casefold())
        if before is not None:
            raise HartError(
                f"two tasks would be called {name!r} ({before!r} and {origin!r}); "
                "rename one table, or one value of the column"
            )
        seen[name.casefold()] = origin


def _task(name: str, group: _Group, demonstrations: int, seed: int | None, choices: bool, *, named_by: str) -> Made:
    rows = group.rows
    if choices:
        rows, options = _as_labels(rows, named_by)
    else:
        options = ()
    # The first row of each input, as further rows with it would repeat or contradict the demonstration.
    firsts: dict[str, int] = {}
    for index, (_, text, _) in enumerate(rows):
        firsts.setdefault(text, index)
    different = [*firsts.values()]
    if len(different) < demonstrations:
        raise HartError(
            f"{named_by}: has {len(different)} rows with different inputs, too few for {demonstrations} "
            "demonstrations; add rows, or lower --demonstrations"
        )
    outputs = [rows[index][2][0] for index in different]
    picked, labels = choose(outputs, demonstrations, seed, name)
    chosen = [different[index] for index in picked]
    shown_inputs = {rows[index][1] for index in chosen}
    kept = [index for index, row in enumerate(rows) if row[1] not in shown_inputs]
    width = len(str(len(rows)))
    task = Task(
        group.definition,
        [(rows[index][1], rows[index][2][0]) for index in chosen],
        name=name,
        instances=[Instance(rows[index][1], rows[index][2], f"{name}-{index + 1:0{width}}", options) for index in kept],
    )
    places = tuple(rows[index][0] for index in chosen)
    told = {_plain(each.output) for each in task.demonstrations}
    spelt = {_plain(output): output for output in reversed(outputs)} if labels else {}
    definition = _plain(group.definition)
    untold = tuple(output for label, output in spelt.items() if label not in told and not _names_it(definition, label))
    return Made(task, places, labels, len(rows) - len(kept) - len(chosen), untold[::-1])


def _as_labels(
    rows: Sequence[tuple[str, str, tuple[str, ...]]], named_by: str
) -> tuple[list[tuple[str, str, tuple[str, ...]]], tuple[str, ...]]:
    """The rows with each label in its first spelling, and all labels."""
    spelt: dict[str, str] = {}
    for _, _, answers in rows:
        for answer in answers:
            spelt.setdefault(_plain(answer), answer)
    if not 2 <= len(spelt) <= MOST_LABELS:
        raise HartError(
            f"{named_by}: has {len(spelt)} different outputs, and choices are 2 to {MOST_LABELS} labels; "
            "leave --choices out"
        )
    told = [
        (place, text, tuple(dict.fromkeys(spelt[_plain(each)] for each in answers))) for place, text, answers in rows
    ]
    return told, tuple(spelt.values())


def hold_out(made: Made, number: int, seed: int) -> tuple[Made, Task]:
    """Hold out at least `number` random instances of a task for testing.

    Instances with the same input stay together, so that no test input is trained on.

    Returns:
        The task without these instances, and a task `NAME_held_out` with them and the same definition and
        demonstrations.

    Raises:
        HartError: no training instance would be left.
    """
    task = made.task
    inputs = [each.input for each in task.instances]
    if number >= len(inputs):
        raise HartError(
            f"--test-rows: task {task.name} has {len(inputs)} rows beside its demonstrations, {number} cannot be held "
            "out; at least one must be left to train on"
        )
    counts = Counter(inputs)
    drawn: set[str] = set()
    rows = 0
    for index in named_stream(seed, "held out", task.name).permutation(len(inputs)).tolist():
        if rows >= number:
            break
        if inputs[index] not in drawn:
            drawn.add(inputs[index])
            rows += counts[inputs[index]]
    held = [each for each in task.instances if each.input in drawn]
    left = [each for each in task.instances if each.input not in drawn]
    if not left:
        raise HartError(
            f"--test-rows: task {task.name} has {len(inputs)} rows of {len(drawn)} inputs, {number} cannot be held "
            "out; at least one input must be left to train on"
        )
    return replace(made, task=replace(task, instances=left)), replace(
        task, name=held_out_name(task.name), instances=held
    )


def held_out_name(name: str) -> str:
    """The name of the task with the held-out rows of task `name`."""
    return f"{name[: NAME - len(HELD_OUT)]}{HELD_OUT}"


def _names_it(text: str, label: str) -> bool:
    """Whether a label occurs in a text as a separate word."""
    return re.search(rf"(?<!\w){re.escape(label)}(?!\w)", text) is not None


def _plain(text: str) -> str:
    """A label for comparison: case-folded, with single spaces."""
    return " ".join(text.casefold().split())


def choose(outputs: Sequence[str], number: int, seed: int | None, name: str) -> tuple[list[int], int]:
    """The indices of the rows that become demonstrations, and the number of labels (0 if outputs are not labels).

    Labels are compared without case and white space.

    Args:
        seed: None: the first rows; else the rows of task `name` are shuffled first.
    """
    order = list(range(len(outputs)))
    if seed is not None:
        order = named_stream(seed, "demonstrations", name).permutation(len(outputs)).tolist()
    found: dict[str, list[int]] = {}
    for index in order:
        found.setdefault(_plain(outputs[index]), []).append(index)
    if len(found) < 2 or len(found) > MOST_LABELS or len(found) * ROWS_PER_LABEL > len(outputs):
        return order[:number], 0
    turns = [own[turn] for turn in range(max(map(len, found.values()))) for own in found.values() if turn < len(own)]
    return turns[:number], len(found)
