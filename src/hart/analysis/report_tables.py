"""The tables of a report: scores by collection, differences, costs, diagnostics, and comparison with the paper."""

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from hart.analysis.paper import AVERAGE, TABLES, PaperTable
from hart.analysis.report_runs import (
    COLLECTION_NAMES,
    Run,
    Runs,
    StudyRow,
    aligned,
    by_task,
    columns,
    overall,
)
from hart.analysis.report_statistics import Difference, Interval, mean_and_deviation, paired
from hart.evaluation.words import CAUSES, IN_WORDS, METRIC_NAMES, TOLD, metrics_of
from hart.training.sweep_plan import PEAK, alike

MISSING = "–"
MANY = 10
"""Number of comparisons from which a note gives the expected number of false positives."""


@dataclass(frozen=True)
class Cell:
    """A cell of a table: a number with its deviation and the paper's number, an interval, or a text."""

    value: float | None = None
    deviation: float | None = None
    runs: int = 0
    paper: float | None = None
    interval: Interval | None = None
    p: float | None = None
    text: str = ""
    form: str = ".1f"

    def shown(self) -> str:
        """The cell as text, without the paper's number."""
        if self.text:
            return self.text
        if self.interval is not None:
            low, high = self.interval
            words = f"[{low:+.1f}, {high:+.1f}]" + ("" if self.p is None else f", p {p_value(self.p)}")
        elif self.value is None or math.isnan(self.value):
            return MISSING
        else:
            spread = "" if self.deviation is None else f" ± {self.deviation:{self.form}}"
            words = format(self.value, self.form) + spread
        return words.replace("-", "−")


@dataclass(frozen=True)
class Table:
    """A table of a report; rows are (label, note on the label, cells)."""

    key: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, str, tuple[Cell, ...]], ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class CollectionReport:
    """The results of one collection; `differences` has all rows except `against`, with which they are compared."""

    collection: str
    metric: str
    rows: tuple[StudyRow, ...]
    against: StudyRow
    scores: Table
    differences: dict[str, Difference]
    compared: Table | None


def p_value(p: float) -> str:
    """A p-value as it is printed after "p", with its relation sign."""
    return "< 0.001" if p < 0.001 else f"= {p:.3f}" if p < 0.1 else f"= {p:.2f}"


def _cell(values: list[float], paper: float | None = None, form: str = ".1f") -> Cell:
    values = [value for value in values if not math.isnan(value)]
    if not values:
        return Cell(paper=paper)
    mean, deviation = mean_and_deviation(values)
    return Cell(mean, deviation, len(values), paper, form=form)


def of_collection(study: Runs, collection: str, against: StudyRow) -> CollectionReport:
    """Scores and differences of all rows of a collection."""
    rows = study.of(collection)
    metrics = rows[0].metrics
    first = metrics[0]
    extra = list(columns(rows[0].scored[0])) if collection == "p3" else []
    validated = any(_validation(run, first) is not None for row in rows for run in row.scored)
    headings = (
        "seeds",
        *(METRIC_NAMES[metric] for metric in metrics),
        *extra,
        *([f"{METRIC_NAMES[first]}, validation"] if validated else []),
    )
    lines = []
    for row in rows:
        cells = [Cell(text=", ".join(str(run.seed) for run in row.scored)), *(_cell(row.values(m)) for m in metrics)]
        cells += [_cell([columns(run).get(name, math.nan) for run in row.scored]) for name in extra]
        if validated:
            cells.append(_cell([v for run in row.scored if (v := _validation(run, first)) is not None]))
        lines.append((row.name, _chosen(row), tuple(cells)))
    name = COLLECTION_NAMES.get(collection, collection)
    scores = Table(f"rows-{collection}", f"All rows, {name}", headings, tuple(lines), ("Percent; mean ± deviation.",))
    differences = {
        row.name: paired(*both) for row in rows if row is not against and (both := aligned(row, against, first))
    }
    return CollectionReport(
        collection, first, tuple(rows), against, scores, differences, _compared(collection, against, differences)
    )


def _validation(run: Run, metric: str) -> float | None:
    found = (run.results or {}).get("validation") or {}
    return found.get(metric)


def _chosen(row: StudyRow) -> str:
    """The result of a row's grid as a phrase; empty without a grid."""
    found = [run.results["chosen"] for run in row.scored if run.results and run.results.get("chosen")]
    if not found:
        return ""
    fields = ", ".join(f"{name} {value}" for name, value in found[0]["fields"].items())
    return f"{fields}: best of {len(found[0]['candidates'])} on {found[0]['on']}"


def _compared(collection: str, against: StudyRow, differences: dict[str, Difference]) -> Table | None:
    if not differences:
        return None
    metric = METRIC_NAMES[against.metrics[0]]
    lines = []
    for name, found in differences.items():
        seeds = Cell(interval=found.over_seeds, p=found.seeds_p) if found.over_seeds else Cell(text="no interval")
        both = Cell(interval=found.over_both, p=found.both_p) if found.over_both else Cell(text="no interval")
        pairs = Cell(text=f"{found.seeds} × {found.tasks}")
        lines.append((name, "", (Cell(found.mean, form="+.1f"), seeds, both, pairs)))
    notes = []
    if any(found.seeds == 1 for found in differences.values()):
        notes.append("One seed: no interval over seeds; the other one is over tasks alone, for this very seed.")
    elif any(found.over_seeds is None for found in differences.values()):
        notes.append("No interval over seeds where all seeds give one difference.")
    if any(found.seeds == 2 for found in differences.values()):
        notes.append("With two seeds the interval over seeds and tasks is too narrow where seeds differ much.")
    if len(differences) >= MANY:
        notes.append(
            f"{len(differences)} rows are compared, each at 5 %: if none differed, about {0.05 * len(differences):.0f} "
            "would seem to."
        )
    titles = (
        f"difference, {metric}",
        "95 % over seeds",
        "95 % over seeds and tasks",
        "seeds × tasks",
    )
    return Table(f"differences-{collection}", f"Differences to {against.name}", titles, tuple(lines), tuple(notes))


def per_task(report: CollectionReport) -> Table:
    """The score of each row on each task, mean over seeds."""
    names = list(by_task(report.rows[0].scored[0], report.metric)[0])
    scores = {row.name: [by_task(run, report.metric)[0] for run in row.scored] for row in report.rows}
    lines = tuple(
        (task, "", tuple(_cell([each[task] for each in scores[row.name]]) for row in report.rows)) for task in names
    )
    title = f"Each task, {METRIC_NAMES[report.metric]}"
    return Table(f"tasks-{report.collection}", title, tuple(row.name for row in report.rows), lines)


def of_paper(study: Runs) -> list[Table]:
    """The paper's tables of which at least one row was run, with measured and printed numbers."""
    return [table for number in TABLES if (table := _of_paper(study, TABLES[number])) is not None]


def _standing(study: Runs, place: tuple[int, str]) -> tuple[list[StudyRow], list[StudyRow]]:
    """The rows of the study that stand for one row of the paper, and those that match it but were trained differently.

    Rows that the study names for this place take precedence. Otherwise it is, for each collection, the first row whose
    configuration matches, with those that differ from it only in the seed and `order_seed`.
    """
    found = [row for row in study.rows if row.scored and place in row.places]
    if named := [row for row in found if row.named]:
        return named, [row for row in found if not row.named]

    def made(row: StudyRow) -> dict[str, Any]:
        fields = alike(row.config)
        scheme = {name: value for name, value in fields["model.scheme"].items() if name != "order_seed"}
        return {**fields, "model.scheme": scheme}

    firsts: dict[str, dict[str, Any]] = {}
    for row in found:
        firsts.setdefault(row.collection, made(row))
    chosen = [row for row in found if made(row) == firsts[row.collection]]
    return chosen, [row for row in found if row not in chosen]


_BUDGET = ("training.max_steps", "training.batch_size", "training.optimizer", "data.training_tasks")
"""Fields that readers expect to be equal in all rows of a table."""


def _of_paper(study: Runs, table: PaperTable) -> Table | None:
    found = {row.label: _standing(study, (table.number, row.label)) for row in table.rows}
    stands = {label: rows for label, (rows, _) in found.items()}
    used = [row for rows in stands.values() for row in rows]
    if not used:
        return None
    collections = {collection for _, collection in table.columns}
    others = [name for name in dict.fromkeys(row.collection for row in used) if name not in collections]
    headings = [heading for heading, _ in table.columns]
    metrics = {row.collection: row.metrics[0] for row in used}
    headings += [f"{COLLECTION_NAMES.get(name, name)}, {METRIC_NAMES[metrics[name]]}" for name in others]
    lines = []
    for row in table.rows:
        runs = [run for each in stands[row.label] for run in each.scored]
        cells = [
            _cell([_of_column(run, heading) for run in runs if run.config["data.collection"] == collection], printed)
            for (heading, collection), printed in zip(table.columns, row.values, strict=True)
        ]
        for name in others:
            own = [run for run in runs if run.config["data.collection"] == name]
            cells.append(_cell([overall(run, metrics[name]) for run in own]))
        lines.append((row.label, ", ".join(each.name for each in stands[row.label]), tuple(cells)))
    bases = sorted({str(run.config["model.base"]) for row in used for run in row.scored})
    notes = [f"Base of these runs: {', '.join(bases)}. The paper's number stands below each measured one."]
    for name in _BUDGET:
        values = {str(row.config[name]): row.name for row in reversed(used)}
        if len(values) > 1:
            notes.append(f"Rows differ in {name}: {', '.join(f'{values[each]} {each}' for each in values)}.")
    if left := [row.name for _, rows in found.values() for row in rows]:
        notes.append(f"Not counted, as they were trained differently from the row here: {', '.join(left)}.")
    title = f"Table {table.number}: {table.title}"
    return Table(f"table-{table.number}", title, tuple(headings), tuple(lines), tuple(notes))


def _of_column(run: Run, heading: str) -> float:
    if run.config["data.collection"] != "p3" or heading == AVERAGE or "," in heading:
        return overall(run, metrics_of(str(run.config["data.collection"]))[0])
    return columns(run).get(heading, math.nan)


_COSTS: dict[str, tuple[str, Callable[[dict[str, Any]], Any]]] = {
    "trained parameters": (",.0f", lambda found: found.get("trained_parameters")),
    "training, minutes": (".1f", lambda found: _minutes(found.get("training_seconds"))),
    "s / step": (".3f", lambda found: found.get("seconds_per_step")),
    "peak memory, GiB": (".2f", lambda found: found.get(PEAK)),
    "loss, start": (".2f", lambda found: found.get("loss_start")),
    "loss, end": (".2f", lambda found: found.get("loss_end")),
}


def _minutes(seconds: float | None) -> float | None:
    return None if seconds is None else seconds / 60


def of_costs(study: Runs) -> Table:
    """Parameters, time, memory and losses of all finished runs, means over seeds."""
    lines = []
    for row in study.rows:
        found = [dict(run.results) for run in row.runs if run.results]
        if found:
            cells = [
                _mean([value for each in found if (value := read(each)) is not None], form)
                for form, read in _COSTS.values()
            ]
            lines.append((row.name, "", tuple(cells)))
    return Table("costs", "Size, time and memory", tuple(_COSTS), tuple(lines), ("Means over seeds.",))


def _mean(values: list[float], form: str) -> Cell:
    return Cell(fmean(values), None, len(values), form=form) if values else Cell()


_STATES: dict[str, tuple[str, tuple[str, ...]]] = {
    "cosine of layers, upper half": (".3f", ("layer_cosine",)),
    **{f"variance between {words}": (".3f", ("variance", name)) for name, words in CAUSES.items()},
    "effective rank": (".1f", ("effective_rank",)),
    "cosine of parameters over tasks": (".3f", ("parameter_cosines", "all")),
}
"""Heading → format, and path of the number in `diagnostics` of the results."""


def of_diagnostics(study: Runs) -> list[Table]:
    """Tables of measures of layer states, scores under other adaptations, and robustness: mean ± deviation."""
    found = [
        (row, [each for run in row.runs if run.results and (each := run.results.get("diagnostics"))])
        for row in study.rows
    ]
    found = [(row, own) for row, own in found if own]
    if not found:
        return []
    states = tuple(
        (row.name, "", tuple(_numbers(own, path, form) for form, path in _STATES.values())) for row, own in found
    )
    notes = ["Shares of variance add to 1. How to read each number: docs/diagnostics.md."]
    if one := [row.name for row, own in found if any(each.get("one_state") for each in own)]:
        notes.append(f"One state for all layers, so their cosine is 1: {', '.join(one)}.")
    tables = [Table("diagnostics", "Diagnostics: layer states", tuple(_STATES), states, tuple(notes))]
    note = "Another task's adaptation should be far behind a task's own."
    tables += _by_kind("adaptations", "by adaptation", IN_WORDS, found, note)
    robust = [
        (row, [each for run in row.runs if run.results and (each := run.results.get("robustness"))])
        for row in study.rows
    ]
    note = "The closer to the first column, the less it matters how a task is told."
    return tables + _by_kind("robustness", "of tasks told in other ways", TOLD, robust, note) + _interference(robust)


_OTHERS = {"queries of another task": "like_the_base", "distractors": "distractors_like_the_base"}
"""Queries that an adaptation should leave alone → their share in `robustness` of the results."""


def _interference(robust: Sequence[tuple[StudyRow, list[Mapping[str, Any]]]]) -> list[Table]:
    """The table of shares of other queries that adapted models answer as their base does; none if no run asked any."""
    robust = [(row, own) for row, own in robust if own]
    asked = {
        words: key
        for words, key in _OTHERS.items()
        if any(each.get(key) is not None for _, own in robust for each in own)
    }
    if not asked:
        return []
    rows = tuple((row.name, "", tuple(_numbers(own, (key,), ".2f") for key in asked.values())) for row, own in robust)
    note = "The closer to 1, the better an adaptation leaves other queries alone."
    heading = "Diagnostics: share of other queries answered as the base does"
    return [Table("interference", heading, tuple(asked), rows, (note,))]


def _by_kind(
    key: str,
    title: str,
    words: Mapping[str, str],
    found: Sequence[tuple[StudyRow, list[Mapping[str, Any]]]],
    note: str,
) -> list[Table]:
    """The table of scores by kind of adaptation; none without scores.

    Args:
        words: kind → its heading.
        found: rows, each with the measurements of its runs.
    """
    found = [(row, own) for row, own in found if own]
    kinds = [kind for kind in words if any(kind in each.get("scores", {}) for _, own in found for each in own)]
    if not kinds:
        return []
    metrics = {row.name: row.metrics[0] for row, _ in found}
    scores = tuple(
        (row.name, "", tuple(_numbers(own, ("scores", kind, metrics[row.name])) for kind in kinds))
        for row, own in found
    )
    heading = f"Diagnostics: {' or '.join(dict.fromkeys(METRIC_NAMES[m] for m in metrics.values()))} {title}"
    notes = (f"From a few queries of each test task. {note}",)
    return [Table(key, heading, tuple(words[kind] for kind in kinds), scores, notes)]


def _numbers(trees: Sequence[Mapping[str, Any]], path: Sequence[str], form: str = ".1f") -> Cell:
    """The cell of the number at a path in each tree, over those trees that have it."""
    found = []
    for tree in trees:
        value: Any = tree
        for name in path:
            value = value.get(name) if isinstance(value, Mapping) else None
        found += [] if value is None else [float(value)]
    return _cell(found, form=form)


def as_csv(tables: Sequence[Table], reports: Sequence[CollectionReport]) -> str:
    """CSV of all cells with a number, one per line, and of the differences with both intervals."""
    text = io.StringIO()
    write = csv.writer(text, lineterminator="\n").writerow
    write(["table", "row", "column", "value", "deviation", "runs", "paper", "low", "high", "p"])
    for table in tables:
        for label, _, cells in table.rows:
            for column, cell in zip(table.columns, cells, strict=True):
                if cell.value is not None or cell.paper is not None:
                    write([table.key, label, column, cell.value, cell.deviation, cell.runs, cell.paper, "", "", ""])
    for report in reports:
        for name, found in report.differences.items():
            for column, interval, p in (
                ("over seeds", found.over_seeds, found.seeds_p),
                ("over seeds and tasks", found.over_both, found.both_p),
            ):
                low, high = interval or ("", "")
                key = f"differences-{report.collection}"
                write([key, name, column, found.mean, "", found.seeds, "", low, high, "" if p is None else p])
    return text.getvalue()
