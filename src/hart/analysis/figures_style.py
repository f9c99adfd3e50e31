"""The style of all figures, and the files of a figure and its numbers.

Sizes are those of a paper's column and page; colours are those of Okabe and Ito, which colour-blind readers can
distinguish. Text in SVG stays text. The same input gives identical files.
"""

import csv
import io
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from hart.runtime.files import write_bytes, write_text

COLUMN, PAGE = 3.4, 7.0
"""Widths of a column and of a page of a paper, in inches."""
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASHES = ("-", "--", ":", "-.")
SHADES = "viridis"
"""Colour map for ordered values and values from 0."""
SIGNED = "RdBu_r"
"""Colour map for values from −1 to 1."""
FORMATS = ("png", "svg")
DOTS_PER_INCH = 300

STYLE: Any = {
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 8,
    "figure.dpi": 100,
    "font.family": "sans-serif",
    "font.size": 8,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "savefig.dpi": DOTS_PER_INCH,
    "svg.fonttype": "none",
    "svg.hashsalt": "hart",
    "xtick.labelsize": 7,
    "xtick.major.width": 0.6,
    "ytick.labelsize": 7,
    "ytick.major.width": 0.6,
}


class NotDrawable(Exception):
    """The given runs cannot give a figure; the message is the reason, in one line."""


@dataclass(frozen=True)
class Numbers:
    """A table of the numbers in a figure.

    Attributes:
        columns: names of the columns, with units.
        rows: rows of the table, one value per column.
        about: sentences at the head of the file that explain the numbers.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    about: Sequence[str] = ()

    def to_csv(self) -> str:
        """The table as CSV (RFC 4180) after comment lines (`pandas.read_csv(path, comment="#")`), with exact floats."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows([_plain(value) for value in row] for row in self.rows)
        head = [line for sentence in self.about for line in textwrap.wrap(sentence, 110)]
        return "".join(f"# {line}\n" for line in head) + text.getvalue()


@dataclass(frozen=True)
class Drawing:
    """A figure that is not written yet.

    Attributes:
        tables: "" → the numbers that are drawn; other keys → further tables.
        remarks: remarks for readers, written below the figure, into its tables and to the terminal.
    """

    figure: Figure
    tables: Mapping[str, Numbers]
    remarks: Sequence[str] = ()


@contextmanager
def styled() -> Iterator[None]:
    """Context in which figures have the style of this module, whatever the user's matplotlibrc says."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def looks(labels: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Label → colour and dashes, the same in every figure of a command; all differ for 28 labels."""
    return {
        label: {"color": PALETTE[at % len(PALETTE)], "linestyle": DASHES[at // len(PALETTE) % len(DASHES)]}
        for at, label in enumerate(labels)
    }


def panels(rows: int, columns: int, *, width: float, height: float, **options: Any) -> tuple[Figure, np.ndarray]:
    """A figure and its axes `[rows, columns]`; `width` and `height` in inches, of the whole."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def heat_map(axes: Axes, values: np.ndarray, *, numbers: bool, **options: Any) -> Any:
    """Draw a square matrix with its first row on top, layers numbered from 1, and values in the cells if they are few.

    NaN cells stay empty.
    """
    size = len(values)
    image = axes.imshow(values, **options)
    step = 1 if size <= 12 else 4 if size <= 24 else 8
    ticks = [0, *range(step - 1, size, step)] if step > 1 else list(range(size))
    names = [str(tick + 1) for tick in ticks]
    axes.set_xticks(ticks, names)
    axes.set_yticks(ticks, names)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=2)
    if numbers and size <= 8:
        for (row, column), value in np.ndenumerate(values):
            if np.isnan(value):
                continue
            red, green, blue, _ = image.cmap(image.norm(value))
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
            text = f"{value:.2f}".replace("0.", ".", 1) if abs(value) < 0.995 else f"{value:.0f}"
            axes.text(column, row, text, ha="center", va="center", fontsize=4.5, color="white" if dark else "black")
    return image


def log_axis(axes: Axes) -> None:
    """A logarithmic y axis with plain numbers at 1, 2 and 5 times the powers of ten."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def save(drawing: Drawing, name: str, folder: Path, formats: Sequence[str]) -> list[Path]:
    """Write NAME.png, NAME.svg, NAME.csv and NAME_KEY.csv, each whole; returns their paths.

    Raises:
        HartError: a file cannot be written.
    """
    if drawing.remarks:
        width = drawing.figure.get_figwidth()
        lines = textwrap.wrap(". ".join(each[0].upper() + each[1:] for each in drawing.remarks) + ".", int(22 * width))
        drawing.figure.supxlabel("\n".join(lines), fontsize=5.5, color="0.35", x=0.01, ha="left")
    paths = []
    for form in formats:
        content = io.BytesIO()
        metadata = {"Date": None} if form == "svg" else {}
        drawing.figure.savefig(content, format=form, metadata={"Title": name, **metadata})
        paths.append(folder / f"{name}.{form}")
        write_bytes(paths[-1], content.getvalue())
    for key, table in drawing.tables.items():
        paths.append(folder / (f"{name}_{key}.csv" if key else f"{name}.csv"))
        about = [*table.about, *(f"{remark}." for remark in drawing.remarks)]
        write_text(paths[-1], Numbers(table.columns, table.rows, about).to_csv())
    return paths


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
