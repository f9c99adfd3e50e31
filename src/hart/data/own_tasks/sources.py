"""The sources of tasks: tables, folders of tables, and data sets of the library `datasets`.

Each is a `Source`: a name, and rows that are read in order, each with its place.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from hart.data.hub import unreachable
from hart.data.tables import FORMATS, Row, RowError, Table, format_of
from hart.data.tables.formats import ENDINGS, Format
from hart.errors import HartError, first_line

DEFINITION_ENDING = ".definition.txt"
"""Ending of the file with the definition beside a table: `tickets.definition.txt`."""

_SAVED_FILES = ("state.json", "dataset_dict.json")
"""Files that `datasets.save_to_disk` writes for one data set, and for several splits."""
_OBJECTS = ("json", "jsonl")
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


class _Rows(Protocol):
    def rows(self) -> Iterator[Row | RowError]: ...


@dataclass(frozen=True)
class Source:
    """The rows of one table.

    Attributes:
        name: name of the file without its ending, or of the data set; it becomes the task's name.
        label: name in messages.
        definition_file: path of the definition beside it; None: there is no such place.
        has_columns: whether all rows have the same columns; JSON objects may differ.
    """

    name: str
    label: str
    table: _Rows
    definition_file: Path | None = None
    has_columns: bool = True


def open_sources(
    names: Sequence[str],
    *,
    format: Format | None = None,
    standard_input: BinaryIO | None = None,
    split: str | None = None,
    subset: str | None = None,
) -> list[Source]:
    """The sources that the words of a command name, in order.

    Args:
        names: files, folders of files, folders saved by `datasets`, names on the hub, or `-`.
        format: format of files without a known ending, and of standard input.
        standard_input: the stream for `-`.
        split, subset: split and configuration of data sets.

    Raises:
        HartError: a name does not exist, a folder has no table, a data set cannot be loaded, or a split or subset is
            given without a data set.
    """
    found: list[Source] = []
    data_sets = hub = 0
    for name in names:
        path = Path(name)
        if name == "-":
            if format is None or standard_input is None:
                raise HartError(f"standard input: say what it holds with --input-format ({', '.join(FORMATS)})")
            table = Table(standard_input, format, "standard input")
            found.append(Source("task", "standard input", table, has_columns=format not in _OBJECTS))
        elif path.is_dir():
            saved = any((path / each).is_file() for each in _SAVED_FILES)
            data_sets += saved
            found += [_saved(path, split)] if saved else _folder(path)
        elif not path.exists() and format is None and _ending(path) is None and _HUB_NAME.fullmatch(name):
            hub += 1
            found.append(_of_the_hub(name, split, subset))
        else:
            found.append(_file(path, format or format_of(path, "--input-format")))
    for option, given, used in (("--split", split, data_sets + hub), ("--subset", subset, hub)):
        if given is not None and not used:
            kind = "a data set" if option == "--split" else "a data set on the hub"
            raise HartError(f"{option}: is for {kind}, and none is given; leave it out")
    return found


def _ending(path: Path) -> Format | None:
    plain = path.with_suffix("") if path.suffix == ".gz" else path
    return ENDINGS.get(plain.suffix.lower())


def _file(path: Path, format: Format) -> Source:
    if format == "txt":
        raise HartError(f"{path}: a plain text has no outputs; give a table with a column of inputs and one of outputs")
    stem = (path.with_suffix("") if path.suffix == ".gz" else path).stem
    beside = path.with_name(f"{stem}{DEFINITION_ENDING}")
    return Source(stem, str(path), Table(path, format, str(path)), beside, has_columns=format not in _OBJECTS)


def _folder(folder: Path) -> list[Source]:
    paths = [path for path in sorted(folder.iterdir()) if path.is_file() and _ending(path) not in (None, "txt")]
    if not paths:
        endings = ", ".join(ending for ending, format in ENDINGS.items() if format != "txt")
        raise HartError(f"{folder}: holds no table ({endings}), and no data set that datasets.save_to_disk wrote")
    return [_file(path, format_of(path, "--input-format")) for path in paths]


def _saved(folder: Path, split: str | None) -> Source:
    import datasets  # imported here, because it takes longer than reading most tables

    try:
        loaded = datasets.load_from_disk(str(folder))
    except (datasets.exceptions.DatasetsError, OSError, ValueError, KeyError, TypeError) as error:
        raise HartError(
            f"{folder}: the data set cannot be loaded ({first_line(error)}); save it again with save_to_disk"
        ) from error
    return Source(
        folder.name, str(folder), _DataSet(str(folder), _one_split(str(folder), loaded, split)), _beside(folder)
    )


def _beside(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}{DEFINITION_ENDING}")


def _of_the_hub(name: str, split: str | None, subset: str | None) -> Source:
    import datasets

    try:
        loaded = datasets.load_dataset(name, subset, split=split)
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        instead = "give a file, a folder of files, or a folder that datasets.save_to_disk wrote"
        raise unreachable(name, "loaded from the hub, and no such file exists", error, instead) from error
    return Source(name.rpartition("/")[2], name, _DataSet(name, _one_split(name, loaded, None if split else split)))


def _one_split(label: str, loaded: Any, split: str | None) -> Any:
    """The rows of a loaded data set, or of one of its splits."""
    if not isinstance(loaded, dict):
        return loaded
    if split is None and len(loaded) == 1:
        return next(iter(loaded.values()))
    if split not in loaded:
        problem = "has several splits" if split is None else f"has no split {split!r}"
        raise HartError(f"{label}: {problem}; choose one of {', '.join(loaded)} with --split")
    return loaded[split]


@dataclass(frozen=True)
class _DataSet:
    """The rows of a data set, with class labels as names."""

    label: str
    data: Any

    def rows(self) -> Iterator[Row | RowError]:
        import datasets

        classes = {
            name: feature for name, feature in self.data.features.items() if isinstance(feature, datasets.ClassLabel)
        }
        for number, content in enumerate(self.data, start=1):
            for name, feature in classes.items():
                if content[name] is not None and content[name] >= 0:  # -1: hidden, as in many test splits
                    content[name] = feature.int2str(content[name])
                else:
                    content[name] = None
            yield Row(f"{self.label}, row {number}", content)
