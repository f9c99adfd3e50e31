"""The table of a sweep: one row for each configuration, as Markdown and JSON."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from hart.evaluation.words import METRIC_NAMES, metrics_of
from hart.runtime.files import write_json, write_text
from hart.training.config import flattened
from hart.training.sweep_plan import PEAK, RESULTS_FILE, SweepRun, alike

TABLE_FILES = ("table.md", "table.json")
LISTING_FILE = "study.json"


def read_listing(out: Path) -> dict[str, Any]:
    """Row → its entry in study.json of a sweep's folder, in the order of the study; empty without this file."""
    try:
        rows = json.loads((out / LISTING_FILE).read_text(encoding="utf-8"))["rows"]
    except (OSError, ValueError, LookupError, TypeError):
        return {}
    return {name: said for name, said in rows.items() if isinstance(said, dict)} if isinstance(rows, dict) else {}


def write_tables(out: Path, runs: Sequence[SweepRun]) -> list[dict[str, Any]]:
    """Write table.md and table.json from the results so far, with one row for each configuration; returns the rows.

    Results of rows and seeds that are not among `runs`, such as those of another sweep in this folder, are included
    unless their settings differ from the rest of their row.
    """
    found = {(run.name, run.seed): run.results() for run in runs}
    others, left = _of_their_rows(_others(out, found), runs)
    found |= others
    held = {name for name, _ in found}
    names = [name for name in dict.fromkeys([*read_listing(out), *(name for name, _ in found)]) if name in held]
    rows = [_row(name, [r for (n, _), r in found.items() if n == name and r], found, names[0]) for name in names]
    write_json(out / "table.json", rows)
    told = ", ".join(f"{name} seed {seed}" for name, seed in left)
    write_text(
        out / "table.md", markdown(rows) + (f"\nLeft out, as their configuration differs: {told}.\n" if told else "")
    )
    return rows


Results = dict[tuple[str, int], dict[str, Any] | None]
"""Row and seed → results; None if the run is not done."""


def _others(out: Path, known: Results) -> Results:
    found: Results = {}
    for path in sorted(out.glob(f"*/seed-*/{RESULTS_FILE}")):
        name, seed = path.parent.parent.name, path.parent.name.removeprefix("seed-")
        if seed.isdecimal() and (name, int(seed)) not in known:
            with suppress(OSError, ValueError):
                content = json.loads(path.read_text(encoding="utf-8"))
                found |= {(name, int(seed)): content} if isinstance(content, dict) else {}
    return found


def _of_their_rows(others: Results, runs: Sequence[SweepRun]) -> tuple[Results, list[tuple[str, int]]]:
    """The results with the settings of the row's `runs` (without runs: of most of the row), and the keys of others."""
    planned = {run.name: whole for run in runs if (whole := run.resolved())}
    made = {key: flattened(result.get("config")) for key, result in others.items() if result}
    left = []
    for name in dict.fromkeys(name for name, _ in others):
        own = {key: alike(fields) for key, fields in made.items() if key[0] == name and fields is not None}
        if own:
            of_runs = flattened(planned[name].config.to_dict()) if name in planned else None
            usual = most_common([*own.values()]) if of_runs is None else alike(of_runs)
            left += [key for key, each in own.items() if each != usual]
    return {key: result for key, result in others.items() if key not in left}, left


def most_common(made: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The most common settings; at a tie the first."""
    return max(made, key=made.count)


def _row(name: str, done: list[dict[str, Any]], found: Results, first: str) -> dict[str, Any]:
    row: dict[str, Any] = {"system": name, "runs": len(done)}
    for key in ("trained_parameters", "seconds_per_step", PEAK, "loss_start", "loss_end"):
        values = [result[key] for result in done if result.get(key) is not None]
        row[key] = fmean(values) if values else None
    for key in ("rouge_l", "exact_match", "accuracy"):
        scores = [result[key] for result in done if key in result]
        row[key] = fmean(scores) if scores else None
        row[f"{key}_deviation"] = stdev(scores) if len(scores) > 1 else None
    # Paired by seed, which cancels the seed's effect on the data; not by task, as all seeds answer the same tasks.
    measured = [metrics_of(result["config"]["data"]["collection"], result) for result in done if result.get("config")]
    by = measured[0][0] if measured else "rouge_l"
    row["compared"] = METRIC_NAMES[by]
    differences = [
        result[by] - other[by]
        for (system, seed), result in found.items()
        if system == name and name != first and result and (other := found.get((first, seed)))
        if by in result and by in other
    ]
    row["difference"] = fmean(differences) if differences else None
    row["difference_error"] = stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else None
    return row


# Key → heading and format.
_COLUMNS: dict[str, tuple[str, str]] = {
    "runs": ("runs", "d"),
    "trained_parameters": ("trained parameters", ",.0f"),
    "seconds_per_step": ("s / step", ".2f"),
    PEAK: ("peak memory (GiB)", ".2f"),
    "loss_start": ("loss, start", ".2f"),
    "loss_end": ("loss, end", ".2f"),
    "rouge_l": ("ROUGE-L", ".2f"),
    "rouge_l_deviation": ("±", ".2f"),
    "exact_match": ("exact match", ".2f"),
    "exact_match_deviation": ("±", ".2f"),
    "accuracy": ("accuracy", ".2f"),
    "accuracy_deviation": ("±", ".2f"),
    "difference": ("− first row's {compared}", "+.2f"),
    "difference_error": ("± (standard error over seeds)", ".2f"),
}


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table, without empty columns."""
    used = [key for key in _COLUMNS if any(row[key] is not None for row in rows)]
    compared = " or ".join(dict.fromkeys(row["compared"] for row in rows if row.get("compared")))
    headings = (_COLUMNS[key][0].format(compared=compared) for key in used)
    lines = ["| system | " + " | ".join(headings) + " |", "|---" * (len(used) + 1) + "|"]
    for row in rows:
        cells = ("–" if row[key] is None else format(row[key], _COLUMNS[key][1]) for key in used)
        lines.append(f"| {row['system']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
