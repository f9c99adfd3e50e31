"""hart train: a hypernetwork from a configuration file."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from hart.cli.options import select_device

_OWN_OPTIONS = ("--help", "--device")


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "train",
        help="train a hypernetwork from a YAML configuration",
        description="""\
Train a hypernetwork for a frozen base as a YAML file says. Any field of its sections model, data
and training can be given behind it as --section.field VALUE. The run's folder gets config.yaml,
metrics.jsonl, checkpoints and final/, the model that the other commands take. An interrupted run
goes on from its last checkpoint when the same command is given again.""",
        epilog="""\
example:
  hart train configs/mini/hart_sni.yaml --data.dir natural-instructions --training.max_steps 2000""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        usage="hart train CONFIG.yaml [--section.field VALUE ...] [--device {cpu,cuda}]",
    )
    parser.add_argument("config", metavar="CONFIG.yaml", help="configuration; fields left out keep their defaults")
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        help="default: cuda if there is a GPU, else cpu; CUDA_VISIBLE_DEVICES says which GPUs",
    )
    parser.set_defaults(run=run)


def split_overrides(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words of a `train` command without the fields of its configuration, and these with their values.

    argparse alone would take the value of a field that it does not know for CONFIG.yaml. Words of other commands
    come back as they are.
    """
    if not words or words[0] != "train":
        return list(words), []
    kept, overrides = [], []
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        if not word.startswith("--") or word.partition("=")[0] in _OWN_OPTIONS:
            kept.append(word)
            continue
        overrides.append(word)
        if "=" not in word and waiting and not waiting[0].startswith("--"):
            overrides.append(waiting.pop(0))
    return kept, overrides


def run(args: argparse.Namespace) -> None:
    if args.device == "cpu":
        # The Trainer takes every GPU that it sees.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""

    from hart import config as configuration
    from hart.training import train

    select_device(args.device)
    config = configuration.load(args.config, args.overrides)
    try:
        # A bar that is drawn anew each second has no place in a log file.
        final = train(config, quiet=not sys.stderr.isatty())
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command goes on from the last checkpoint") from None
    print(f"trained model: {final}")
