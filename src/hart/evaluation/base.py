"""What an evaluation is made of: a system that answers tasks, a metric that judges the answers, and the results."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from rich.table import Table

from hart.data.input_format import InputFormat
from hart.data.prompts import Cuts
from hart.data.tasks import Task
from hart.runtime.files import write_json

Predictor = Callable[[Task], list[str]]
"""Task → one answer for each of its instances, in their order."""
ChoiceScorer = Callable[[Task], list[list[float]]]
"""Task → for each of its instances one score per choice, the higher the better."""


@dataclass(frozen=True)
class System:
    """What is evaluated: a model, or a baseline that needs none.

    Attributes:
        name: in tables and in the file.
        answer: how it answers in its own words, if it does.
        score: how it judges the choices of multiple-choice instances, if it does.
        form: how its model reads; None: there is no model.
        details: provenance to keep in the file.
        cuts: takes note of what did not fit into the model's limits.
        model: the `HartModel` that is adapted, if it is one.
    """

    name: str
    answer: Predictor | None = None
    score: ChoiceScorer | None = None
    form: InputFormat | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    cuts: Cuts = field(default_factory=Cuts)
    model: Any = None


@dataclass(frozen=True)
class Results(ABC):
    """Scores of one system.

    Attributes:
        details: provenance for the file.
        beside: results of the metric's own baselines.
        diagnostics, robustness: for the file, if they were measured (`hart.evaluation.diagnostics`, `.robustness`).
    """

    system: str
    tasks: tuple[Any, ...]
    details: dict[str, Any] = field(default_factory=dict)
    beside: tuple[Any, ...] = ()
    diagnostics: dict[str, Any] = field(default_factory=dict)
    robustness: dict[str, Any] = field(default_factory=dict)

    MARK = ("", "")
    """What a reader of the scores should know of some instances: its name in the file, and in words."""

    @property
    @abstractmethod
    def summary(self) -> dict[str, float]:
        """The means over all, the one that counts first; where it is equal, the next decides."""

    @property
    @abstractmethod
    def marked(self) -> dict[str, int]:
        """Task → how many of its instances `MARK` is about."""

    @abstractmethod
    def means(self) -> dict[str, Any]:
        """What the file says beside the single tasks."""

    def brief(self) -> dict[str, Any]:
        """What another system's file says of these results."""
        return self.summary

    @abstractmethod
    def tables(self) -> list[Table]: ...

    @property
    def per_task(self) -> dict[str, dict[str, Any]]:
        """Task name → its means."""
        return {task.name: task.means for task in self.tasks}

    @property
    def marks(self) -> dict[str, Any]:
        """The counts of the marked instances, for the details; empty if there are none."""
        names = [name for name, count in self.marked.items() if count]
        if not names:
            return {}
        total = sum(len(task.instances) for task in self.tasks)
        counts = {"instances": sum(self.marked.values()), "of": total, "tasks": len(names), "of_tasks": len(self.tasks)}
        return {self.MARK[0]: {**counts, "first": names[0]}}

    @property
    def remarks(self) -> list[str]:
        """The marks as sentences."""
        counted = "{instances} of {of} instances (in {tasks} of {of_tasks} tasks, first: {first})"
        return [f"{counted.format(**mark)} {self.MARK[1]}" for mark in self.marks.values()]

    @property
    def lines(self) -> list[str]:
        """What is printed behind the tables."""
        return []

    def to_dict(self) -> dict[str, Any]:
        """The content of results.json: plain JSON types, means before the single answers."""
        details = {**self.details, **self.marks}
        if self.beside:
            details["baselines"] = {each.system: each.brief() for each in self.beside}
        tasks = [task.to_dict() for task in self.tasks]
        measured = {name: found for name in ("diagnostics", "robustness") if (found := getattr(self, name))}
        return {"system": self.system, "details": details, **self.means(), **measured, "tasks": tasks}

    def save(self, path: str | Path) -> None:
        """Write results.json, whole or not at all.

        Raises:
            HartError: the path is a folder or cannot be written.
        """
        write_json(path, self.to_dict())


R = TypeVar("R", bound=Results)


@dataclass(frozen=True)
class Metric(Generic[R]):
    """How the instances of tasks are asked for and judged.

    Attributes:
        results: what comes out.
        asked: the way a system is asked, task → outputs; None if it has no such way.
        check: refuses a task that cannot be judged.
        judge: task, outputs → the task's result.
        refusal: why a system that cannot be asked so is refused, in words.
        baselines: systems that need no model.
        beside: those of them that are evaluated beside every system.
    """

    results: type[R]
    asked: Callable[[System], Callable[[Task], Any] | None]
    check: Callable[[Task], None]
    judge: Callable[[Task, Any], Any]
    refusal: str
    baselines: Sequence[System]
    beside: Sequence[System] = ()
