"""The charts of a report, as SVG in the colours of the page: scores, differences, loss curves."""

import io
import re
from collections.abc import Sequence
from html import escape
from statistics import fmean
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from hart.analysis.report_runs import StudyRow
from hart.analysis.report_tables import CollectionReport
from hart.evaluation.words import METRIC_NAMES

# Placeholders for the colours of the page, which has a light and a dark theme.
_INK, _QUIET, _ACCENT, _SECOND = "#010203", "#040506", "#070809", "#0a0b0c"
_OF_THE_PAGE = {_INK: "currentColor", _QUIET: "var(--quiet)", _ACCENT: "var(--accent)", _SECOND: "var(--second)"}
_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "hart",  # ids are then equal in every run, and so are the files
    "font.size": 10,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _QUIET,
    "xtick.color": _QUIET,
    "ytick.color": _QUIET,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
POINTS = 120
"""The most points of a curve; more would not be visible."""


def scores(report: CollectionReport) -> str:
    """Chart of the scores: a line per row of the study, with a dot per seed and a mark at the mean."""
    values = {row.name: row.values(report.metric) for row in report.rows}
    with matplotlib.rc_context(_STYLE):
        figure, axes = _rows_figure(list(values))
        for place, own in enumerate(values.values()):
            axes.plot(own, [place] * len(own), "o", color=_ACCENT, alpha=0.6, markersize=5, markeredgewidth=0)
            if len(own) > 1:
                axes.plot([fmean(own)] * 2, [place - 0.3, place + 0.3], color=_INK, linewidth=1.6)
        axes.set_xlabel(f"{METRIC_NAMES[report.metric]}, %")
        return _svg(figure, f"{METRIC_NAMES[report.metric]} of each row and seed")


def differences(report: CollectionReport) -> str:
    """Chart of the differences with both intervals: over seeds (thick), over seeds and tasks (thin)."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _rows_figure(list(report.differences))
        axes.axvline(0, color=_QUIET, linewidth=1)
        for place, found in enumerate(report.differences.values()):
            if found.over_both:
                axes.plot(found.over_both, [place + 0.16] * 2, color=_SECOND, linewidth=1.5)
            if found.over_seeds:
                axes.plot(found.over_seeds, [place - 0.16] * 2, color=_ACCENT, linewidth=3.5, solid_capstyle="butt")
            axes.plot([found.mean], [place], "o", color=_INK, markersize=4)
        axes.set_xlabel(f"points of {METRIC_NAMES[report.metric]} above {report.against.name}")
        return _svg(figure, f"Differences to {report.against.name} with their intervals")


def losses(row: StudyRow, against: StudyRow, highest: float) -> str:
    """Chart of a row's prediction loss, mean over seeds, with that of the row that it is compared with behind it."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(3.4, 2.1), layout="constrained")
        axes = figure.add_subplot()
        if row is not against:
            axes.plot(*curve(against), color=_QUIET, linewidth=1)
        axes.plot(*curve(row), color=_ACCENT, linewidth=1.5)
        axes.set(xlim=(0, None), ylim=(0, highest), xlabel="step", ylabel="loss")
        return _svg(figure, f"Prediction loss of {row.name}")


def curve(row: StudyRow) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Steps and losses of a row: means over seeds within at most `POINTS` intervals of steps."""
    pairs = [(each["step"], each["prediction_loss"]) for run in row.runs for each in run.metrics]
    steps, values = np.array(pairs, dtype=float).reshape(-1, 2).T
    finite = np.isfinite(values)  # a run that diverged has losses that are not finite
    steps, values = steps[finite], values[finite]
    if not values.size:
        return steps, values
    edges = np.linspace(0, steps.max(), POINTS + 1)
    place = np.clip(np.searchsorted(edges, steps, side="left") - 1, 0, POINTS - 1)
    count = np.bincount(place, minlength=POINTS)
    filled = count > 0
    mean_step, mean_value = (np.bincount(place, each, POINTS)[filled] / count[filled] for each in (steps, values))
    return mean_step, mean_value


def highest_loss(rows: Sequence[StudyRow]) -> float:
    """Upper end of the axis of all loss charts: above nearly all values, but not stretched by single spikes."""
    values = np.concatenate([curve(row)[1] for row in rows] or [np.empty(0)])
    return float(np.quantile(values, 0.98) * 1.1) if values.size else 1.0


def _rows_figure(names: Sequence[str]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.4, 0.8 + 0.24 * len(names)), layout="constrained")
    axes = figure.add_subplot()
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=_QUIET, alpha=0.25)
    axes.set_axisbelow(True)
    return figure, axes


def _svg(figure: Figure, label: str) -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for stands, colour in _OF_THE_PAGE.items():
        text = text.replace(stands, colour)
    text = text.replace("*{stroke", "figure svg *{stroke")  # in a page the style of one SVG would apply everywhere
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1)
