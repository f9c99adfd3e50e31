"""The collections, and from the `data` section of a configuration to lists of tasks."""

from typing import TYPE_CHECKING, Literal

from hart.data.base import Collection
from hart.data.needle import Needle
from hart.data.p3.collection import P3
from hart.data.procedural.collection import Procedural
from hart.data.segments import Segments
from hart.data.super_natural_instructions import SuperNaturalInstructions
from hart.data.tasks import Task

if TYPE_CHECKING:
    from hart.data.config import DataConfig

COLLECTIONS: dict[str, Collection] = {
    each.name: each
    for each in (SuperNaturalInstructions(), P3(), Procedural(), Needle(), Segments("four"), Segments("three"))
}

# What a configuration may say; type checkers cannot read a table.
if TYPE_CHECKING:
    CollectionName = str
else:
    CollectionName = Literal[tuple(COLLECTIONS)]


def load_tasks(data: "DataConfig", split: str) -> list[Task]:
    """The tasks of `split` ("train", "validation" or "test"), as `Collection.load`."""
    return data.source.load(data, split)
