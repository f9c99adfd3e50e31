"""The interface of collections: the tasks of one benchmark, or text to pre-train on, and how models read them.

A new collection is one file with a subclass and an entry in `hart.data.collections`, where the contract tests find it.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from hart.data.input_format import InputFormat
from hart.data.prompts import PromptFormat, Tokenizer
from hart.data.sampling import Examples, TrainingDataset
from hart.data.tasks import Task

if TYPE_CHECKING:
    from hart.data.config import DataConfig


class Collection(ABC):
    """A collection of tasks, named in `data.collection`; class attributes are common defaults.

    Attributes:
        name: name in configurations and on the command line.
        hub_name: data set on the hub that replaces a folder; None: the collection comes with the package.
        prompt_format: format of its tasks' texts (`hart.data.prompts`).
        input_eos: whether the main model's input ends with the end-of-sequence token.
        has_demonstrations: whether its tasks have fixed demonstrations; else they are sampled from the instances.
        has_subsets: whether `data.train_subsets` and `data.test_subsets` choose among its tasks.
        has_validation: whether it has its own validation split; else training tasks are set aside for it.
        limits_length: whether tasks longer than `data.max_average_length` are left out of training.
        is_text: whether it is text to pre-train on instead of tasks.
        test_instances: default number of instances per task in an evaluation; None: all.
    """

    name: str
    hub_name: str | None
    prompt_format: PromptFormat = "instructions"
    input_eos: bool = True
    has_demonstrations: bool = True
    has_subsets: bool = False
    has_validation: bool = False
    limits_length: bool = False
    is_text: bool = False
    test_instances: int | None = 100

    @abstractmethod
    def load(self, data: "DataConfig", split: str) -> list[Task]:
        """The tasks of `split` ("train", "validation" or "test") under the caps of `data`, with instances.

        Validation tasks never occur in training.

        Raises:
            HartError: there is no such split, or files are missing or malformed.
        """

    def other_definition(self, task: Task) -> str | None:
        """The definition of one of its tasks in other words; None if there is no other wording."""
        return None

    def problems(self, data: "DataConfig") -> Iterator[tuple[str, str]]:
        """Fields of `data` that contradict this collection, each with an error message."""
        if not self.has_subsets:
            for name in ("train_subsets", "test_subsets"):
                if getattr(data, name) is not None:
                    yield name, f"has no effect where data.collection is {self.name}; remove it"
        for name in ("dir", "hub_name") if self.hub_name is None else ():
            if getattr(data, name) is not None:
                yield (
                    name,
                    f"has no effect where data.collection is {self.name}, which comes with the package; remove it",
                )
        if not self.has_demonstrations and data.demonstrations_to != "nowhere" and data.demonstrations != "sampled":
            yield "demonstrations", f"must be sampled with {self.name}, whose tasks have no fixed demonstrations"
        if self.is_text and data.training_tasks is not None:
            yield "training_tasks", f"must be null with {self.name}, which is text and has no tasks"
        if data.demonstration_groups > 1:
            if self.is_text:
                yield "demonstration_groups", f"must be 1 with {self.name}: the hypernetwork reads one segment"
            elif data.demonstrations_to != "hypernetwork":
                yield "demonstration_groups", "must be 1 where no hypernetwork reads the demonstrations"
            elif not data.num_demonstrations:
                yield "demonstration_groups", "must be 1 where num_demonstrations is 0: groups would be empty"

    def training_unit(self, task: Task) -> str:
        """The unit that `data.training_tasks` counts; tasks with the same unit are drawn together."""
        return task.name

    def sampling_size(self, task: Task) -> int:
        """The task's size for proportional task sampling."""
        return len(task.instances)

    def examples(
        self,
        data: "DataConfig",
        tasks: Sequence[Task],
        tokenizer: Tokenizer,
        *,
        length: int,
        seed: int,
        queries_per_task: int,
        reader: Tokenizer | None = None,
        teacher: InputFormat | None = None,
    ) -> Examples:
        """The training examples of a whole run, in the order of its steps.

        Args:
            tokenizer: tokenizer of the main model.
            reader: tokenizer of the hypernetwork, if it differs.
            teacher: input format of a teacher, if there is one: it reads the task before each query; in pre-training,
                all text before the target.

        Raises:
            HartError: tasks or texts cannot be used.
        """
        return TrainingDataset(
            tasks,
            tokenizer,
            InputFormat.from_config(data),
            length=length,
            seed=seed,
            task_sampling=data.task_sampling,
            sizes=[self.sampling_size(task) for task in tasks],
            demonstrations=data.demonstrations,
            queries_per_task=queries_per_task,
            reader=reader,
            teacher=teacher,
        )
