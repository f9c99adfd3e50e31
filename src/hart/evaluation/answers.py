"""Scoring a system on tasks: per task, per category and over all, as a table and as results.json.

A system is a function from a task to one prediction per instance, so a trained model, an un-adapted
base and the copy baselines go the same way. Every mean is over instances, not over tasks or
categories (Super-NaturalInstructions' own evaluation; section 4.1 reports its ROUGE-L), times 100.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.table import Table
from rich.text import Text

from hart.data.tasks import Task
from hart.errors import HartError
from hart.evaluation.marks import count_marks, counted
from hart.evaluation.metrics import exact_match, has_words, rouge_l
from hart.runtime.files import write_json

Predictor = Callable[[Task], list[str]]

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
    """One task; of ``without_words`` instances no reference has a word that ROUGE-L counts."""

    name: str
    categories: tuple[str, ...]
    instances: tuple[InstanceResult, ...]
    without_words: int = 0

    @property
    def score(self) -> Score:
        return _mean(self.instances)


@dataclass(frozen=True)
class Results:
    """Scores of one system; ``details`` is provenance for the file (model, data, split, seed)."""

    system: str
    tasks: tuple[TaskResult, ...]
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def overall(self) -> Score:
        """Mean over all instances of all tasks."""
        return _mean(instance for task in self.tasks for instance in task.instances)

    @property
    def categories(self) -> dict[str, Score]:
        """Mean per category, by name; a task that has several counts in each of them."""
        members: dict[str, list[InstanceResult]] = {}
        for task in self.tasks:
            for category in task.categories or (UNCATEGORIZED,):
                members.setdefault(category, []).extend(task.instances)
        return {name: _mean(members[name]) for name in sorted(members)}

    @property
    def summary(self) -> dict[str, float]:
        """The means over all instances, the one that counts first; where it is equal, the next decides."""
        return {"rouge_l": self.overall.rouge_l, "exact_match": self.overall.exact_match}

    @property
    def marks(self) -> dict[str, Any]:
        """What a reader of the scores should know of them, for the details; empty if nothing."""
        counts = {task.name: task.without_words for task in self.tasks}
        return count_marks("references_without_words", counts, self.overall.instances)

    @property
    def remarks(self) -> list[str]:
        """The marks as sentences."""
        what = "have references without a word that ROUGE-L counts, and score 0 in it; see exact match"
        return [f"{counted(mark)} {what}" for mark in self.marks.values()]

    @property
    def per_task(self) -> dict[str, dict[str, Any]]:
        """Task name → its means."""
        return {task.name: vars(task.score) for task in self.tasks}

    def task_table(self) -> Table:
        """One row per task in the order given, then the mean."""
        table = _table("task")
        for task in self.tasks:
            _add_row(table, task.name, task.score)
        return self._close(table)

    def category_table(self) -> Table:
        """One row per category by name, then the mean."""
        table = _table("category")
        for name, score in self.categories.items():
            _add_row(table, name, score)
        return self._close(table)

    def _close(self, table: Table) -> Table:
        table.title = Text(self.system)
        table.add_section()
        _add_row(table, "all instances", self.overall)
        return table

    def to_dict(self) -> dict[str, Any]:
        """The content of results.json: plain JSON types, means before the single predictions."""
        return {
            "system": self.system,
            "details": {**self.details, **self.marks},
            "overall": vars(self.overall),
            "categories": {name: vars(score) for name, score in self.categories.items()},
            "tasks": [
                {
                    "name": task.name,
                    "categories": list(task.categories),
                    **vars(task.score),
                    "references_without_words": task.without_words,
                    "predictions": [vars(instance) for instance in task.instances],
                }
                for task in self.tasks
            ],
        }

    def save(self, path: str | Path) -> None:
        """Write results.json, whole or not at all.

        Raises:
            HartError: the path is a folder or cannot be written.
        """
        write_json(path, self.to_dict())


def evaluate_tasks(
    predict: Predictor,
    tasks: Sequence[Task],
    *,
    system: str = "model",
    details: dict[str, Any] | None = None,
    on_task: Callable[[TaskResult], None] | None = None,
) -> Results:
    """Let ``predict`` answer all instances of each task, and score the answers.

    Args:
        predict: task -> one prediction per instance, in the order of ``task.instances``.
        system: name of the system in tables and in the file.
        details: provenance to keep in the file.
        on_task: called after each task, to move a progress bar or a log on.

    Raises:
        HartError: no tasks, or a task that has no instances.
        ValueError: ``predict`` returned another number of predictions than there are instances.
    """
    if not tasks:
        raise HartError("there are no tasks to evaluate on")
    # All tasks are looked at first: the mistake should not show after an hour of generation.
    for task in tasks:
        if not task.instances:
            raise HartError(f"{task.label}: has no Instances, nothing to evaluate on")
    results = []
    for task in tasks:
        result = _score_task(task, predict(task))
        results.append(result)
        if on_task is not None:
            on_task(result)
    return Results(system, tuple(results), dict(details or {}))


def copy_input(task: Task) -> list[str]:
    """Baseline that answers each query with the query."""
    return [instance.input for instance in task.instances]


def copy_demonstration(task: Task) -> list[str]:
    """Baseline that answers each query with the output of the task's first demonstration."""
    return [task.demonstrations[0].output] * len(task.instances)


COPY_BASELINES: dict[str, Predictor] = {
    "copy-input": copy_input,
    "copy-demonstration": copy_demonstration,
}


def comparison_table(results: Sequence[Results], *, title: str | None = None) -> Table:
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
