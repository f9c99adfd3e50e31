"""A folder of task files in the layout of Super-NaturalInstructions, to which tasks are added whole or not at all."""

import os
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path

from hart.data.reading import check_file
from hart.data.streams import named_stream
from hart.data.tasks import Task
from hart.errors import HartError
from hart.runtime.files import write_text
from hart.runtime.files.writing import new_name, reason

TASKS = "tasks"
SPLITS = Path("splits", "default")


def list_file(folder: Path, official: str) -> Path:
    """The list of the tasks of "train" or "test" in a folder."""
    return folder / SPLITS / f"{official}_tasks.txt"


def read_list(path: Path) -> list[str]:
    """The names in a list of tasks, each once.

    Raises:
        HartError: it cannot be read.
    """
    try:
        check_file(path)
        lines = path.read_text(encoding="utf-8-sig").split()
    except (OSError, UnicodeDecodeError) as error:
        raise HartError(f"{path}: cannot read the list of tasks ({error})") from None
    return list(dict.fromkeys(lines))


def check_new(folder: Path, names: Sequence[str], *, overwrite: bool) -> None:
    """Raise `HartError` if one of the tasks is in the folder already and may not be replaced."""
    there = [name for name in names if (folder / TASKS / f"{name}.json").exists()]
    if there and not overwrite:
        more = f", and {len(there) - 1} more of these tasks" if len(there) > 1 else ""
        raise HartError(
            f"{folder / TASKS / there[0]}.json: exists{more}; give --overwrite to replace it, or another folder"
        )


def drawn_for_testing(names: Sequence[str], number: int, seed: int) -> set[str]:
    """Which of the tasks are set aside to test on.

    Raises:
        HartError: none would be left to train on.
    """
    if number and number >= len(names):
        raise HartError(
            f"--test-tasks: {number} of {len(names)} tasks cannot be set aside; at least one must be left to train on"
        )
    chosen = named_stream(seed, "test").choice(len(names), size=number, replace=False)
    ordered = sorted(names)
    return {ordered[index] for index in chosen}


def add_tasks(folder: Path, tasks: Sequence[Task], *, testing: Collection[str], overwrite: bool) -> None:
    """Write the files of tasks into a folder, and their names into its lists.

    All files are written beside their places first and renamed then, the lists last, so that what stops the writing
    leaves no half of a file, and no name without one. A task without instances is in no list: it can be adapted to
    only.

    Args:
        testing: names of those that go into the list of test tasks.

    Raises:
        HartError: a task is there already and may not be replaced, or the folder cannot be written.
    """
    names = [task.name for task in tasks]
    check_new(folder, names, overwrite=overwrite)
    lists = {official: list_file(folder, official) for official in ("train", "test")}
    listed = {official: read_list(path) if path.exists() else [] for official, path in lists.items()}
    for official, own in listed.items():
        kept = [name for name in own if name not in names]
        new = [task.name for task in tasks if task.instances and (task.name in testing) == (official == "test")]
        listed[official] = kept + new
    work = new_name(folder)
    try:
        (folder / TASKS).mkdir(parents=True, exist_ok=True)
        work.mkdir(mode=0o700)
        for task in tasks:
            task.save(work / f"{task.name}.json")
        for name in names:
            os.replace(work / f"{name}.json", folder / TASKS / f"{name}.json")
    except OSError as error:
        raise HartError(f"{folder}: cannot be written ({reason(error)})") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    for official, path in lists.items():
        if listed[official] or path.exists():
            write_text(path, "".join(f"{name}\n" for name in listed[official]))
