"""The Public Pool of Prompts as a collection: tasks without definitions, whose demonstrations are other rows (§4.2)."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from hart.data.base import Collection
from hart.data.p3.names import dataset_of, sampling_size
from hart.data.p3.subsets import DEFAULT_HUB_NAME, load_p3
from hart.data.tasks import Task

if TYPE_CHECKING:
    from hart.data.config import DataConfig


class P3(Collection):
    name = "p3"
    hub_name = DEFAULT_HUB_NAME
    prompt_format = "prompts"
    input_eos = False  # T0's inputs have no end of sequence, its targets do
    has_demonstrations = False
    has_subsets = True
    limits_length = True
    test_instances = None

    def load(self, data: "DataConfig", split: str) -> list[Task]:
        """As `Collection.load`; validation tasks are all templates of `data.validation_tasks` training data sets."""
        testing = split == "test"
        return load_p3(
            data.dir,
            split,
            subsets=data.test_subsets if testing else data.train_subsets,
            num_demonstrations=data.num_demonstrations * data.demonstration_groups,
            max_instances=data.max_test_instances if testing else data.max_train_instances,
            seed=data.seed,
            validation_tasks=data.validation_tasks,
            hub_name=data.hub_name or self.hub_name,
        )

    def problems(self, data: "DataConfig") -> Iterator[tuple[str, str]]:
        yield from super().problems(data)
        if data.demonstrations_to != "nowhere" and not data.num_demonstrations:
            yield (
                "num_demonstrations",
                f"is 0, and {self.name} has no definitions: the task would be empty; set it to 1 or more",
            )
        if data.explanations:
            yield "explanations", f"must be false with {self.name}, which has no explanations"

    def training_unit(self, task: Task) -> str:
        """As `Collection.training_unit`: the data set with all its templates."""
        return dataset_of(task.name)

    def sampling_size(self, task: Task) -> int:
        """As `Collection.sampling_size`, with T0's cap: the templates of a large data set share 500,000 rows."""
        return sampling_size(task.name, len(task.instances))
