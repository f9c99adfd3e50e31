"""Free answers: ROUGE-L and exact match per task, per category and over all.

Every mean is over instances, not over tasks or categories, times 100, as in Super-NaturalInstructions' own evaluation
(§4.1 reports its ROUGE-L).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from rich.table import Table
from rich.text import Text

from hart.data.tasks import Task
from hart.errors import HartError
from hart.evaluation.base import Metric, Results, System
from hart.evaluation.metrics import exact_match, has_words, rouge_l

UNCATEGORIZED = "(no category)"


@dataclass(frozen=True)
class Score:
    """Means over ``instances`` instances, both in percent."""

    rouge_l: float
    exact_match: float
    instances: int


@dataclass(frozen=True)
class InstanceResult:
    """One prediction; the two scores are fractions in [0, 1]."""

    id: str
    prediction: str
    rouge_l: float
    exact_match: float


@dataclass(frozen=True)
class TaskResult:
    """One task; ``without_words`` is the number of instances whose references have no word that ROUGE-L counts."""

    name: str
    categories: tuple[str, ...]
    instances: tuple[InstanceResult, ...]
    without_words: int = 0

    @property
    def score(self) -> Score:
        return _mean(self.instances)

    @property
    def means(self) -> dict[str, Any]:
        return vars(self.score)

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "categories": list(self.categories),
            **self.means,
            "references_without_words": self.without_words,
            "predictions": [vars(instance) for instance in self.instances],
        }


@dataclass(frozen=True)
class AnswerResults(Results):
    """Scores of free answers."""

    tasks: tuple[TaskResult, ...]

    MARK = (
        "references_without_words",
        "have references without words that ROUGE-L counts, and score 0 in it; see exact match",
    )

    @property
    def overall(self) -> Score:
        """Mean over all instances of all tasks."""
        return _mean(instance for task in self.tasks for instance in task.instances)

    @property
    def categories(self) -> dict[str, Score]:
        """Mean per category, by name; a task with several categories counts in each of them."""
        members: dict[str, list[InstanceResult]] = {}
        for task in self.tasks:
            for category in task.categories or (UNCATEGORIZED,):
                members.setdefault(category, []).extend(task.instances)
        return {name: _mean(members[name]) for name in sorted(members)}

    @property
    def summary(self) -> dict[str, float]:
        return {"rouge_l": self.overall.rouge_l, "exact_match": self.overall.exact_match}

    @property
    def marked(self) -> dict[str, int]:
        return {task.name: task.without_words for task in self.tasks}

    def means(self) -> dict[str, Any]:
        categories = {name: vars(score) for name, score in self.categories.items()}
        return {"overall": vars(self.overall), "categories": categories}

    def tables(self) -> list[Table]:
        # Without categories the second table would repeat the first.
        return [self.task_table(), *([self.category_table()] if set(self.categories) != {UNCATEGORIZED} else [])]

    def task_table(self) -> Table:
        """One row per task, in their order, then the mean."""
        table = _table("task")
        for task in self.tasks:
            _add_row(table, task.name, task.score)
        return self._close(table)

    def category_table(self) -> Table:
        """One row per category, sorted by name, then the mean."""
        table = _table("category")
        for name, score in self.categories.items():
            _add_row(table, name, score)
        return self._close(table)

    def _close(self, table: Table) -> Table:
        table.title = Text(self.system)
        table.add_section()
        _add_row(table, "all instances", self.overall)
        return table


def copy_input(task: Task) -> list[str]:
    """Baseline that answers each query with the query."""
    return [instance.input for instance in task.instances]


def copy_demonstration(task: Task) -> list[str]:
    """Baseline that answers each query with the output of the task's first demonstration.

    Raises:
        HartError: the task has none.
    """
    if not task.demonstrations:
        raise HartError(f"task {task.label}: has no demonstrations to copy an output from; use copy-input")
    return [task.demonstrations[0].output] * len(task.instances)


def comparison_table(results: Sequence[AnswerResults], *, title: str | None = None) -> Table:
    """One row per system: its means over all instances."""
    table = _table("system")
    table.title = Text(title) if title else None
    for result in results:
        _add_row(table, result.system, result.overall)
    return table


def _score_task(task: Task, predictions: Sequence[str]) -> TaskResult:
    if len(predictions) != len(task.instances):
        raise ValueError(f"{task.label}: {len(predictions)} predictions for {len(task.instances)} instances")
    instances = tuple(
        InstanceResult(
            instance.id,
            prediction,
            rouge_l(prediction, instance.references),
            exact_match(prediction, instance.references),
        )
        for instance, prediction in zip(task.instances, predictions, strict=True)
    )
    without_words = sum(not has_words(instance.references) for instance in task.instances)
    return TaskResult(task.label, task.categories, instances, without_words)


def _mean(instances: Iterable[InstanceResult]) -> Score:
    every = list(instances)
    return Score(
        100 * fmean(instance.rouge_l for instance in every),
        100 * fmean(instance.exact_match for instance in every),
        len(every),
    )


def _table(first: str) -> Table:
    table = Table(title_style="bold", title_justify="left")
    table.add_column(first, overflow="fold")
    for name in ("ROUGE-L", "exact match", "instances"):
        table.add_column(name, justify="right")
    return table


def _add_row(table: Table, name: str, score: Score) -> None:
    # As Text, since rich would read "[/b]" or ":car:" in a task's name as markup.
    table.add_row(Text(name), f"{score.rouge_l:.2f}", f"{score.exact_match:.2f}", str(score.instances))


ANSWERS = Metric(
    AnswerResults,
    asked=lambda system: system.answer,
    check=lambda task: None,
    judge=_score_task,
    refusal="the tasks have no choices",
    baselines=(System("copy-input", copy_input), System("copy-demonstration", copy_demonstration)),
)
