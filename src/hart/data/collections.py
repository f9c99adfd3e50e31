"""The registry of collections, and loading of the tasks that a `data` section names."""

from typing import TYPE_CHECKING, Literal

from hart.data.base import Collection
from hart.data.needle import Needle
from hart.data.p3.collection import P3
from hart.data.procedural.collection import Procedural
from hart.data.segments import Segments
from hart.data.streams import named_stream
from hart.data.super_natural_instructions import SuperNaturalInstructions
from hart.data.tasks import Task
from hart.errors import HartError

if TYPE_CHECKING:
    from hart.data.config import DataConfig

COLLECTIONS: dict[str, Collection] = {
    each.name: each
    for each in (SuperNaturalInstructions(), P3(), Procedural(), Needle(), Segments("four"), Segments("three"))
}

# The names allowed in configurations, written out for type checkers.
if TYPE_CHECKING:
    CollectionName = str
else:
    CollectionName = Literal[tuple(COLLECTIONS)]


def load_tasks(data: "DataConfig", split: str) -> list[Task]:
    """The tasks of `split` ("train", "validation" or "test"); for training at most `data.training_tasks` units.

    Raises:
        HartError: as in `Collection.load`, or there are fewer training units than `data.training_tasks`.
    """
    tasks = data.source.load(data, split)
    return tasks if split != "train" or data.training_tasks is None else _some(tasks, data, data.training_tasks)


def _some(tasks: list[Task], data: "DataConfig", number: int) -> list[Task]:
    """The tasks of `number` units in an order drawn by `data.seed`: smaller draws are subsets of larger ones."""
    units = sorted({data.source.training_unit(task) for task in tasks})
    if number > len(units):
        raise HartError(
            f"data.training_tasks: {number} is more than the {len(units)} that {data.collection} has; lower it"
        )
    order = named_stream(data.seed, "training tasks").permutation(len(units))
    chosen = {units[place] for place in order[:number]}
    return [task for task in tasks if data.source.training_unit(task) in chosen]
