"""The command `hart`: one subcommand per file, each a thin layer over the Python surface.

A file offers `add_parser(subparsers)` and `run(args)`. Parsing imports nothing heavy, so that `--help` answers at once;
torch and transformers are imported when a command runs.

Exit status: 0; 1 where a command answers no (`estimate` for what does not fit), or all is done and saved but nobody
read what was printed; 2 after `hart: error: <one line>` for a mistake of the user; 130 when interrupted.
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
"""Commands that take fields of a configuration, and the options that are none."""
TEXTS = {"adapt": adapt.TEXTS, "predict": predict.TEXTS, "serve": serve.TEXTS, "tasks": tasks.TEXTS}
"""Commands with options whose values are any text, and the number of texts of each."""


def command() -> NoReturn:
    """The command `hart` and `python -m hart`: `main`, and the end of the process."""
    end_with(main)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Args:
        argv: the words after `hart`; None takes those of this process.
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
        # The reader of our answers went away (`hart predict … | head`): nobody to say anything to.
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
        # One that another part of the command has is not misspelt.
        meant = [near for word in named if word not in options for near in get_close_matches(word, options, n=1)]
        advice = f"; did you mean {' and '.join(meant)}?" if meant else ""
        raise HartError(f"unrecognized arguments: {' '.join(unknown)}{advice} (see hart {args.command} --help)")
    args.overrides = overrides
    with _own_messages():
        ensure_home()
        if "read" in args:
            args.read(args)  # a mistake in a configuration is told before torch is imported
        if "light" not in args:
            silence_libraries()
        return args.run(args) or 0


class _Parser(argparse.ArgumentParser):
    """Reports mistakes like every other mistake, in one line.

    Attributes:
        made: parsers of commands by what they are called with.
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
    """The options of a command and of what is below it, as their usage shows them."""
    usages = [each.format_usage() for prog, each in _Parser.made.items() if f"{prog} ".startswith(f"hart {command} ")]
    return sorted({option for usage in usages for option in re.findall(r"(?<!\w)--[a-z][a-z-]*", usage)})


def _version() -> str:
    return version_of(DISTRIBUTION) or "of a folder that is not installed"


@contextmanager
def _own_messages() -> Iterator[None]:
    """Within, what `hart` logs appears as `hart: …` on the terminal."""
    logger = logging.getLogger("hart")
    handler, level, propagate = _Terminal(), logger.level, logger.propagate
    logger.addHandler(handler)
    # Libraries give the root logger a handler of their own, which would say everything again.
    logger.propagate = False
    # Of several processes the first one speaks; errors come from any.
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
