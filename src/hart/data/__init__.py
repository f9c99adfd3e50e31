"""Tasks, their text and tokens, and the random examples to train on."""

from hart.data.collate import Collator
from hart.data.p3.subsets import load_p3
from hart.data.prompts import Lengths
from hart.data.sampling import TrainingDataset
from hart.data.super_natural_instructions import load_sni
from hart.data.tasks import Demonstration, Instance, Task

__all__ = [
    "Collator",
    "Demonstration",
    "Instance",
    "Lengths",
    "Task",
    "TrainingDataset",
    "load_p3",
    "load_sni",
]
