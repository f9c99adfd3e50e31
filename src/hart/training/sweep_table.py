"""The table of a sweep: one row for each configuration, as Markdown and JSON."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from hart.runtime.files import write_json, write_text
from hart.training.sweep_plan import SweepRun

TABLE_FILES = ("table.md", "table.json")


def write_tables(out: Path, runs: Sequence[SweepRun]) -> list[dict[str, Any]]:
    """table.md and table.json from the results so far, one row for each configuration."""
    names = list(dict.fromkeys(run.name for run in runs))
    found = {(run.name, run.seed): run.results() for run in runs}
    rows = [_row(name, [r for (n, _), r in found.items() if n == name and r], found, names[0]) for name in names]
    write_json(out / "table.json", rows)
    write_text(out / "table.md", markdown(rows))
    return rows


def _row(
    name: str, done: list[dict[str, Any]], found: dict[tuple[str, int], dict[str, Any] | None], first: str
) -> dict[str, Any]:
    row: dict[str, Any] = {"system": name, "runs": len(done)}
    for key in ("trained_parameters", "seconds_per_step", "peak_memory_gib", "loss_start", "loss_end"):
        values = [result[key] for result in done if result.get(key) is not None]
        row[key] = fmean(values) if values else None
    for key in ("rouge_l", "exact_match", "accuracy"):
        scores = [result[key] for result in done if key in result]
        row[key] = fmean(scores) if scores else None
        row[f"{key}_deviation"] = stdev(scores) if len(scores) > 1 else None
    # Paired by seed and task: what a task is like, and what a seed did to it, cancels out.
    by = "accuracy" if any("accuracy" in result for result in done) else "rouge_l"
    differences = [
        found_score[by] - first_result["tasks"][task][by]
        for (system, seed), result in found.items()
        if system == name and name != first and result and (first_result := found.get((first, seed)))
        for task, found_score in result.get("tasks", {}).items()
        if by in first_result.get("tasks", {}).get(task, {})
    ]
    row["difference"] = fmean(differences) if differences else None
    row["difference_error"] = stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else None
    return row


# Key → heading and format.
_COLUMNS: dict[str, tuple[str, str]] = {
    "runs": ("runs", "d"),
    "trained_parameters": ("trained parameters", ",.0f"),
    "seconds_per_step": ("s / step", ".2f"),
    "peak_memory_gib": ("peak memory (GiB)", ".2f"),
    "loss_start": ("loss, start", ".2f"),
    "loss_end": ("loss, end", ".2f"),
    "rouge_l": ("ROUGE-L", ".2f"),
    "rouge_l_deviation": ("±", ".2f"),
    "exact_match": ("exact match", ".2f"),
    "accuracy": ("accuracy", ".2f"),
    "accuracy_deviation": ("±", ".2f"),
    "difference": ("− first row's", "+.2f"),
    "difference_error": ("± (standard error over tasks and seeds)", ".2f"),
}


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a table; a column that nobody fills is left out."""
    used = [key for key in _COLUMNS if any(row[key] is not None for row in rows)]
    lines = ["| system | " + " | ".join(_COLUMNS[key][0] for key in used) + " |", "|---" * (len(used) + 1) + "|"]
    for row in rows:
        cells = ("–" if row[key] is None else format(row[key], _COLUMNS[key][1]) for key in used)
        lines.append(f"| {row['system']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
