"""Selection of the tasks of an evaluation: a split of a collection, or task files."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hart.data.collections import COLLECTIONS
from hart.data.config import DataConfig
from hart.data.input_format import InputFormat
from hart.data.tasks import Task
from hart.errors import HartError
from hart.evaluation.base import System
from hart.runtime.sections import FieldError

SHOTS = 16
"""Default number of demonstrations to draw for each task of a collection without fixed ones."""


@dataclass(frozen=True)
class Selection:
    """Tasks of a collection, or of files.

    Attributes:
        data: name of the collection; None: the tasks are in `task_files`.
        data_dir: folder of the collection; None: the hub.
        task_files: files of tasks with instances, instead of a collection.
        subsets: names or patterns, for a collection with subsets; None: its default ones.
        split: "test" or "validation".
        validation_tasks, data_seed: as `data.validation_tasks` and `data.seed` in training.
        max_instances: the most instances per task; None: the collection's `test_instances`, or all in files.
        num_demonstrations: number of demonstrations to draw for each task of a collection without fixed ones.
        task_text: parts of each task to show: "both", its "definition" alone or its "demonstrations" alone.

    Raises:
        HartError: neither a collection nor files are given, or both.
        hart.runtime.sections.FieldError: an attribute has a wrong value; the error names the attribute.
    """

    data: str | None = None
    data_dir: str | None = None
    task_files: Sequence[str | Path] | None = None
    subsets: list[str] | None = None
    split: str = "test"
    validation_tasks: int = 0
    data_seed: int = 0
    max_instances: int | None = None
    num_demonstrations: int = SHOTS
    task_text: str = "both"

    def __post_init__(self) -> None:
        if (self.data is None) == (not self.task_files):
            raise HartError("give either --data, a collection, or --task, files of your own")
        for name in ("data_dir", "subsets", "split", "validation_tasks") if self.data is None else ():
            if getattr(self, name) != getattr(type(self), name):
                raise FieldError(name, "needs a collection, and files are given; leave it out")
        names = [name for name, collection in COLLECTIONS.items() if not collection.is_text]
        if self.data is not None and self.data not in names:
            raise FieldError("data", f"{self.data!r} is not one of {', '.join(names)}")

    def _config(self, data: str) -> DataConfig:
        collection = COLLECTIONS[data]
        if self.split == "validation" and not self.validation_tasks and not collection.has_validation:
            problem = "give the data.validation_tasks of training, to set aside the same tasks"
            raise FieldError("validation_tasks", problem)
        cap, testing = self.max_instances or collection.test_instances, self.split == "test"
        drawn: dict[str, Any] = {"demonstrations": "sampled", "num_demonstrations": self.num_demonstrations}
        try:
            return DataConfig(
                collection=data,
                dir=self.data_dir,
                train_subsets=None if testing else self.subsets,
                test_subsets=self.subsets if testing else None,
                # Which of the two counts depends on the split.
                max_train_instances=cap,
                max_test_instances=cap,
                validation_tasks=self.validation_tasks,
                seed=self.data_seed,
                **({} if collection.has_demonstrations else drawn),
            )
        except FieldError as error:
            own = {"data.dir": "data_dir", "data.train_subsets": "subsets", "data.test_subsets": "subsets"}
            raise FieldError(own.get(error.field, error.field), error.problem) from None

    @property
    def form(self) -> InputFormat:
        """Input format of these tasks for a model that has no format of its own."""
        return InputFormat() if self.data is None else InputFormat.from_config(self._config(self.data))

    def load(self) -> list[Task]:
        """Load the tasks.

        Raises:
            HartError: files are missing or malformed, a file has no instances, only some of the files have choices, or
                a task lacks the part that `task_text` names.
        """
        return [self._shown(task) for task in self._load()]

    def _shown(self, task: Task) -> Task:
        """The task with only the parts that `task_text` names.

        Raises:
            FieldError: the task lacks this part.
        """
        try:
            match self.task_text:
                case "definition":
                    return replace(task, demonstrations=())
                case "demonstrations":
                    return replace(task, definition="")
        except HartError:
            raise FieldError("task_text", f"is {self.task_text}, and task {task.label} has none") from None
        return task

    def _load(self) -> list[Task]:
        if self.data is not None:
            config = self._config(self.data)
            return config.source.load(config, self.split)
        files = self.task_files or ()
        tasks = [Task.from_file(path) for path in files]
        for path, task in zip(files, tasks, strict=True):
            if not task.instances:
                raise HartError(f"{path}: has no Instances to evaluate on; add some")
        if len({task.multiple_choice for task in tasks}) > 1:
            raise FieldError("task", "some files have choices and some have none; evaluate them separately")
        return [replace(task, instances=task.instances[: self.max_instances]) for task in tasks]

    def other_definition(self, task: Task) -> str | None:
        """The definition of a task in other words; None if its collection has no other definition."""
        return None if self.data is None else COLLECTIONS[self.data].other_definition(task)

    def check_readable(self, system: System, model: str) -> None:
        """Raise `FieldError` if the system of a model reads definitions and the collection has none."""
        if self.data is None or COLLECTIONS[self.data].prompt_format == "instructions":
            return
        if system.form is not None and system.form.reads_definition:
            problem = f"its tasks have no definitions, which {model} reads; give a model trained on {self.data}"
            raise FieldError("data", problem)

    def to_dict(self) -> dict[str, Any]:
        """The attributes in plain JSON types, for the details of results.

        `num_demonstrations` is null where the tasks have demonstrations of their own, as it draws none of them.
        """
        values = {**asdict(self), "task_files": [str(path) for path in self.task_files or ()]}
        if self.data is None or COLLECTIONS[self.data].has_demonstrations:
            values["num_demonstrations"] = None
        return values
