"""The command `hart`: one subcommand per file, each a thin layer over the Python interface.

Each file has `add_parser(subparsers)` and `run(args)`. Parsing imports no large library, so that `--help` is fast;
torch and transformers are imported when a command runs.

Exit status: 0; 1 if the answer of a command is no (`estimate`: does not fit), or if all is done and saved but the
reader of standard output has gone; 2 after `hart: error: <one line>` for an error of the user; 130 when interrupted.
"""

import argparse
import logging
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any, ClassVar, NoReturn

from hart.cli import (
    adapt,
    bench,
    config,
    env,
    estimate,
    evaluate,
    export,
    figures,
    predict,
    quickstart,
    report,
    serve,
    sweep,
    tasks,
    train,
)
from hart.cli.libraries import silence_libraries
from hart.cli.options import keep_texts, split_overrides
from hart.cli.printing import finish, prepare, tell
from hart.errors import HartError
from hart.runtime.environment import DISTRIBUTION, version_of
from hart.runtime.files import ensure_home
from hart.runtime.launch import end_with, is_first

COMMANDS = (
    quickstart,
    tasks,
    train,
    evaluate,
    adapt,
    predict,
    export,
    serve,
    estimate,
    config,
    sweep,
    report,
    figures,
    bench,
    env,
)
CONFIGURED = {
    "train": train.OWN_OPTIONS,
    "sweep": sweep.OWN_OPTIONS,
    "estimate": estimate.OWN_OPTIONS,
    "config": config.OWN_OPTIONS,
}
"""Command that takes fields of a configuration → its other options."""
TEXTS = {"adapt": adapt.TEXTS, "predict": predict.TEXTS, "serve": serve.TEXTS, "tasks": tasks.TEXTS}
"""Command → its options whose values are arbitrary texts, with the number of texts of each."""


def command() -> NoReturn:
    """The command `hart` and `python -m hart`: run `main` and end the process with its status."""
    end_with(main)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Args:
        argv: the words after `hart`; None: those of this process.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0].startswith("--local_rank="):
        del words[0]  # of DeepSpeed's launcher, which says it in the environment too
    prepare()
    try:
        status = _run(words)
    except HartError as error:
        finish()
        tell(f"hart: error: {_one_line(str(error))}")
        return 2
    except KeyboardInterrupt as stop:
        finish()
        tell(f"\nhart: interrupted{f'; {stop}' if str(stop) else ''}")
        return 130
    except BrokenPipeError:
        # The reader of standard output has gone (`hart predict … | head`), so no message is printed.
        finish()
        return 1
    except SystemExit:
        finish()  # the reader of --help
        raise
    return status or finish()


def _run(words: list[str]) -> int:
    overrides: list[str] = []
    parser = _parser()
    options = _options(words[0]) if words else []
    if words and words[0] in CONFIGURED:
        words, overrides = split_overrides(words, CONFIGURED[words[0]])
    if words and words[0] in TEXTS:
        words = keep_texts(words, TEXTS[words[0]], options)
    args, unknown = parser.parse_known_args(words)
    if unknown:
        named = [word.partition("=")[0] for word in unknown if word.startswith("--")]
        # An option of another subcommand is not a misspelling.
        meant = [near for word in named if word not in options for near in get_close_matches(word, options, n=1)]
        advice = f"; did you mean {' and '.join(meant)}?" if meant else ""
        raise HartError(f"unrecognized arguments: {' '.join(unknown)}{advice} (see hart {args.command} --help)")
    args.overrides = overrides
    with _own_messages():
        ensure_home()
        if "read" in args:
            args.read(args)  # errors in a configuration are reported before torch is imported
        if "light" not in args:
            silence_libraries()
        return args.run(args) or 0


class _Parser(argparse.ArgumentParser):
    """Argument parser that reports errors in one line, as all other errors.

    Attributes:
        made: parsers by the words of their command.
    """

    made: ClassVar[dict[str, "_Parser"]] = {}

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.made[self.prog] = self

    def error(self, message: str) -> NoReturn:
        raise HartError(f"{message} (see {self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="hart",
        description="Adapt a frozen language model to an unseen task in one forward pass of a hypernetwork.",
        epilog="example: hart quickstart",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"hart {_version()}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(subparsers)
    return parser


def _options(command: str) -> list[str]:
    """The options of a command and of its subcommands, from their usage texts."""
    usages = [each.format_usage() for prog, each in _Parser.made.items() if f"{prog} ".startswith(f"hart {command} ")]
    return sorted({option for usage in usages for option in re.findall(r"(?<!\w)--[a-z][a-z-]*", usage)})


def _version() -> str:
    return version_of(DISTRIBUTION) or "of a folder that is not installed"


@contextmanager
def _own_messages() -> Iterator[None]:
    """A context in which log messages of `hart` appear as `hart: …` on the terminal."""
    logger = logging.getLogger("hart")
    handler, level, propagate = _Terminal(), logger.level, logger.propagate
    logger.addHandler(handler)
    # Libraries add a handler to the root logger, which would repeat every message.
    logger.propagate = False
    # The first of several processes logs everything, the others only errors.
    logger.setLevel(logging.INFO if is_first() else logging.ERROR)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


class _Terminal(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        kind = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        tell(f"hart: {kind}{_one_line(record.getMessage())}")


def _one_line(text: str) -> str:
    return " ".join(text.splitlines())
