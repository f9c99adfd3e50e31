"""Multiple-choice accuracy by rank classification (§4.2): per template, per data set, and the table of the paper.

A system scores every choice of every instance; the choice with the highest score is the answer (T0's rank
classification). An answer is right if its text equals the target, so identical choices are interchangeable. If
different choices share the highest score, the instance counts with the probability that a random guess among them is
right. T0 takes the first of them instead, which makes a model that cannot tell choices apart right or wrong by their
order. Without ties both rules agree.

A template (a P3 subset) is a task here, and templates of one data set are in one category. The accuracy of a data set
is the mean or the median over its templates, that of ANLI the mean of its three rounds, and the average is over the
columns of the table.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any, Literal

from rich.table import Table
from rich.text import Text

from hart.data.p3.names import dataset_of, held_out
from hart.data.tasks import Instance, Task, check_choices
from hart.errors import HartError
from hart.evaluation.base import Metric, Results, System
from hart.evaluation.metrics import macro_f1

Summary = Literal["mean", "median"]
SUMMARIES: tuple[Summary, ...] = ("mean", "median")
MACRO_F1_COLUMNS = ("CB",)
"""Columns of the table whose macro-F1 is reported, too, as SuperGLUE does for data sets with uneven classes."""


@dataclass(frozen=True)
class ChoiceResult:
    """One answered instance.

    Attributes:
        choice: position of the best score, the first one if several choices share it.
        correct: accuracy of the instance in [0, 1].
        tied: whether different choices share the best score.
    """

    id: str
    choice: int
    correct: float
    scores: list[float]
    tied: bool = False


@dataclass(frozen=True)
class TemplateResult:
    """One task. `macro_f1` (percent) is None if choices differ between instances, or best scores are tied."""

    name: str
    dataset: str
    instances: tuple[ChoiceResult, ...]
    macro_f1: float | None = None

    @property
    def accuracy(self) -> float:
        """Mean accuracy over the instances, in percent."""
        return 100 * fmean(instance.correct for instance in self.instances)

    @property
    def tied(self) -> int:
        """Number of instances in which different choices share the best score."""
        return sum(instance.tied for instance in self.instances)

    @property
    def means(self) -> dict[str, Any]:
        return {"accuracy": self.accuracy, "instances": len(self.instances)}

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "dataset": self.dataset,
            "accuracy": self.accuracy,
            "macro_f1": self.macro_f1,
            "instances": len(self.instances),
            "tied_choices": self.tied,
            "answers": [vars(instance) for instance in self.instances],
        }


@dataclass(frozen=True)
class ChoiceResults(Results):
    """Accuracies of one system; a task is a template."""

    tasks: tuple[TemplateResult, ...]

    MARK = ("tied_choices", "have several best choices with equal scores, and count as a guess among them")

    def of_dataset(self, dataset: str, summary: Callable[[list[float]], float] = fmean) -> float | None:
        """Mean (or median) accuracy over the templates of a data set; None if there are none."""
        own = [template.accuracy for template in self.tasks if template.dataset == dataset]
        return summary(own) if own else None

    def columns(self, summary: Callable[[list[float]], float] = fmean) -> dict[str, float]:
        """Column of the paper's table → accuracy, for evaluated columns in order; other data sets follow by name."""
        grouped = {column: list(datasets) for column, datasets in held_out().items()}
        held = {dataset for datasets in grouped.values() for dataset in datasets}
        grouped |= {t.dataset: [t.dataset] for t in self.tasks if t.dataset not in held}
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
        return {"accuracy": self.accuracy}

    @property
    def marked(self) -> dict[str, int]:
        return {template.name: template.tied for template in self.tasks}

    def means(self) -> dict[str, Any]:
        columns = {"mean": self.columns(), "median": self.columns(median), "macro_f1": self.macro_f1}
        return {"accuracy": self.accuracy, "columns": columns}

    def brief(self) -> dict[str, Any]:
        return {"accuracy": self.accuracy, "columns": self.columns()}

    def tables(self) -> list[Table]:
        """The accuracies of the templates, then the table of the paper with the baselines."""
        several = len({each.dataset for each in self.tasks}) < len(self.tasks)
        others = [each for each in self.beside if each.system != self.system]
        return [
            self.template_table(),
            *(
                comparison_table([self, *others], summary=summary, title=f"accuracy, {summary} over templates")
                for summary in (SUMMARIES if several else SUMMARIES[:1])
            ),
        ]

    @property
    def lines(self) -> list[str]:
        return [f"macro-F1 of {column}: {value:.1f}" for column, value in self.macro_f1.items()]

    @property
    def macro_f1(self) -> dict[str, float]:
        """Column → macro-F1 (percent), mean over its templates, for `MACRO_F1_COLUMNS`."""
        found = {}
        for column in MACRO_F1_COLUMNS:
            datasets = held_out()[column]
            values = [t.macro_f1 for t in self.tasks if t.dataset in datasets and t.macro_f1 is not None]
            if values:
                found[column] = fmean(values)
        return found

    def template_table(self) -> Table:
        """One row per template, in their order."""
        table = Table(title=Text(self.system), title_style="bold", title_justify="left")
        table.add_column("task", overflow="fold")
        for name in ("accuracy", "macro-F1", "instances"):
            table.add_column(name, justify="right")
        for each in self.tasks:
            f1 = "" if each.macro_f1 is None else f"{each.macro_f1:.1f}"
            table.add_row(Text(each.name), f"{each.accuracy:.1f}", f1, str(len(each.instances)))
        return table


def majority(task: Task) -> list[list[float]]:
    """Baseline that always picks the choice whose position is most often the target's in the evaluated instances."""
    places = [_place(instance) for instance in task.instances]
    best = max(set(places), key=lambda place: (places.count(place), -place))
    return [[float(place == best) for place in range(len(each.choices))] for each in task.instances]


def chance(task: Task) -> list[list[float]]:
    """Baseline with equal scores for all choices; its accuracy is the expected accuracy of guessing."""
    return [[0.0] * len(instance.choices) for instance in task.instances]


def comparison_table(results: Sequence[ChoiceResults], *, summary: Summary = "mean", title: str | None = None) -> Table:
    """One row per system, one column per held-out task in the paper's order, then the average (Tables 4, 5)."""
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


def _check(task: Task) -> None:
    for number, instance in enumerate(task.instances):
        check_choices(instance.choices, instance.references, f"{task.label}: instance {instance.id or number}")


BASELINES = (System("majority", score=majority), System("chance", score=chance))
CHOICES = Metric(
    ChoiceResults,
    asked=lambda system: system.score,
    check=_check,
    judge=_judge,
    refusal="the tasks are multiple-choice",
    baselines=BASELINES,
    beside=BASELINES,
)
