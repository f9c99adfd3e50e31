"""Printing of commands' output, robust against terminals that cannot show a character and readers that have gone.

A command saves its results before it prints them through these functions, and continues if the reader has gone
(`hart evaluate … | head`): only printed output is lost, and the exit status says so. Results that only go to standard
output (the answers of `hart predict` without a file) are written by `answer`, which stops the command instead.
"""

import io
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TextIO

from hart.errors import HartError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

READABLE = 80
"""Widest table on a narrower terminal: lines that the terminal wraps are clearer than a table with broken numbers."""
NAME = 24
"""Width of a table's first column that suffices to distinguish its rows."""

_left = False
"""Whether the reader of standard output has gone."""


def prepare() -> None:
    """Let standard output and standard error accept every text: characters they cannot show appear as `\\u65e5`."""
    global _left
    _left = False
    if sys.stdout is None:  # closed by the caller: the next opened file must not get its descriptor
        sys.stdout = open(os.devnull, "w", encoding="utf-8")
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def finish() -> int:
    """Flush standard output; returns the exit status of a successful command: 0, 1 without a reader, 2 on an error."""
    try:
        answer("")
    except BrokenPipeError:
        _leave()
    except HartError as error:
        tell(f"hart: error: {error}")
        return 2
    return int(_left)


def say(text: str, end: str = "\n") -> None:
    """Print a line unless the reader of standard output has gone.

    Raises:
        HartError: standard output cannot be written (a full disk).
    """
    try:
        answer(text + end)
    except BrokenPipeError:
        _leave()


def answer(text: str) -> None:
    """Print a text unchanged and flush it.

    Raises:
        BrokenPipeError: the reader has gone.
        HartError: as in `say`.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        _to_nowhere(sys.stdout)
        raise HartError(f"standard output: cannot be written ({error.strerror})") from error


def tell(line: str) -> None:
    """Print a line on standard error; a missing reader is ignored."""
    try:
        print(line, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        with suppress(OSError, ValueError):  # not a file, or closed
            _to_nowhere(sys.stderr)


def show(*tables: "Table") -> None:
    """Print tables; on a narrow terminal in the width that their numbers need.

    Raises:
        HartError: as in `say`.
    """
    for table in tables:
        console(min(READABLE, _needs(table))).print(table)


def console(least: int = READABLE // 2) -> "Console":
    """A console on standard output with at least `least` columns, which continues without a reader."""
    from rich.console import Console

    class Printer(Console):
        def print(self, *objects: Any, **options: Any) -> None:
            try:
                super().print(*objects, **options)
            except OSError as error:
                _to_nowhere(sys.stdout)
                raise HartError(f"standard output: cannot be written ({error.strerror})") from error

        def on_broken_pipe(self) -> None:
            self.quiet = True
            _leave()

    # Some terminals report a width of 0, with which nothing would be printed.
    return Printer(width=max(least, Console().width))


def _needs(table: "Table") -> int:
    """Terminal width that shows all columns of a table completely, except for a first column longer than `NAME`."""
    from rich.cells import cell_len

    def longest(cells: Iterable[Any]) -> int:
        return max(cell_len(str(cell)) for cell in cells)

    first, *others = ([column.header, *column.cells] for column in table.columns)
    return min(NAME, longest(first)) + 4 + sum(longest(cells) + 3 for cells in others)


def _leave() -> None:
    global _left
    _left = True
    _to_nowhere(sys.stdout)


def _to_nowhere(stream: TextIO) -> None:
    """Redirect a stream to the null device, so that buffered and later output is dropped without an error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
