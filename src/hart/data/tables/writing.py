"""Incremental writing of rows with answers, so that an interrupted command loses no answer and can be resumed.

Lines (JSON lines, CSV, TSV, plain text) are appended to the file itself. A JSON array and a Parquet file can only be
written completely, so their rows are appended to a journal beside them, a file of JSON lines, until the last row.
"""

import csv
import io
import json
import math
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from hart.data.tables.formats import Format, RowError
from hart.data.tables.reading import DELIMITERS, Row, Table, chunks
from hart.errors import HartError, first_line
from hart.runtime.files import open_target

WHOLE = ("json", "parquet")
"""Formats that cannot be read before their end is written."""
PARQUET_ROWS = 4096
"""Rows per row group of a Parquet file."""


class Answers:
    """The output of rows with answers: a file, which is begun with the first row, or the screen.

    Before the first answer, an older file is unchanged.

    Args:
        path: path of the file; None: rows are printed.
        format: format of the rows.
        own: the fields that an answer adds to its row; the first is the answer itself, the only one in plain text.
        columns: the fields of all rows, for the header of CSV and TSV; None: those of the first rows.
        show: prints a text if there is no file.

    Raises:
        HartError: the format cannot be printed or written to a pipe.
    """

    def __init__(
        self,
        path: Path | None,
        format: Format,
        own: Sequence[str],
        *,
        columns: Sequence[str] | None = None,
        show: Callable[[str], None] = print,
    ) -> None:
        if format in WHOLE and (path is None or (path.exists() and not path.is_file())):
            raise HartError(f"{path or 'standard output'}: {format} needs a regular file; give one as --output-file")
        self._path = path
        self._format = format
        self._own = list(own)
        self._columns = None if columns is None else self._header(columns)
        self._show = show
        self._file: BinaryIO | None = None
        self._as: Format = "jsonl" if format in WHOLE else format
        self._begun = False

    @property
    def place(self) -> str:
        """The file with the rows so far, or "printed", for messages."""
        return "printed" if self._path is None else str(self._target)

    @property
    def _target(self) -> Path:
        assert self._path is not None
        return self._path.with_name(f"{self._path.name}.part.jsonl") if self._format in WHOLE else self._path

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        """Append rows and flush them.

        Raises:
            HartError: the file cannot be written, or a row has a field that is not in the header.
            BrokenPipeError: the reader of the pipe has gone.
        """
        text = self._text([_plain(row) for row in rows])
        if self._path is None:
            self._show(text)
            return
        try:
            if self._file is None:
                self._file = open_target(self._target)
            # A lone surrogate is written as the escape from which it came.
            self._file.write(text.encode("utf-8", "backslashreplace"))
            self._file.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise HartError(f"{self._target}: cannot be written ({error.strerror})") from error

    def finish(self) -> None:
        """Complete the output after the last row: write the JSON array or Parquet file from the journal.

        Raises:
            HartError: the file cannot be written, or the rows fit into no table; they stay in the journal.
        """
        if self._file is not None:
            self._file.close()
        if self._format in WHOLE and self._path is not None and self._target.exists():
            journal = Table(self._target, "jsonl", str(self._target))
            (_write_parquet if self._format == "parquet" else _write_array)(self._path, journal)
            self._target.unlink()

    def resume(self, rows: Iterator[Row]) -> int:
        """Continue after the answers in the file: consume the rows that they answer, and return their number.

        An incomplete last row of an interrupted write is removed.

        Raises:
            HartError: the file does not consist of the answers to these rows, in their order.
        """
        if self._path is None:
            raise HartError("--resume continues the answers of an --output-file; give that file")
        if self._format == "txt":
            raise HartError("--resume needs an --output-file with queries and answers; txt has answers only")
        old = self._target if self._target.exists() else self._path
        if not old.exists():
            return 0
        if not stat.S_ISREG(old.stat().st_mode):
            raise HartError(f"{old}: is not a regular file and holds no answers; leave --resume out")
        count = end = 0
        wrong: RowError | None = None
        table = Table(old, self._as if old == self._target else self._format, str(old))
        for answered in table.rows():
            if wrong is not None:
                raise HartError(str(wrong))
            if isinstance(answered, RowError):
                wrong = answered
                continue
            if old == self._target and answered.end is None:
                break
            row = next(rows, None)
            if row is None:
                raise HartError(f"{answered.where}: answers a row that the input lacks; give another --output-file")
            if not self._answers(answered.content, row.content):
                raise HartError(
                    f"{answered.where}: does not match {row.where} and these options; "
                    "give another --output-file, or leave --resume out to begin again"
                )
            if old != self._target:
                self.write([answered.content])
            count, end = count + 1, answered.end or 0
        if count and old == self._target:
            self._append(end)
        return count

    def _append(self, end: int) -> None:
        try:
            self._file = open(self._target, "r+b")
            self._file.truncate(end)
            self._file.seek(end)
        except OSError as error:
            raise HartError(f"{self._target}: cannot be written ({error.strerror})") from error
        self._begun = True

    def _answers(self, answered: dict[str, Any], row: dict[str, Any]) -> bool:
        """Whether a written row is this input row with an answer."""
        if self._as in DELIMITERS:
            self._columns = self._columns or self._header(list(row))
            if list(answered) != self._columns:
                return False
            row = {name: _cell(_plain(row.get(name))) for name in self._columns}
        own = set(self._own)
        return own <= answered.keys() and _canonical(answered, own) == _canonical(row, own)

    def _header(self, names: Sequence[str]) -> list[str]:
        return [*(name for name in names if name not in self._own), *self._own]

    def _text(self, rows: Sequence[dict[str, Any]]) -> str:
        if self._as == "jsonl":
            return "".join(f"{json.dumps(row, ensure_ascii=False, default=str)}\n" for row in rows)
        if self._as == "txt":
            return "".join(f"{' '.join(str(row[self._own[0]]).splitlines())}\n" for row in rows)
        self._columns = self._columns or self._header(list(dict.fromkeys(name for row in rows for name in row)))
        lines = [] if self._begun else [self._record(self._columns)]
        self._begun = True
        for row in rows:
            unknown = next((name for name in row if name not in self._columns), None)
            if unknown is not None:
                raise HartError(f"{self.place}: a row has the column {unknown!r}, which the header lacks; write jsonl")
            lines.append(self._record([_cell(row.get(name)) for name in self._columns]))
        return "".join(lines)

    def _record(self, cells: Sequence[str]) -> str:
        written = io.StringIO()
        # With this line end, the module also quotes fields with a carriage return.
        csv.writer(written, delimiter=DELIMITERS[self._as], lineterminator="\r\n").writerow(cells)
        return written.getvalue().removesuffix("\r\n") + "\n"


def _plain(value: Any) -> Any:
    """A value with null in the place of numbers that JSON cannot represent (NaN, infinity)."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def _cell(value: Any) -> str:
    """A value as a field of CSV: a text unchanged, empty for null, other values as JSON."""
    if value is None:
        return ""
    if isinstance(value, bool | int | float | list | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def _canonical(content: dict[str, Any], without: set[str]) -> str:
    # Missing fields of a row are null in a Parquet file.
    plain = {name: _plain(value) for name, value in content.items() if name not in without}
    kept = {name: value for name, value in plain.items() if value is not None}
    return json.dumps(kept, sort_keys=True, default=str)


def _rows_of(journal: Table) -> Iterator[dict[str, Any]]:
    for row in journal.rows():
        if isinstance(row, RowError):
            raise HartError(str(row))
        yield row.content


def _write_array(path: Path, journal: Table) -> None:
    try:
        with open_target(path) as file:
            for number, row in enumerate(_rows_of(journal)):
                file.write(b",\n" if number else b"[\n")
                file.write(json.dumps(row, ensure_ascii=False).encode())
            file.write(b"\n]\n")
    except OSError as error:
        raise HartError(f"{path}: cannot be written ({error.strerror}); the rows are in {journal.name}") from error


def _write_parquet(path: Path, journal: Table) -> None:
    """Write a Parquet file from the journal, which is read twice: first for the types of the columns."""
    import pyarrow
    from pyarrow import parquet

    try:
        types = _types(journal)
        schema = pyarrow.schema([(name, kind or pyarrow.string()) for name, kind in types.items()])
        as_text = [name for name, kind in types.items() if kind is None]
        with open_target(path) as file, parquet.ParquetWriter(file, schema) as writer:
            for part in chunks(_rows_of(journal), PARQUET_ROWS):
                for row in part:
                    row |= {name: _cell(row[name]) for name in as_text if row.get(name) is not None}
                writer.write_table(pyarrow.Table.from_pylist(part, schema=schema))
    except (pyarrow.ArrowException, OSError, TypeError, OverflowError) as error:
        raise HartError(f"{path}: cannot be written ({first_line(error)}); the rows are in {journal.name}") from error


def _types(journal: Table) -> dict[str, Any]:
    """Column → its Arrow type; None if no single type holds all its values, which are then written as text."""
    import pyarrow

    types: dict[str, Any] = {}
    for part in chunks(_rows_of(journal), PARQUET_ROWS):
        for name in dict.fromkeys(name for row in part for name in row):
            before = types.get(name, pyarrow.null())
            if before is None:
                continue
            try:
                own = pyarrow.array([row.get(name) for row in part]).type
                both = [pyarrow.schema([(name, kind)]) for kind in (before, own)]
                found = pyarrow.unify_schemas(both, promote_options="permissive").field(0).type
                types[name] = None if _is_empty(found) else found
            except (pyarrow.ArrowException, TypeError, OverflowError):
                types[name] = None
    return types


def _is_empty(kind: Any) -> bool:
    """Whether an Arrow type contains a structure without fields, which Parquet does not support."""
    import pyarrow

    parts = [kind.field(at).type for at in range(kind.num_fields)]
    return (pyarrow.types.is_struct(kind) and not parts) or any(map(_is_empty, parts))
