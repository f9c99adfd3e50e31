"""Output of the figures as a table, and as a file to which later runs add."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from hart.benchmarks import Figure, Settings
from hart.benchmarks.measuring import environment
from hart.errors import HartError
from hart.runtime.files import read_json, write_json


def table(figures: Sequence[Figure]) -> Table:
    """A table with one row per figure: value, quartiles of its repeats, target, whether it is met, and limit."""
    shown = Table()
    for column in ("what", "against", "measured", "target", "", "limit"):
        shown.add_column(column, overflow="fold", justify="right" if column in ("measured", "target") else "left")
    for figure in figures:
        target = "" if figure.target is None else f"{figure.target[0]} {figure.target[1]:g} {figure.unit}"
        met = {None: "", True: "met", False: "missed"}[figure.met]
        value = f"{figure.value:.2f} {figure.unit}"
        if figure.quartiles is not None:
            value += "\n{:.2f} to {:.2f}".format(*figure.quartiles)
        shown.add_row(*map(Text, (figure.name, figure.against, value, target, met, figure.limit)))
    return shown


def read(path: Path) -> dict[str, dict[str, Any]]:
    """The figures of a file by name; empty if there is no such file.

    Raises:
        HartError: the file has other content.
    """
    if not path.exists():
        return {}
    try:
        return dict(read_json(path, "figures")["figures"])
    except (HartError, ValueError, KeyError, TypeError) as error:
        raise HartError(f"{path}: is not a file of hart bench; give another --output") from error


def merge(
    path: Path, known: Mapping[str, Any], figures: Sequence[Figure], settings: Settings, command: str
) -> dict[str, Any]:
    """Write the known and the new figures, which replace those of the same name, and return all of them.

    Each figure has the command, settings and environment of its measurement.
    """
    about = {"command": command, "settings": settings.to_dict(), "environment": environment(settings.device)}
    every = {**known, **{figure.name: {**figure.to_dict(), **about} for figure in figures}}
    write_json(path, {"figures": every})
    return every
