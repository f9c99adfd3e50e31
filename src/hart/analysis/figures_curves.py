"""Losses over training: with and without layer-by-layer generation (Fig. 3) or consistency (Fig. 4), L_cst (Fig. 5)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hart.analysis import figures_spikes
from hart.analysis.figures_runs import CONSISTENCY_FIELDS, SCHEME_FIELDS, Curves, Group, differing
from hart.analysis.figures_spikes import Spikes, find_spikes, running_median
from hart.analysis.figures_style import COLUMN, PAGE, Drawing, NotDrawable, Numbers, log_axis, looks, panels

STEPS, NATS = "optimizer step", "prediction loss\n(nats per target token)"

HEIGHT = 2.4
"""Height in inches of a figure with one row of panels."""
INSIDE = 4
"""The most lines whose legend fits within the axes."""


@dataclass(frozen=True)
class Series:
    """One loss of the runs of a group, at the steps that all of them have.

    Attributes:
        label: label of the group.
        seeds: seeds of its runs.
        steps: optimizer steps, int64 `[x]`.
        values: losses, float64 `[runs, x]`.
        window: number of steps over which each value is a mean.
    """

    label: str
    seeds: tuple[int, ...]
    steps: np.ndarray
    values: np.ndarray
    window: int

    @property
    def smoothing(self) -> int:
        """Width of the running median in values: as many as span the window of spikes, at least 5."""
        return max(5, figures_spikes.WINDOW // self.window | 1)

    @property
    def drawn_over(self) -> int:
        """Width of the running median that is drawn, in values; 1 for means over steps, which are smooth already."""
        return self.smoothing if self.window == 1 else 1


def all_series(groups: Sequence[Group], loss: str) -> tuple[list[Series], list[str]]:
    """One loss of all groups that have it, and remarks about the numbers.

    If any run has only means over steps, the means of all runs are used, so that curves are comparable.
    """
    sources = [source for group in groups for source in group.sources]
    without = sorted({source.name for source in sources if source.each_step is None and source.means is not None})
    lists = [(group, _curves(group, means=bool(without))) for group in groups]
    made = [_series(group, curves, loss) for group, curves in lists if curves]
    remarks = []
    if without:
        windows = sorted({series.window for series in made})
        steps = " or ".join(map(str, windows))
        remarks.append(
            f"values are means over {steps} steps ({', '.join(without)} without steps.csv): spikes are hidden"
        )
    numbers = [len(series.seeds) for series in made]
    if max(numbers, default=0) > 1:
        remarks.append("lines are means over seeds, bands reach from the lowest to the highest")
    if min(numbers, default=2) == 1:
        labels = ", ".join(series.label for series in made if len(series.seeds) == 1)
        remarks.append("one seed each, so no band" if max(numbers) == 1 else f"one seed, so no band: {labels}")
    return made, remarks


def _curves(group: Group, *, means: bool) -> list[tuple[int, Curves]]:
    found = [(source.seed or 0, source.means if means else source.each_step) for source in group.sources]
    return [(seed, curves) for seed, curves in found if curves is not None]


def _series(group: Group, curves: Sequence[tuple[int, Curves]], loss: str) -> Series:
    steps = curves[0][1].steps
    for _, each in curves[1:]:
        steps = np.intersect1d(steps, each.steps)
    values = [each.losses[loss][np.searchsorted(each.steps, steps)] for _, each in curves]
    window = max(each.window for _, each in curves)
    return Series(group.label, tuple(seed for seed, _ in curves), steps, np.array(values), window)


def _with_runs(groups: Sequence[Group]) -> list[Group]:
    having = [group for group in groups if any(source.means or source.each_step for source in group.sources)]
    if not having:
        raise NotDrawable("needs runs with metrics.jsonl or steps.csv")
    return having


def _families(groups: Sequence[Group], but: Sequence[str]) -> list[list[Group]]:
    """Lists of groups that differ at most in the fields `but`."""
    together: dict[str, list[Group]] = {}
    for group in groups:
        key = group.alike(*but)
        if key is not None:
            together.setdefault(key, []).append(group)
    return list(together.values())


def _nearest(ones: Sequence[Group], others: Sequence[Group], but: Sequence[str]) -> str:
    """The fields in which the two most similar groups differ, as a phrase: the reason why none can be compared."""
    pairs = [(differing(one, other, but), one.label, other.label) for one in ones for other in others]
    if not pairs:
        return ""
    fields, one, other = min(pairs, key=lambda pair: len(pair[0]))
    return f" ({one} and {other} differ in {', '.join(fields)})"


def _scheme(group: Group) -> str:
    assert group.config is not None
    return str(group.config.model.scheme["name"]) if group.config.model.weights == "generated" else ""


def fig3_autoregression(groups: Sequence[Group]) -> Drawing:
    """Prediction loss of schemes with a state per layer and of the scheme with one state for all layers (Fig. 3).

    It compares runs that differ only in `model.scheme`, on a logarithmic axis. Lines are means over seeds; if the loss
    of each step is known, they are means of running medians, with the losses themselves as thin lines.

    Raises:
        NotDrawable: there are no two such runs.
    """
    runs = _with_runs(groups)
    families = [
        family
        for family in _families(runs, SCHEME_FIELDS)
        if {"shared"} < {_scheme(group) for group in family if _scheme(group)}
    ]
    if not families:
        shared = [group for group in runs if _scheme(group) == "shared"]
        others = [group for group in runs if _scheme(group) not in ("shared", "")]
        why = _nearest(shared, others, SCHEME_FIELDS)
        raise NotDrawable(f"needs a run with scheme shared and one with another, alike in all other fields{why}")
    members = [group for family in families for group in family]
    made, remarks = all_series(members, "prediction_loss")
    width = COLUMN if len(families) == 1 else PAGE
    figure, axes = panels(1, len(families), width=width, height=HEIGHT, sharey=True)
    for panel, family in zip(axes[0], families, strict=True):
        labels = {group.label for group in family}
        _lines(panel, [series for series in made if series.label in labels], groups)
        panel.set(xlabel=STEPS)
        log_axis(panel)
        _legend(figure, panel)
    axes[0, 0].set_ylabel(NATS)
    return Drawing(figure, {"": _table(made, "prediction_loss")}, remarks)


def fig5_consistency_loss(groups: Sequence[Group]) -> Drawing:
    """The consistency loss L_cst of each run, also of those with α = 0, on a logarithmic axis (Fig. 5, left).

    Each value of `training.pairing` has its own panel, since their losses are not comparable. The first step, whose
    loss is 0 by definition, is left out.

    Raises:
        NotDrawable: no run has layer states.
    """
    runs = [group for group in _with_runs(groups) if _scheme(group)]
    made, remarks = all_series(runs, "consistency_loss")
    made = [series for series in made if (series.values > 0).any()]
    if not made:
        raise NotDrawable("needs runs that generate weights: others have no states")
    pairing = {group.label: group.config.training.pairing for group in runs if group.config is not None}
    kinds = sorted({pairing[series.label] for series in made})
    figure, axes = panels(1, len(kinds), width=COLUMN if len(kinds) == 1 else PAGE, height=HEIGHT, sharey=True)
    for panel, kind in zip(axes[0], kinds, strict=True):
        _lines(panel, [series for series in made if pairing[series.label] == kind], groups, positive=True)
        against = "same row one step before" if kind == "slots" else "newest states of the same task"
        panel.set(xlabel=f"{STEPS}\npairing {kind}: against the {against}")
        log_axis(panel)
        _legend(figure, panel)
    axes[0, 0].set_ylabel(r"$\mathcal{L}_{\mathrm{cst}}$ (mean square)")
    return Drawing(figure, {"": _table(made, "consistency_loss", positive=True)}, remarks)


def _legend(figure: Figure, axes: Axes) -> None:
    """Put the legend into the axes, or above them if there are too many lines."""
    lines = len(axes.get_legend_handles_labels()[1])
    if lines <= INSIDE:
        axes.legend()
        return
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    figure.set_figheight(max(figure.get_figheight(), HEIGHT + 0.08 * lines))


def _lines(axes: Axes, made: Sequence[Series], groups: Sequence[Group], *, positive: bool = False) -> None:
    look = looks([group.label for group in groups])
    for series in made:
        colour = look[series.label]["color"]
        values, smooth = _smoothed(series, positive)
        shown = series.steps > int(positive)
        steps, mean = series.steps[shown], smooth.mean(axis=0)[shown]
        if series.window == 1:
            axes.plot(steps, values.mean(axis=0)[shown], color=colour, linewidth=0.3, alpha=0.35)
        if len(series.seeds) > 1:
            low, high = smooth.min(axis=0)[shown], smooth.max(axis=0)[shown]
            axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
        count = len(series.seeds)
        label = _with_alpha(series.label, groups) if positive else series.label
        label += f", {count} seeds" if count > 1 else ""
        axes.plot(steps, mean, label=label, **look[series.label])


def _smoothed(series: Series, positive: bool) -> tuple[np.ndarray, np.ndarray]:
    """The values and their running median; with `positive`, values of 0 or less are NaN."""
    values = np.where(series.values > 0, series.values, np.nan) if positive else series.values
    return values, running_median(values, series.drawn_over)


def _table(made: Sequence[Series], loss: str, *, positive: bool = False) -> Numbers:
    """The drawn numbers, one row per run and step."""
    unit = "nats_per_token" if loss == "prediction_loss" else "mean_square"
    rows: list[list[Any]] = []
    for series in made:
        shown = series.steps > int(positive)
        drawn = zip(series.seeds, *(each[:, shown] for each in _smoothed(series, positive)), strict=True)
        for seed, values, median in drawn:
            rows += [
                [series.label, seed, *each]
                for each in zip(series.steps[shown].tolist(), values.tolist(), median.tolist(), strict=True)
            ]
    widths = " or ".join(sorted({str(series.drawn_over) for series in made}))
    about = [f"{loss} of each run over optimizer steps; running_median: over {widths} values, centred."]
    return Numbers(["run", "seed", "step", f"{loss}_{unit}", "running_median"], rows, about)


def fig4_consistency(groups: Sequence[Group]) -> Drawing:
    """Prediction loss with and without the consistency loss, its spikes and its variance (Fig. 4).

    It compares runs that differ only in α and the other fields of the consistency loss (`CONSISTENCY_FIELDS`). Spikes
    and variance are those of `hart.analysis.figures_spikes`, over the steps that all runs have; numbers in the figure
    are means over seeds.

    Raises:
        NotDrawable: there are no two such runs.
    """
    runs = [group for group in _with_runs(groups) if _scheme(group)]
    families = [
        family
        for family in _families(runs, CONSISTENCY_FIELDS)
        if {bool(group.config.training.alpha) for group in family if group.config is not None} == {True, False}
    ]
    if not families:
        parts: tuple[list[Group], list[Group]] = ([], [])
        for group in runs:
            parts[bool(group.config and group.config.training.alpha)].append(group)
        why = _nearest(*parts, CONSISTENCY_FIELDS)
        raise NotDrawable(f"needs a run with training.alpha 0 and one with more, alike in all other fields{why}")
    figure, axes = panels(2, len(families), width=COLUMN if len(families) == 1 else PAGE, height=4.4, sharex="col")
    curves: list[list[Any]] = []
    numbers: list[list[Any]] = []
    remarks: list[str] = []
    for column, family in enumerate(families):
        made, said = all_series(family, "prediction_loss")
        said = [each for each in said if "band" not in each]
        last = {int(series.steps[-1]) for series in made}
        if len(last) > 1:
            said.append(f"compared up to step {min(last)}, which all have reached")
        whose = f"{', '.join(series.label for series in made)}: " if len(families) > 1 else ""
        remarks += [whose + each for each in said]
        _with_and_without(axes[:, column], made, groups, curves, numbers)
    axes[0, 0].set_ylabel(NATS)
    axes[1, 0].set_ylabel("residual\n(nats per target token)")
    window, counted = figures_spikes.WINDOW, sorted({str(row[2]) for row in numbers})
    remarks.append(
        f"residual: loss − running median of {window} steps; ▾ spikes: residuals of more than "
        f"{figures_spikes.THRESHOLD:g} robust deviations, among {' or '.join(counted)} values a run; "
        f"the shaded first {figures_spikes.SKIPPED:.0%} is not counted"
    )
    if len(numbers) > len({row[0] for row in numbers}):
        remarks.append("numbers are means over seeds")
    columns = ["run", "seed", "step", "prediction_loss_nats_per_token", "trend", "residual", "deviation"]
    head = [
        "run",
        "seed",
        "values",
        "steps_per_value",
        "spikes",
        "spikes_per_1000_values",
        "variance",
        "relative_variance",
    ]
    tables = {
        "": Numbers([*columns, "counted", "spike"], curves, figures_spikes.DEFINITIONS),
        "spikes": Numbers(head, numbers, [*figures_spikes.DEFINITIONS, "relative_variance: of residual / trend."]),
    }
    return Drawing(figure, tables, remarks)


def _with_and_without(
    axes: np.ndarray,
    made: Sequence[Series],
    groups: Sequence[Group],
    curves: list[list[Any]],
    numbers: list[list[Any]],
) -> None:
    """Draw two panels of runs that differ only in consistency; returns the rows of the tables."""
    last = min(int(series.steps[-1]) for series in made)
    upper, lower = axes
    look = looks([group.label for group in groups])
    taken: list[tuple[Series, np.ndarray, list[Spikes]]] = []
    for series in made:
        shown = series.steps <= last
        steps, losses = series.steps[shown], series.values[:, shown]
        found = [find_spikes(values, window=series.smoothing) for values in losses]
        taken.append((series, losses, found))
        for seed, values, each in zip(series.seeds, losses, found, strict=True):
            parts = (steps, values, each.trend, each.residual, each.deviation)
            flags = (each.counted.astype(int), each.spikes.astype(int))
            curves += [[series.label, seed, *row] for row in zip(*(p.tolist() for p in (*parts, *flags)), strict=True)]
            rate = 1000 * each.count / each.steps if each.steps else float("nan")
            measures = (each.count, rate, each.variance, each.relative_variance)
            numbers.append([series.label, seed, each.steps, series.window, *measures])
        upper.plot([], [], color=look[series.label]["color"], label=_said(series, found, groups))
    # The calmer curve is drawn last, or it would be hidden.
    for series, losses, found in sorted(taken, key=lambda each: -each[2][0].variance):
        colour, steps = look[series.label]["color"], series.steps[series.steps <= last]
        for values, each in zip(losses, found, strict=True):
            upper.plot(steps, values, color=colour, linewidth=0.4, alpha=0.7)
            lower.plot(steps, each.residual, color=colour, linewidth=0.4, alpha=0.7)
            lower.plot(steps[each.spikes], each.residual[each.spikes], "v", color=colour, markersize=2.5)
    for panel in axes:
        panel.axvspan(float(made[0].steps[0]), figures_spikes.SKIPPED * last, color="0.93", linewidth=0, zorder=0)
    counted = np.concatenate([each.residual[each.counted] for _, _, found in taken for each in found])
    if counted.size:
        lower.set_ylim(1.15 * counted.min(), 1.15 * counted.max())
    log_axis(upper)
    upper.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2)
    lower.set(xlabel=STEPS)
    lower.axhline(0, color="0.6", linewidth=0.5, zorder=0)


def _said(series: Series, found: Sequence[Spikes], groups: Sequence[Group]) -> str:
    count = np.mean([each.count for each in found])
    variance = np.mean([each.variance for each in found])
    return f"{_with_alpha(series.label, groups)}:\n{count:.3g} spikes, variance {variance:.2g} nats²"


def _with_alpha(label: str, groups: Sequence[Group]) -> str:
    """The label, with α unless it contains α already."""
    (config,) = [group.config for group in groups if group.label == label]
    return label if config is None or "α" in label else f"{label} (α = {config.training.alpha:g})"
