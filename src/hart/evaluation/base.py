"""The parts of an evaluation: a system that answers tasks, a metric that judges the answers, and the results."""

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
"""Task → one answer per instance, in their order."""
ChoiceScorer = Callable[[Task], list[list[float]]]
"""Task → one score per choice for each instance; higher is better."""


@dataclass(frozen=True)
class System:
    """The system under evaluation: a model, or a baseline without a model.

    Attributes:
        name: name of the system in tables and in results.json.
        answer: generates free answers; None: the system cannot.
        score: scores the choices of multiple-choice instances; None: the system cannot.
        form: input format of the model; None for a baseline without a model.
        details: provenance to keep in results.json.
        cuts: records texts that exceed the model's limits.
        model: the `HartModel` that is adapted; None for all other systems.
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
        system: name of the system.
        tasks: one result per task, as `Metric.judge` returns them.
        details: provenance to keep in results.json.
        beside: results of the metric's own baselines.
        diagnostics, robustness: further measurements for results.json (`hart.evaluation.diagnostics`, `.robustness`);
            empty if they were not made.
    """

    system: str
    tasks: tuple[Any, ...]
    details: dict[str, Any] = field(default_factory=dict)
    beside: tuple[Any, ...] = ()
    diagnostics: dict[str, Any] = field(default_factory=dict)
    robustness: dict[str, Any] = field(default_factory=dict)

    MARK = ("", "")
    """A condition that makes the scores of some instances less telling: its key in results.json, and a sentence."""

    @property
    @abstractmethod
    def summary(self) -> dict[str, float]:
        """Score → mean over all tasks, in percent. Systems are ranked by the first score, ties by the next."""

    @property
    @abstractmethod
    def marked(self) -> dict[str, int]:
        """Task name → number of its instances to which `MARK` applies."""

    @abstractmethod
    def means(self) -> dict[str, Any]:
        """The aggregate scores in results.json, above those of single tasks."""

    def brief(self) -> dict[str, Any]:
        """These results as they stand in the results.json of another system, whose baseline this one is."""
        return self.summary

    @abstractmethod
    def tables(self) -> list[Table]:
        """The tables that are printed."""

    @property
    def per_task(self) -> dict[str, dict[str, Any]]:
        """Task name → its means."""
        return {task.name: task.means for task in self.tasks}

    @property
    def marks(self) -> dict[str, Any]:
        """Counts of the instances to which `MARK` applies, for `details`; empty if there are none."""
        names = [name for name, count in self.marked.items() if count]
        if not names:
            return {}
        total = sum(len(task.instances) for task in self.tasks)
        counts = {"instances": sum(self.marked.values()), "of": total, "tasks": len(names), "of_tasks": len(self.tasks)}
        return {self.MARK[0]: {**counts, "first": names[0]}}

    @property
    def remarks(self) -> list[str]:
        """The content of `marks` as sentences."""
        counted = "{instances} of {of} instances (in {tasks} of {of_tasks} tasks, first: {first})"
        return [f"{counted.format(**mark)} {self.MARK[1]}" for mark in self.marks.values()]

    @property
    def lines(self) -> list[str]:
        """Lines that are printed after the tables."""
        return []

    def to_dict(self) -> dict[str, Any]:
        """The content of results.json in plain JSON types, means before single answers."""
        details = {**self.details, **self.marks}
        if self.beside:
            details["baselines"] = {each.system: each.brief() for each in self.beside}
        tasks = [task.to_dict() for task in self.tasks]
        measured = {name: found for name in ("diagnostics", "robustness") if (found := getattr(self, name))}
        return {"system": self.system, "details": details, **self.means(), **measured, "tasks": tasks}

    def save(self, path: str | Path) -> None:
        """Write results.json atomically.

        Raises:
            HartError: the path is a folder or cannot be written.
        """
        write_json(path, self.to_dict())


R = TypeVar("R", bound=Results)


@dataclass(frozen=True)
class Metric(Generic[R]):
    """A way to query systems about the instances of tasks, and to judge their outputs.

    Attributes:
        results: class of the results.
        asked: system → its function from a task to outputs; None if the system lacks that function.
        check: raises `HartError` for a task that cannot be judged.
        judge: (task, outputs) → the result of the task.
        refusal: reason in the error message for a system whose `asked` is None.
        baselines: systems without a model.
        beside: baselines that are evaluated along with every system.
    """

    results: type[R]
    asked: Callable[[System], Callable[[Task], Any] | None]
    check: Callable[[Task], None]
    judge: Callable[[Task, Any], Any]
    refusal: str
    baselines: Sequence[System]
    beside: Sequence[System] = ()
