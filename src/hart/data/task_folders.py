"""The folder layout of Super-NaturalInstructions: task files, and the lists of training and test tasks."""

from collections.abc import Sequence
from pathlib import Path

from hart.data.streams import named_stream
from hart.runtime.files import read_text

TASKS = "tasks"
SPLITS = Path("splits", "default")


def list_file(folder: Path, official: str) -> Path:
    """The list of the tasks of "train" or "test" in a folder."""
    return folder / SPLITS / f"{official}_tasks.txt"


def task_file(folder: Path, name: str) -> Path:
    return folder / TASKS / f"{name}.json"


def read_list(path: Path) -> list[str]:
    """The distinct names in a list of tasks.

    Raises:
        HartError: the list cannot be read.
    """
    return list(dict.fromkeys(read_text(path, "a list of tasks").split()))


def draw_names(names: Sequence[str], number: int, seed: int, purpose: str) -> set[str]:
    """Draw `number` of the names, regardless of their order. Draws for different purposes are independent."""
    chosen = named_stream(seed, purpose).choice(len(names), size=number, replace=False)
    ordered = sorted(names)
    return {ordered[index] for index in chosen}
