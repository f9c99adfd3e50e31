"""Adding tasks atomically to a folder of task files in the layout of Super-NaturalInstructions."""

import os
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path

from hart.data.task_folders import TASKS, draw_names, list_file, read_list, task_file
from hart.data.tasks import Task
from hart.errors import HartError
from hart.runtime.files import write_text
from hart.runtime.files.writing import new_name, reason


def check_new(folder: Path, names: Sequence[str], *, overwrite: bool) -> None:
    """Raise `HartError` if a task is in the folder already and `overwrite` is False."""
    there = [name for name in names if task_file(folder, name).exists()]
    if there and not overwrite:
        more = f", and {len(there) - 1} more of these tasks" if len(there) > 1 else ""
        raise HartError(
            f"{task_file(folder, there[0])}: exists{more}; give --overwrite to replace it, or another folder"
        )


def drawn_for_testing(names: Sequence[str], number: int, seed: int) -> set[str]:
    """The names of the tasks that are set aside as test tasks.

    Raises:
        HartError: no training task would be left.
    """
    if number and number >= len(names):
        raise HartError(
            f"--test-tasks: {number} of {len(names)} tasks cannot be set aside; at least one must be left to train on"
        )
    return draw_names(names, number, seed, "test")


def tested_before(folder: Path, names: Sequence[str]) -> set[str]:
    """Those of the names that a folder's list of test tasks has."""
    path = list_file(folder, "test")
    return set(read_list(path) if path.exists() else ()).intersection(names)


def add_tasks(
    folder: Path,
    tasks: Sequence[Task],
    *,
    testing: Collection[str] | None,
    overwrite: bool,
    held_out: Sequence[Task] = (),
) -> None:
    """Write the files of tasks into a folder, and their names into its lists.

    All files are first written beside their places and then renamed, the lists last, so that an interruption leaves
    neither an incomplete file nor a name without a file. A task without instances is in no list: models can only adapt
    to it.

    Args:
        testing: names of the tasks for the list of test tasks; all others are training tasks. None: replaced tasks stay
            in their list, new ones are training tasks.
        held_out: further tasks, for the list of test tasks.

    Raises:
        HartError: a task exists and `overwrite` is False, or the folder cannot be written.
    """
    tasks = [*tasks, *held_out]
    names = [task.name for task in tasks]
    check_new(folder, names, overwrite=overwrite)
    lists = {official: list_file(folder, official) for official in ("test", "train")}
    listed = {official: read_list(path) if path.exists() else [] for official, path in lists.items()}
    if testing is None:
        testing = tested_before(folder, names)
    testing = {*testing, *(task.name for task in held_out)}
    for official, own in listed.items():
        usable = [task.name for task in tasks if task.instances and (task.name in testing) == (official == "test")]
        kept = [name for name in own if name not in names or name in usable]
        listed[official] = kept + [name for name in usable if name not in kept]
    work = new_name(folder)
    try:
        (folder / TASKS).mkdir(parents=True, exist_ok=True)
        work.mkdir(mode=0o700)
        for task in tasks:
            task.save(work / f"{task.name}.json")
        for name in names:
            os.replace(work / f"{name}.json", task_file(folder, name))
    except (OSError, HartError) as error:
        # The message names a temporary path beside the folder, which is unknown to users.
        cause = error if isinstance(error, OSError) else error.__cause__
        why = reason(cause) if isinstance(cause, OSError) else str(error)
        raise HartError(f"{folder}: cannot be written ({why})") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    for official, path in lists.items():
        if listed[official]:
            write_text(path, "".join(f"{name}\n" for name in listed[official]))
        else:
            path.unlink(missing_ok=True)
