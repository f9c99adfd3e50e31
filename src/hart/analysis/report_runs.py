"""The runs in the folder of a sweep: NAME/seed-N with config.yaml, results.json and run/metrics.jsonl.

No model is loaded. results.json may come from a sweep or from `hart evaluate --output`. Runs that are unfinished or
unreadable are noted and left out of the scores.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hart.analysis.paper import check_places, places_of
from hart.analysis.report_statistics import Scores
from hart.errors import HartError, first_line
from hart.evaluation.words import METRIC_NAMES, metrics_of
from hart.runtime.sections import read_yaml
from hart.training.config import flattened
from hart.training.run_folder import read_metrics
from hart.training.sweep_plan import alike
from hart.training.sweep_table import LISTING_FILE, most_common, read_listing

COLLECTION_NAMES = {"sni": "Super-NaturalInstructions", "p3": "P3", "procedural": "procedural collection"}


@dataclass(frozen=True)
class Run:
    """One row with one seed.

    Attributes:
        config: "section.field" → value, for all fields of this version.
        results: content of results.json, with tasks by name; None if the run is unfinished or unreadable.
        metrics: rows of metrics.jsonl that have a loss.
        problem: reason why there are no results.
    """

    row: str
    seed: int
    folder: Path
    config: Mapping[str, Any]
    results: Mapping[str, Any] | None
    metrics: tuple[Mapping[str, Any], ...]
    problem: str = ""

    @property
    def scored(self) -> bool:
        """Whether the run has scores on test tasks; pre-training on text has none."""
        return self.results is not None and bool(self.results.get("tasks"))

    @property
    def command(self) -> str:
        """The command that repeats the run."""
        given = (self.results or {}).get("command")
        return str(given or f"hart train {self.folder / 'config.yaml'}")


@dataclass(frozen=True)
class StudyRow:
    """A row and its runs, by seed.

    Attributes:
        places: tables of the paper, and the rows in them, that this row stands for.
        named: whether the study names these places; otherwise they follow from the configuration.
    """

    name: str
    runs: tuple[Run, ...]
    places: tuple[tuple[int, str], ...]
    named: bool = False

    @property
    def config(self) -> Mapping[str, Any]:
        return self.runs[0].config

    @property
    def collection(self) -> str:
        return str(self.config["data.collection"])

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the scores, the main one first."""
        return metrics_of(self.collection, next((run.results for run in self.scored), None))

    @property
    def scored(self) -> list[Run]:
        return [run for run in self.runs if run.scored]

    def values(self, metric: str) -> list[float]:
        """The scores of the seeds that have one."""
        return [overall(run, metric) for run in self.scored]


@dataclass(frozen=True)
class Runs:
    """A whole study.

    Attributes:
        absent: row → seeds of the study whose runs have not begun.
        notes: remarks for readers, shown before the numbers.
    """

    name: str
    folder: Path
    rows: tuple[StudyRow, ...]
    absent: Mapping[str, tuple[int, ...]]
    notes: list[str]

    @property
    def collections(self) -> list[str]:
        """Collections with scores, in the order of the rows."""
        return list(dict.fromkeys(row.collection for row in self.rows if row.scored))

    def of(self, collection: str) -> list[StudyRow]:
        """Rows of a collection that have scores."""
        return [row for row in self.rows if row.collection == collection and row.scored]


def overall(run: Run, metric: str) -> float:
    """The score of a run in percent; NaN if it has no score of this name."""
    assert run.results is not None
    return float(run.results.get(metric, math.nan))


def columns(run: Run) -> dict[str, float]:
    """Column of the paper's table → accuracy of a run on P3, in the table's order; other data sets follow."""
    assert run.results is not None
    return dict(run.results["columns"])


def by_task(run: Run, metric: str) -> tuple[dict[str, float], dict[str, float]]:
    """Task → score, and task → weight. On P3 a column counts as a task; otherwise the weight is its instances."""
    assert run.results is not None
    if metric == "accuracy":
        scores = columns(run)
        return scores, dict.fromkeys(scores, 1.0)
    tasks = run.results["tasks"]
    scored = {name: float(scores[metric]) for name, scores in tasks.items()}
    return scored, {name: float(scores.get("instances", 1)) for name, scores in tasks.items()}


def aligned(row: StudyRow, other: StudyRow, metric: str) -> tuple[Scores, Scores, Scores] | None:
    """Scores `[seeds, tasks]` of two rows for their common seeds, and weights of tasks; None without common seeds."""
    pairs = [(run, its) for run in row.scored for its in other.scored if run.seed == its.seed]
    if not pairs:
        return None
    scores, weights = by_task(pairs[0][0], metric)
    one, two = (
        np.array([[by_task(run, metric)[0][task] for task in scores] for run in runs])
        for runs in zip(*pairs, strict=True)
    )
    return one, two, np.array([*weights.values()])


def read_runs(folder: Path) -> Runs:
    """Read the runs of a sweep's folder.

    Raises:
        HartError: the folder has no sweep or no finished run, or its runs were scored on different tasks.
    """
    if not folder.is_dir():
        raise HartError(f"{folder}: no such folder; give the folder of a sweep")
    found = sorted(path for path in folder.glob("*/seed-*") if path.name[5:].isdecimal() and path.is_dir())
    if not found:
        raise HartError(f"{folder}: is not a sweep, as it has no NAME/seed-N; give the OUT of hart sweep")
    listing = _listing(folder)
    names = list(dict.fromkeys([*listing.get("rows", {}), *(path.parent.name for path in found)]))
    absent: dict[str, tuple[int, ...]] = {}
    rows = []
    for name in names:
        own = sorted((path for path in found if path.parent.name == name), key=lambda path: int(path.name[5:]))
        runs = [run for run in map(_read_run, own) if run is not None]
        said = listing.get("rows", {}).get(name, {})
        missing = sorted({*said.get("seeds", [])} - {run.seed for run in runs})
        if missing:
            absent[name] = tuple(missing)
        if runs:
            named = _places(folder, name, said, runs)
            rows.append(
                StudyRow(name, _of_one_configuration(runs), named or tuple(places_of(runs[0].config)), bool(named))
            )
    notes = [f"Not begun: {_by_seeds(absent)}."] if absent else []
    for run in (run for row in rows for run in row.runs if run.problem):
        notes.append(f"{run.row}, seed {run.seed}: {run.problem}; it is not in the scores.")
    study = Runs(str(listing.get("study") or folder.resolve().name), folder, tuple(rows), absent, notes)
    if not study.collections:
        first = f" ({notes[0].rstrip('.')})" if notes else ""
        raise HartError(f"{folder}: no run has scores yet{first}; run hart report when one is finished")
    for collection in study.collections:
        _check_same_tasks(study, collection)
    return study


MOST_NAMED = 8
"""The most rows that a remark names."""


def _by_seeds(rows: Mapping[str, tuple[int, ...]]) -> str:
    """Rows grouped by equal seeds: `a, b (seeds 0–4); c (seed 2)`; of many rows the first ones and a count."""
    together: dict[tuple[int, ...], list[str]] = {}
    for name, seeds in rows.items():
        together.setdefault(seeds, []).append(name)
    return "; ".join(
        f"{_some(names)} (seed{'s' if len(seeds) > 1 else ''} {in_short(seeds)})" for seeds, names in together.items()
    )


def _some(names: Sequence[str]) -> str:
    if len(names) <= MOST_NAMED:
        return ", ".join(names)
    return f"{', '.join(names[:MOST_NAMED])} and {len(names) - MOST_NAMED} more rows"


def in_short(numbers: Sequence[int]) -> str:
    """Sorted numbers as text: `0–4` for three or more consecutive ones, otherwise `0, 2, 5`."""
    first, last = numbers[0], numbers[-1]
    return f"{first}–{last}" if len(numbers) == last - first + 1 > 2 else ", ".join(map(str, numbers))


def _listing(folder: Path) -> dict[str, Any]:
    """The list of rows that the sweep wrote, in order; empty if it wrote none."""
    if rows := read_listing(folder):
        found = json.loads((folder / LISTING_FILE).read_text(encoding="utf-8"))
        return {"study": found.get("study"), "rows": rows}
    return {}


def _places(folder: Path, name: str, said: Mapping[str, Any], runs: list[Run]) -> tuple[tuple[int, str], ...]:
    given: list[dict[str, Any]] = said.get("paper") or next(
        (run.results["paper"] for run in runs if run.results and run.results.get("paper")), []
    )
    try:
        check_places(tuple(given))
    except HartError as error:
        raise HartError(f"{folder}: row {name}: {error}") from None
    return tuple((place["table"], place["row"]) for place in given)


def _of_one_configuration(runs: Sequence[Run]) -> tuple[Run, ...]:
    """The runs of a row; runs with another configuration than most lose their results and get a `problem`."""
    made = {run.seed: alike(run.config) for run in runs if run.scored}
    if not made:
        return tuple(runs)
    usual = most_common(list(made.values()))

    def checked(run: Run) -> Run:
        own = made.get(run.seed, usual)
        # A field that only one of them has is of another version.
        others = [name for name in own if name in usual and own[name] != usual[name]]
        if not others:
            return run
        fields = "; ".join(f"{name} {own[name]}, not {usual[name]}" for name in others[:3])
        problem = f"another configuration than most of its row ({fields}{'; …' if len(others) > 3 else ''})"
        return replace(run, results=None, metrics=(), problem=problem)

    return tuple(map(checked, runs))


def _read_run(folder: Path) -> Run | None:
    """Read one run; None if it has no configuration."""
    results, problem = None, ""
    try:
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        if not isinstance(results, dict):
            raise ValueError("no results of a run")
        results = _normalised(results)
    except FileNotFoundError:
        problem = "unfinished"
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        results, problem = None, f"results.json cannot be read ({first_line(error)})"
    config = flattened((results or {}).get("config"))
    for name in ("config.yaml", "run/config.yaml"):
        config = config or _read_config(folder / name)
    if config is None:
        return None
    metrics_path = folder / "run" / "metrics.jsonl"
    try:
        metrics = tuple(row for row in read_metrics(metrics_path) if "prediction_loss" in row)
    except (OSError, UnicodeDecodeError):
        metrics = ()
    if problem == "unfinished":
        done, whole = metrics[-1]["step"] if metrics else 0, config["training.max_steps"]
        problem = f"unfinished, step {done} of {whole}" if done < whole else "trained, but not scored"
    return Run(folder.parent.name, int(folder.name[5:]), folder, config, results, metrics, problem)


def _normalised(results: dict[str, Any]) -> dict[str, Any]:
    """Results in the form of a sweep; those of `hart evaluate` are converted."""
    for part in ("config", "validation", "diagnostics", "robustness", "chosen", "host"):
        if not isinstance(results.get(part) or {}, dict):
            raise ValueError(f"{part} is no mapping")
    tasks = results.get("tasks")
    if isinstance(tasks, list):
        scores = ("rouge_l", "exact_match", "accuracy", "instances")
        by_name = {task["name"]: {key: task[key] for key in scores if key in task} for task in tasks}
        results = {**results, **results.get("overall", {}), "tasks": by_name}
    if results.get("tasks"):
        scored = [name for name in METRIC_NAMES if name in next(iter(results["tasks"].values()))]
        for found in (results, *results["tasks"].values()):
            if not scored or not all(isinstance(found.get(name), int | float) for name in scored):
                raise ValueError("scores of its tasks or their means are missing")
        if "accuracy" in results:
            columns = results["columns"]
            results = {**results, "columns": columns.get("mean", columns)}
    return results


def _read_config(path: Path) -> dict[str, Any] | None:
    try:
        return flattened(read_yaml(path))
    except HartError:
        return None


def _check_same_tasks(study: Runs, collection: str) -> None:
    """Check that all runs of a collection were scored on the same tasks and, if recorded, numbers of instances.

    Raises:
        HartError: two runs were scored on different tasks.
    """

    def asked(run: Run) -> dict[str, Any]:
        assert run.results is not None
        return {name: scores.get("instances") for name, scores in run.results["tasks"].items()}

    first, *others = (run for row in study.of(collection) for run in row.scored)
    tasks = asked(first)
    for run in others:
        own = asked(run)
        same = sum(name in own and (own[name] == count or None in (own[name], count)) for name, count in tasks.items())
        if not same == len(tasks) == len(own):
            raise HartError(
                f"{study.folder}: {run.row}/seed-{run.seed} and {first.row}/seed-{first.seed} were scored on different "
                f"tasks ({len(own)} and {len(tasks)}, {same} the same); keep those of one kind in a folder of their own"
            )
