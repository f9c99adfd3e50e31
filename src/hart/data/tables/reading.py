"""Reading of rows, a few at a time, each with its place in the file.

A reader yields rows, and a `RowError` in the place of a wrong row, so that the caller decides whether to stop. Errors
after which the rest of the file is unreadable are raised.
"""

import csv
import gzip
import itertools
import json
import stat
import zlib
from codecs import getincrementaldecoder
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

from hart.data.reading import CONVERT_UTF_16, check_file, convert, open_bytes
from hart.data.tables.formats import LONGEST, MAX_ROW_BYTES, Format, RowError
from hart.errors import HartError, first_line
from hart.runtime.files import parse_json

Item = TypeVar("Item")

DELIMITERS = {"csv": ",", "tsv": "\t"}
CHUNK = 2**20
"""Bytes of a JSON array per read."""
PARQUET_ROWS = 256
"""Rows of a Parquet file per decoded batch."""


class Row(NamedTuple):
    """One row.

    Attributes:
        where: its place, for messages: "tickets.csv, line 12".
        content: its fields by name.
        end: in formats of lines, the position after it in the unpacked file; None if its last line has no line end, as
            after an interrupted write.
    """

    where: str
    content: dict[str, Any]
    end: int | None = None


@dataclass(frozen=True)
class Table:
    """Rows in a file or a stream.

    Attributes:
        source: a path, or a binary stream that is read once.
        format: format of the rows.
        name: name in messages.
        text_field: field name of the lines of a plain text.
    """

    source: Path | BinaryIO
    format: Format
    name: str
    text_field: str = "input"

    @property
    def again(self) -> bool:
        """Whether the rows can be read more than once: a regular file, neither a stream nor a pipe."""
        if not isinstance(self.source, Path):
            return False
        try:
            return stat.S_ISREG(self.source.stat().st_mode)
        except OSError:
            return True  # reading raises the error

    def queries(self, field: str | None) -> Iterator[tuple[Row, str] | RowError]:
        """The rows, each with the text of its query; a `RowError` in the place of a wrong row.

        Args:
            field: name of the query's field; None: `input`, or the only column of a CSV or TSV file.

        Raises:
            HartError: as in `rows`, or a table with columns lacks this one.
        """
        wanted = field or "input"
        for row in self.rows():
            if isinstance(row, RowError):
                yield row
                continue
            names = list(row.content)
            if self.format in DELIMITERS and field is None and len(names) == 1:
                wanted = names[0]
            if self.format in (*DELIMITERS, "parquet") and wanted not in row.content:
                raise HartError(
                    f"{self.name}: has no column {wanted!r}, its columns are {', '.join(map(repr, names))}; "
                    "name the one that holds the query with --input-field"
                )
            query = row.content.get(wanted)
            if not isinstance(query, str):
                need = "a text as" if self.format in (*DELIMITERS, "parquet") else "a JSON object with a text as"
                advice = "" if wanted in row.content else "; name the field that holds the query with --input-field"
                yield RowError(f'{row.where}: must be {need} "{wanted}"{advice}')
            elif len(query) > MAX_ROW_BYTES:
                yield RowError(f"{row.where}: is longer than {LONGEST}; cut it")
            else:
                yield row, query

    def rows(self) -> Iterator[Row | RowError]:
        """All rows; blank lines are skipped.

        Raises:
            HartError: the file is missing, damaged, or not in this format, or its header names a column twice.
        """
        if self.format == "parquet":
            yield from self._parquet()
            return
        read: Callable[[BinaryIO], Iterator[Row | RowError]] = {
            "jsonl": self._json_lines,
            "json": self._json_array,
            "txt": self._plain,
        }.get(self.format, self._delimited)
        if not isinstance(self.source, Path):
            yield from read(self.source)
            return
        if self.again:
            check_file(self.source)
        try:
            with open_bytes(self.source) as file:
                yield from read(file)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise HartError(f"{self.name}: damaged ({error}); make the archive again") from error
        except OSError as error:
            raise HartError(f"{self.name}: cannot be read ({error.strerror or error})") from error

    def _json_lines(self, file: BinaryIO) -> Iterator[Row | RowError]:
        return self._line_by_line(file, self._json_row)

    def _json_row(self, text: str, where: str, end: int | None = None) -> Row | RowError:
        try:
            content = parse_json(text, where, "a query")
        except HartError as error:
            return RowError(str(error))
        if not isinstance(content, dict):
            return RowError(f"{where}: must be a JSON object")
        return Row(where, content, end)

    def _plain(self, file: BinaryIO) -> Iterator[Row | RowError]:
        return self._line_by_line(file, self._plain_row)

    def _plain_row(self, line: str, where: str, end: int | None) -> Row:
        return Row(where, {self.text_field: line.rstrip("\r\n")}, end)

    def _line_by_line(
        self, file: BinaryIO, row: Callable[[str, str, int | None], Row | RowError]
    ) -> Iterator[Row | RowError]:
        """The row that `row` makes from each line, its place and its end."""
        lines = _Lines(file, self.name)
        for line in _attempts(lines):
            lines.begin()
            if isinstance(line, RowError):
                yield line
            elif line.strip():
                yield row(line, f"{self.name}, line {lines.number}", lines.end)

    def _delimited(self, file: BinaryIO) -> Iterator[Row | RowError]:
        """The rows of a CSV or TSV file after its header; fields quoted as in RFC 4180 may have line ends."""
        # The csv module's limit of 128 KiB holds for the whole process; `_Lines` has our own limit.
        csv.field_size_limit(max(csv.field_size_limit(), MAX_ROW_BYTES))
        lines = _Lines(file, self.name)
        records = _attempts(csv.reader(lines, delimiter=DELIMITERS[self.format], strict=True))
        names: list[str] | None = None
        for cells in records:
            first, last = lines.first, lines.number
            lines.begin()
            where = f"{self.name}, line {first}" if first == last else f"{self.name}, lines {first} to {last}"
            if isinstance(cells, csv.Error):
                # A lone carriage return, as "CSV (Macintosh)" of Excel ends lines.
                advice = "end lines as Windows or Unix do" if "new-line" in str(cells) else "check its quotes"
                cells = RowError(f"{where}: not {self.format.upper()} ({cells}); {advice}")
            if isinstance(cells, RowError):
                if names is None:  # without the header no row can be read
                    raise HartError(str(cells))
                yield cells
            elif not cells or (len(cells) == 1 and not cells[0].strip() and (names is None or len(names) > 1)):
                continue
            elif names is None:
                names = self._header(cells, where)
            elif len(cells) != len(names):
                yield RowError(f"{where}: has {len(cells)} fields, and the header has {len(names)}; check its quotes")
            else:
                yield Row(where, dict(zip(names, cells, strict=True)), lines.end)

    def _header(self, names: list[str], where: str) -> list[str]:
        self._refuse_twins(names, where)
        other = next((mark for mark in (";", "\t", ",", "|") if len(names) == 1 and mark in names[0]), None)
        if other is not None:
            raise HartError(
                f"{where}: the header is a single field that contains {other!r}; "
                f"save the table with {DELIMITERS[self.format]!r} between fields, or name its format (tsv for tabs)"
            )
        return names

    def _refuse_twins(self, names: Sequence[str], where: str) -> None:
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise HartError(f"{where}: two columns are called {twice!r}; rename one")

    def _json_array(self, file: BinaryIO) -> Iterator[Row | RowError]:
        """The elements of a JSON array, decoded one by one, with a part of the text in memory."""
        text = _Text(file, self.name)
        if text.peek() == "":
            return
        if text.peek() != "[":
            raise HartError(
                f"{self.name}: must be a JSON array of objects; name the format jsonl for one object per line"
            )
        text.at += 1
        if text.peek() == "]":
            text.at += 1
        else:
            for number in itertools.count(1):
                where = f"{self.name}, item {number}"
                text.peek()
                yield self._json_row(text.value(where), where)
                mark = text.peek()
                text.at += 1
                if mark == "]":
                    break
                if mark != ",":
                    raise HartError(f"{where}: the text after it is not JSON (a comma or ] is missing)")
        if text.peek():
            raise HartError(f"{self.name}: the text is not JSON (something follows the array)")

    def _parquet(self) -> Iterator[Row | RowError]:
        import pyarrow
        from pyarrow import parquet

        if not isinstance(self.source, Path) or not self.again:
            raise HartError(f"{self.name}: Parquet cannot be read from a stream; give a file")
        check_file(self.source)
        number = 0
        try:
            with parquet.ParquetFile(self.source, pre_buffer=False) as file:
                self._refuse_twins(file.schema_arrow.names, self.name)
                for batch in file.iter_batches(batch_size=PARQUET_ROWS):
                    for content in _contents(batch):
                        number += 1
                        yield Row(f"{self.name}, row {number}", content)
        except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
            raise HartError(
                f"{self.name}: not a Parquet file, or damaged after row {number} ({first_line(error)})"
            ) from error


def _contents(batch: Any) -> list[dict[str, Any]]:
    """The rows of an Arrow batch; times without a Python type (after the year 9999, nanoseconds) become text."""
    import pyarrow

    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
        return rows
    except (OverflowError, ValueError):
        columns = [
            column.cast(pyarrow.string()) if pyarrow.types.is_temporal(column.type) else column
            for column in batch.columns
        ]
        rows = pyarrow.RecordBatch.from_arrays(columns, names=batch.schema.names).to_pylist()
        return rows


def chunks(stream: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of up to `size` items of a stream; items before an error are yielded before it is raised."""
    part: list[Item] = []
    try:
        for item in stream:
            part.append(item)
            if len(part) == size:
                yield part
                part = []
    except HartError:
        if part:
            yield part
        raise
    if part:
        yield part


class _Lines:
    """The lines of a text in UTF-8; no line, and no row of lines, may be longer than `MAX_ROW_BYTES`.

    Attributes:
        number: number of the last line, from 1.
        first: number of the first line since `begin`, that of the current row.
        offset: bytes up to the end of the last line.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file = file
        self._name = name
        self._ended = True
        self._begun = 0
        self.number = self.offset = 0
        self.first = 1

    def begin(self) -> None:
        """Begin a new row with the next line."""
        self.first = self.number + 1
        self._begun = self.offset

    @property
    def end(self) -> int | None:
        return self.offset if self._ended else None

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self._file.readline(MAX_ROW_BYTES + 1)
        if not line:
            raise StopIteration
        self.number += 1
        self.offset += len(line)
        rest = line
        while not rest.endswith(b"\n") and len(line) > MAX_ROW_BYTES and (rest := self._file.readline(CHUNK)):
            self.offset += len(rest)
        self._ended = rest.endswith(b"\n")
        where = f"{self._name}, line {self.number}"
        if len(line) > MAX_ROW_BYTES:
            raise RowError(f"{where}: is longer than {LONGEST}; cut it, or check the file's line ends")
        if self.offset - self._begun > MAX_ROW_BYTES:
            raise RowError(
                f"{self._name}, lines {self.first} to {self.number}: one row of more than {LONGEST}; "
                "is a quote in its first line left open?"
            )
        try:
            text = line.decode("utf-8-sig" if self.number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise RowError(f"{where}: not UTF-8; {convert(line)}") from None
        if "\0" in text:
            raise RowError(f"{where}: contains zero bytes and is not UTF-8; {CONVERT_UTF_16}")
        return text


def _attempts(records: Any) -> Iterator[Any]:
    """The items of an iterator; its `RowError`s and `csv.Error`s are yielded in their place instead of raised."""
    while True:
        try:
            yield next(records)
        except StopIteration:
            return
        except (RowError, csv.Error) as error:
            yield error


class _Text:
    """A text in UTF-8 with only the current piece in memory; `at` is the position in this piece."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file = file
        self._name = name
        self._decoder = getincrementaldecoder("utf-8-sig")()
        self._scan = json.JSONDecoder().raw_decode
        self._piece = ""
        self._over = False
        self.at = 0

    def peek(self) -> str:
        """The next character that is not white space; empty at the end."""
        while True:
            while self.at < len(self._piece):
                if self._piece[self.at] not in " \t\r\n":
                    return self._piece[self.at]
                self.at += 1
            if not self._more():
                return ""

    def value(self, where: str) -> str:
        """The text of the JSON value that begins at `at`, which moves to its end.

        Raises:
            HartError: it is not JSON, so that the next value cannot be found, or it is longer than `MAX_ROW_BYTES`.
        """
        while True:
            try:
                _, end = self._scan(self._piece, self.at)
            except json.JSONDecodeError as error:
                # An incomplete value fails at the end of the piece, or at the opening quote of its last text.
                cut = error.msg.startswith("Unterminated string") or error.pos > len(self._piece) - 16
                if cut and len(self._piece) - self.at <= MAX_ROW_BYTES and self._more():
                    continue
                if len(self._piece) - self.at > MAX_ROW_BYTES:
                    raise HartError(f"{where}: is longer than {LONGEST}; cut it, or check its quotes") from None
                raise HartError(f"{where}: the text is not JSON ({error.msg})") from None
            except (ValueError, RecursionError):
                parse_json(self._piece[self.at :], where, "a query")  # raises an error with the cause
                raise
            if end < len(self._piece) or not self._more():  # a number may continue in the next piece
                break
        text = self._piece[self.at : end]
        self.at = end
        return text

    def _more(self) -> bool:
        """Read the next piece and drop the text before `at`; returns False at the end."""
        while not self._over:
            read = self._file.read(CHUNK)
            self._over = not read
            try:
                text = self._decoder.decode(read, final=self._over)
            except UnicodeDecodeError:
                raise HartError(f"{self._name}: the text is not UTF-8; {convert(read)}") from None
            if text:
                self._piece, self.at = self._piece[self.at :] + text, 0
                return True
        return False
