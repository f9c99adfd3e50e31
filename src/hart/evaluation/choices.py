"""Multiple-choice accuracy (section 4.2): per template, per task, and the table of the paper.

A system is a function from a task to a score for every choice of every instance; the choice with the highest score is
the answer (T0's rank classification). An answer is right if its text is the target's, so of equal choices it does not
matter which one wins. Of different choices with equal scores each wins its share: an instance earns what guessing among
them earns. T0's argmax would take the first, and a model that cannot tell choices apart would be right or wrong by
their order; where scores differ, the two agree.

A template is a task here (a P3 subset) and templates of one data set are in one category. Accuracies of a data set are
the mean and the median over its templates, ANLI is the mean of its three rounds, and the average is over the columns.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any, Literal

from rich.table import Table
from rich.text import Text

from hart.data.p3.names import dataset_of, held_out
from hart.data.tasks import Instance, Task, check_choices
from hart.errors import HartError
from hart.evaluation.marks import count_marks, counted
from hart.evaluation.metrics import macro_f1
from hart.runtime.files import write_json

ChoiceScorer = Callable[[Task], list[list[float]]]

MACRO_F1_COLUMNS = ("CB",)
"""Columns of the table whose macro-F1 is reported too: SuperGLUE asks for it where classes are uneven."""


@dataclass(frozen=True)
class ChoiceResult:
    """One answered instance: `choice` is the (first) position of the best score, `correct` in [0, 1] what it earns.

    `tied` is whether different choices share the best score.
    """

    id: str
    choice: int
    correct: float
    scores: list[float]
    tied: bool = False


@dataclass(frozen=True)
class TemplateResult:
    """One task. `macro_f1` (percent) is None where the choices change from instance to instance, or some are tied."""

    name: str
    dataset: str
    instances: tuple[ChoiceResult, ...]
    macro_f1: float | None = None

    @property
    def accuracy(self) -> float:
        """In percent."""
        return 100 * fmean(instance.correct for instance in self.instances)

    @property
    def tied(self) -> int:
        """How many of its instances have different choices with the best score."""
        return sum(instance.tied for instance in self.instances)


@dataclass(frozen=True)
class ChoiceResults:
    """Accuracies of one system; `details` is provenance for the file."""

    system: str
    templates: tuple[TemplateResult, ...]
    details: dict[str, Any] = field(default_factory=dict)

    def of_dataset(self, dataset: str, summary: Callable[[list[float]], float] = fmean) -> float | None:
        """Mean (or median) accuracy over the templates of a data set; None if there are none."""
        own = [template.accuracy for template in self.templates if template.dataset == dataset]
        return summary(own) if own else None

    def columns(self, summary: Callable[[list[float]], float] = fmean) -> dict[str, float]:
        """The table's columns that were evaluated, in its order; other data sets follow under their own names."""
        grouped = {column: list(datasets) for column, datasets in held_out().items()}
        held = {dataset for datasets in grouped.values() for dataset in datasets}
        grouped |= {t.dataset: [t.dataset] for t in self.templates if t.dataset not in held}
        found = {name: [self.of_dataset(d, summary) for d in datasets] for name, datasets in grouped.items()}
        return {
            name: fmean(value for value in values if value is not None)
            for name, values in found.items()
            if any(value is not None for value in values)
        }

    @property
    def accuracy(self) -> float:
        """Mean over the columns, the average of the paper's table, in percent."""
        return fmean(self.columns().values())

    @property
    def summary(self) -> dict[str, float]:
        """As that of free answers (`hart.evaluation.answers.Results`): the score that counts first."""
        return {"accuracy": self.accuracy}

    @property
    def marks(self) -> dict[str, Any]:
        """As those of free answers."""
        total = sum(len(template.instances) for template in self.templates)
        return count_marks("tied_choices", {template.name: template.tied for template in self.templates}, total)

    @property
    def remarks(self) -> list[str]:
        """The marks as sentences."""
        what = "have best choices with equal scores, and earn what guessing among them earns"
        return [f"{counted(mark)} {what}" for mark in self.marks.values()]

    @property
    def per_task(self) -> dict[str, dict[str, Any]]:
        """Template → its accuracy."""
        return {template.name: {"accuracy": template.accuracy} for template in self.templates}

    @property
    def macro_f1(self) -> dict[str, float]:
        """Column → macro-F1 (percent), mean over its templates, for `MACRO_F1_COLUMNS`."""
        found = {}
        for column in MACRO_F1_COLUMNS:
            datasets = held_out()[column]
            values = [t.macro_f1 for t in self.templates if t.dataset in datasets and t.macro_f1 is not None]
            if values:
                found[column] = fmean(values)
        return found

    def template_table(self) -> Table:
        """One row per template in the order given."""
        table = Table(title=Text(self.system), title_style="bold", title_justify="left")
        table.add_column("task", overflow="fold")
        for name in ("accuracy", "macro-F1", "instances"):
            table.add_column(name, justify="right")
        for each in self.templates:
            f1 = "" if each.macro_f1 is None else f"{each.macro_f1:.1f}"
            table.add_row(Text(each.name), f"{each.accuracy:.1f}", f1, str(len(each.instances)))
        return table

    def to_dict(self) -> dict[str, Any]:
        """The content of results.json: plain JSON types, means before the single answers."""
        return {
            "system": self.system,
            "details": {**self.details, **self.marks},
            "accuracy": self.accuracy,
            "columns": {"mean": self.columns(), "median": self.columns(median), "macro_f1": self.macro_f1},
            "tasks": [
                {
                    "name": template.name,
                    "dataset": template.dataset,
                    "accuracy": template.accuracy,
                    "macro_f1": template.macro_f1,
                    "instances": len(template.instances),
                    "tied_choices": template.tied,
                    "answers": [vars(instance) for instance in template.instances],
                }
                for template in self.templates
            ],
        }

    def save(self, path: str | Path) -> None:
        """Write results.json, whole or not at all.

        Raises:
            HartError: the path is a folder or cannot be written.
        """
        write_json(path, self.to_dict())


def evaluate_choices(
    score: ChoiceScorer,
    tasks: Sequence[Task],
    *,
    system: str = "model",
    details: dict[str, Any] | None = None,
    on_task: Callable[[TemplateResult], None] | None = None,
) -> ChoiceResults:
    """Let `score` judge all choices of all instances of each task, and count the right answers.

    Args:
        score: task → for each instance one score per choice, the higher the better.
        on_task: called after each task, to move a progress bar on.

    Raises:
        HartError: no tasks, a task without instances, fewer than two choices, an answer that is not among them, or
            scores that are not finite.
        ValueError: `score` returned another number of scores than there are choices.
    """
    if not tasks:
        raise HartError("there are no tasks to evaluate on")
    for task in tasks:
        if not task.instances:
            raise HartError(f"{task.label}: has no Instances, nothing to evaluate on")
        for number, instance in enumerate(task.instances):
            check_choices(instance.choices, instance.references, f"{task.label}: instance {instance.id or number}")
    results = []
    for task in tasks:
        result = _judge(task, score(task))
        results.append(result)
        if on_task is not None:
            on_task(result)
    return ChoiceResults(system, tuple(results), dict(details or {}))


def majority(task: Task) -> list[list[float]]:
    """Baseline that always gives the task's most frequent answer (in hindsight), by its place among the choices."""
    places = [_place(instance) for instance in task.instances]
    best = max(set(places), key=lambda place: (places.count(place), -place))
    return [[float(place == best) for place in range(len(each.choices))] for each in task.instances]


def chance(task: Task) -> list[list[float]]:
    """Baseline without a preference; its accuracy is what guessing earns on average."""
    return [[0.0] * len(instance.choices) for instance in task.instances]


BASELINES: dict[str, ChoiceScorer] = {"majority": majority, "chance": chance}


def comparison_table(
    results: Sequence[ChoiceResults], *, summary: Literal["mean", "median"] = "mean", title: str | None = None
) -> Table:
    """One row per system, one column per held-out task in the paper's order, then the average (tables 4 and 5)."""
    rows = {result.system: result.columns(fmean if summary == "mean" else median) for result in results}
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    table = Table(title=Text(title) if title else None, title_style="bold", title_justify="left")
    table.add_column("system", overflow="fold")
    for name in (*names, "Avg."):
        table.add_column(name, justify="right")
    for result in results:
        row = rows[result.system]
        cells = [f"{row[name]:.1f}" if name in row else "–" for name in names]
        table.add_row(Text(result.system), *cells, f"{fmean(row.values()):.1f}")
    return table


def _place(instance: Instance) -> int:
    """Where the answer is among the choices."""
    return next(place for place, choice in enumerate(instance.choices) if choice in instance.references)


def _judge(task: Task, scores: Sequence[Sequence[float]]) -> TemplateResult:
    if [len(own) for own in scores] != [len(instance.choices) for instance in task.instances]:
        raise ValueError(f"{task.label}: the scores are not one for each choice of each instance")
    if not all(math.isfinite(value) for own in scores for value in own):
        raise HartError(f"{task.label}: the scores are not finite; the weights are damaged or have diverged")
    answers = []
    for instance, own in zip(task.instances, scores, strict=True):
        best = [place for place, value in enumerate(own) if value == max(own)]
        right = sum(instance.choices[place] in instance.references for place in best) / len(best)
        tied = len({instance.choices[place] for place in best}) > 1
        answers.append(ChoiceResult(instance.id, best[0], right, list(own), tied))
    f1 = None
    if len({instance.choices for instance in task.instances}) == 1 and not any(answer.tied for answer in answers):
        f1 = 100 * macro_f1([_place(instance) for instance in task.instances], [answer.choice for answer in answers])
    dataset = task.categories[0] if task.categories else dataset_of(task.label)
    return TemplateResult(task.label, dataset, tuple(answers), f1)
