"""Options and the progress bar that several commands share."""

import argparse
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hart.errors import HartError
from hart.runtime.launch import is_first

if TYPE_CHECKING:
    import torch

    from hart.model.adaptation import Adaptation
    from hart.model.main_model import MainModel

MODEL_HELP = "folder or hub name of a trained HART model, or a bundled one: mini, mini-causal (decoder-only)"
GROUPS_HELP = (
    "groups of demonstrations that the hypernetwork reads, each encoded by itself (default: as many as in its training)"
)


def split_overrides(words: Sequence[str], own: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split the words of a command into its own and the fields of a configuration (`--section.field value`).

    argparse alone would parse the value of an unknown field as a positional argument.

    Args:
        words: all words of the command.
        own: the command's own options.
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


def read_configuration(args: argparse.Namespace) -> None:
    """Read the configuration named in `args` and store it there, before slow imports."""
    from hart.training.config import load

    args.configuration = load(args.config, args.overrides)


def keep_texts(words: Sequence[str], options: Mapping[str, int], all_options: Collection[str] = ()) -> list[str]:
    """The words of a command, with the values of `options` marked as texts.

    argparse alone would parse a text that begins with a dash as an option. The type of these options, `text`, removes
    the mark.

    Args:
        options: options whose values are texts, with the number of texts of each.
        all_options: all options of the command, which are never texts.

    Raises:
        HartError: an option stands in the place of a text.
    """
    kept: list[str] = []
    values, of = 0, ""
    for word in words:
        option, given, value = word.partition("=")
        if values and word in all_options:
            count = "a text" if options[of] == 1 else f"{options[of]} texts"
            raise HartError(f"{of} takes {count}, and the option {word} follows after {options[of] - values} of them")
        if values:
            values -= 1
            kept.append(f"{_TEXT}{word}")
        elif given and option in options:
            kept.append(f"{option}={_TEXT}{value}")
        else:
            values, of = options.get(word, 0), word
            kept.append(word)
    return kept


_TEXT = "\0"  # cannot occur in a command line


def text(word: str) -> str:
    """Argument type: a text that UTF-8 can encode."""
    word = word.removeprefix(_TEXT)
    if word.encode("utf-8", "replace").decode() != word:
        raise argparse.ArgumentTypeError(f"must be text in UTF-8; {word!r} holds bytes that are not")
    return word


class Once(argparse.Action):
    """An option of what a command works on, refused when given twice; argparse would keep the last one alone."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        if getattr(namespace, self.dest) is not None:
            raise argparse.ArgumentError(self, "is given twice; give it once")
        setattr(namespace, self.dest, values)


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda if there is a GPU, else cpu)")


def add_base(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--base",
        metavar="B",
        type=text,
        help="folder or hub name of the same base, if it is elsewhere than the model's files say",
    )


def add_dtype(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="weights in memory; bfloat16 takes half of it, and less time where the processor multiplies it "
        "(default: %(default)s)",
    )


def add_overwrite(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help=f"replace {what} in that folder; a folder with other content is refused",
    )


def select_device(name: str | None) -> "torch.device":
    """`hart.runtime.devices.select_device`, which is imported (with torch) only when a command runs."""
    from hart.runtime import devices

    return devices.select_device(name)


def load_base(adaptation: "Adaptation", base: str | None, **options: Any) -> "MainModel":
    """The main model of an adaptation, from the location in `--base` or else in the adaptation.

    Args:
        options: options of `MainModel.from_pretrained`.

    Raises:
        HartError: the base is not there, or differs from the adaptation's.
    """
    from hart.model.main_model import MainModel

    if base is not None:
        main = MainModel.from_pretrained(base, **options)
    else:
        try:
            main = MainModel.from_pretrained(adaptation.base, revision=adaptation.base_revision, **options)
        except HartError as error:
            raise HartError(f"{error}; if the base is elsewhere, give its folder with --base") from error
    main.check_adaptation(adaptation)
    return main


def positive(text: str) -> int:
    """Argument type: a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not '{text}'")
    return int(text)


def natural(text: str) -> int:
    """Argument type: a whole number of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 0, not '{text}'")
    return int(text)


@contextmanager
def progress_bar(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal, with the time left if `total` is known; yields the function that advances it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not (console.is_terminal and is_first())
    ) as progress:
        bar = progress.add_task(what, total=total)
        yield lambda done: progress.advance(bar, done)
