"""What commands print. Neither a terminal that cannot show a character nor a reader that went away costs a result.

A command saves first and prints then, through these functions, and works on when nobody reads
(`hart evaluate … | head`): only what had to be printed is lost, and the exit status says so. What goes nowhere but to
standard output (the answers of `hart predict` without a file) is written by `answer`, which stops the command instead.
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
"""Columns that tables take on a narrower terminal if their numbers need them; torn lines say less than wrapped ones."""
NAME = 24
"""Columns of a table's first column that are enough to tell its rows apart."""

_left = False
"""Whether the reader of standard output has gone away in this command."""


def prepare() -> None:
    """Make standard output and standard error take every text: what they cannot show comes as `\\u65e5`."""
    global _left
    _left = False
    if sys.stdout is None:  # closed by the caller: a file opened next must not get its number
        sys.stdout = open(os.devnull, "w", encoding="utf-8")
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def finish() -> int:
    """Empty standard output; the exit status of a command that has otherwise done all: 0, 1 without a reader, 2."""
    try:
        answer("")
    except BrokenPipeError:
        _leave()
    except HartError as error:
        tell(f"hart: error: {error}")
        return 2
    return int(_left)


def say(text: str, end: str = "\n") -> None:
    """Print a line if someone still reads.

    Raises:
        HartError: standard output cannot be written (a full disk).
    """
    try:
        answer(text + end)
    except BrokenPipeError:
        _leave()


def answer(text: str) -> None:
    """Print a text as it is, at once.

    Raises:
        BrokenPipeError: nobody reads any more.
        HartError: as for `say`.
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
    """Print a line on standard error, whose absence is no reason to stop."""
    try:
        print(line, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        with suppress(OSError, ValueError):  # no file of the system, or closed
            _to_nowhere(sys.stderr)


def show(*tables: "Table") -> None:
    """Print tables; on a narrow terminal as wide as their numbers need.

    Raises:
        HartError: as for `say`.
    """
    for table in tables:
        console(min(READABLE, _needs(table))).print(table)


def console(least: int = READABLE // 2) -> "Console":
    """A console on standard output that goes on without a reader, of at least so many columns."""
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

    # Some terminals report a width of 0, at which nothing at all would be printed.
    return Printer(width=max(least, Console().width))


def _needs(table: "Table") -> int:
    """Columns of a terminal that show all but the first column of a table whole."""
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
    """What is still to be printed, and what waits in the buffer, vanishes without an error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
