"""Plots of a run (losses over steps, scores by task) and of the growth of costs."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # a file is written; no screen is needed

from matplotlib import pyplot as plt  # noqa: E402

from hart.evaluation.answers import AnswerResults  # noqa: E402
from hart.runtime.files import write_bytes  # noqa: E402


def plot_losses(rows: Sequence[dict[str, Any]], path: Path, *, alpha: float) -> None:
    """Prediction loss and consistency loss over steps, from the rows of a metrics.jsonl."""
    rows = [row for row in rows if "prediction_loss" in row]
    steps = [row["step"] for row in rows]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    left.plot(steps, [row["prediction_loss"] for row in rows], color="tab:blue")
    left.set(title="prediction loss", xlabel="step", ylabel="nats per target token", ylim=(0, None))
    right.plot(steps, [row["consistency_loss"] for row in rows], color="tab:orange")
    right.set(title=f"local consistency loss (α = {alpha:g})", xlabel="step", ylabel="mean square", ylim=(0, None))
    _save(figure, path)


def plot_task_scores(results: Sequence[AnswerResults], path: Path) -> None:
    """Exact match of each task, one marker per system, the tasks sorted by the last system's score."""
    order = sorted(
        range(len(results[-1].tasks)), key=lambda i: (results[-1].tasks[i].score.exact_match, results[-1].tasks[i].name)
    )
    names = [results[-1].tasks[i].name.removeprefix("procedural_").replace("_", " ") for i in order]
    figure, axes = plt.subplots(figsize=(8, 1.2 + 0.19 * len(order)), layout="constrained")
    axes.barh(range(len(order)), [results[-1].tasks[i].score.exact_match for i in order], color="tab:blue", alpha=0.85)
    for result, marker in zip(results[:-1], "ox^dvs", strict=False):
        values = [result.tasks[i].score.exact_match for i in order]
        axes.plot(values, range(len(order)), marker, markersize=4, color="black", label=result.system, alpha=0.6)
    axes.barh([], [], color="tab:blue", label=results[-1].system)
    axes.set_yticks(range(len(order)), names, fontsize=7)
    axes.set(xlabel="exact match on unseen tasks (%)", xlim=(-2, 102), ylim=(-0.8, len(order) - 0.2))
    axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.06), ncols=2, fontsize=8, frameon=False)
    _save(figure, path)


_SPELT = {"seconds": "seconds", "flops": "FLOPs"}


def plot_growth(measured: Mapping[str, Mapping[str, Sequence[float]]], path: Path) -> None:
    """Seconds and FLOPs over several quantities, as multiples of their first value, on a common logarithmic scale.

    Args:
        measured: quantity, such as the number of layers → its `sizes`, `seconds` and `flops`, lists of equal length,
            and the two `exponents` fitted to them.
    """
    figure, row = plt.subplots(
        1, len(measured), figsize=(2.4 * len(measured), 2.9), sharey=True, squeeze=False, layout="constrained"
    )
    row = row[0]
    for axes, (name, values) in zip(row, measured.items(), strict=True):
        for what, style, fitted in zip(("seconds", "flops"), ("o-", "x--"), values["exponents"], strict=True):
            multiples = [each / values[what][0] for each in values[what]]
            axes.plot(values["sizes"], multiples, style, label=f"{_SPELT[what]}, k = {fitted:.2f}")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.set(title=name)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, frameon=False)
    row[0].set(ylabel="multiple of the first")
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    content = io.BytesIO()
    try:
        figure.savefig(content, format=path.suffix.removeprefix("."), dpi=110)
    finally:
        plt.close(figure)
    write_bytes(path, content.getvalue())
