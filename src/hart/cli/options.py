"""What several commands share: options, checks that come before the work, and a progress bar."""

import argparse
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hart.errors import HartError

if TYPE_CHECKING:
    import torch

MODEL_HELP = "folder or hub name of a trained HART model, or mini, the bundled one"


def split_overrides(words: Sequence[str], own: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words of a command without the fields of a configuration (`--section.field value`), and these.

    argparse alone would take the value of a field that it does not know for a positional argument.

    Args:
        words: all words of the command.
        own: the options that are the command's own.
    """
    kept, overrides = [], []
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        if not word.startswith("--") or word.partition("=")[0] in own:
            kept.append(word)
            continue
        overrides.append(word)
        if "=" not in word and waiting and not waiting[0].startswith("--"):
            overrides.append(waiting.pop(0))
    return kept, overrides


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda if there is a GPU, else cpu)")


def add_dtype(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="weights in memory; bfloat16 takes half of it, and less time where the processor multiplies it "
        "(default: %(default)s)",
    )


def select_device(name: str | None) -> "torch.device":
    """The device called `name`, or the best one.

    Raises:
        HartError: no such device on this machine.
    """
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name is None:
        # Of several processes on one machine, each has its own.
        own = os.environ.get("LOCAL_RANK")
        return torch.device("cpu" if not gpus else "cuda" if own is None else f"cuda:{int(own) % gpus}")
    # Not read by torch.device, which takes cuda:999 for some other number.
    match = re.fullmatch(r"cpu|cuda(:(\d+))?", name)
    if match is None:
        raise HartError(f"--device: '{name}' is not a device that hart knows; give cpu, cuda or cuda:N")
    if name != "cpu" and int(match[2] or 0) >= gpus:
        raise HartError(f"--device: '{name}' is not available, torch finds {gpus} GPUs here; give cpu or another one")
    return torch.device(name)


def positive(text: str) -> int:
    """An argument type: a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not '{text}'")
    return int(text)


def natural(text: str) -> int:
    """An argument type: a whole number of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 0, not '{text}'")
    return int(text)


def check_output_file(path: Path) -> None:
    """Refuse before the work what could not be written after it.

    Raises:
        HartError: `path` is a folder, or its folder cannot be written to.
    """
    if path.is_dir():
        raise HartError(f"{path}: is a folder; give the path of a file")
    _check_writable(path)


def check_output_folder(path: Path, *, replaces: str) -> None:
    """As `check_output_file`, for a folder that must be new, empty, or hold a file called `replaces`.

    Raises:
        HartError: `path` exists with other content, or its folder cannot be written to.
    """
    if path.exists():
        names = {each.name for each in path.iterdir()} if path.is_dir() else {path.name}
        if not path.is_dir() or (names and replaces not in names):
            raise HartError(f"{path}: exists with other content; give a new folder")
    _check_writable(path)


def _check_writable(path: Path) -> None:
    nearest = next(each for each in path.absolute().parents if each.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise HartError(f"{path}: cannot be written, {nearest} is not a folder that you may write to")


@contextmanager
def progress_bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar with the time left, where someone can see it; yields the function that moves it on."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(what, total=total)
        yield lambda done: progress.advance(bar, done)
