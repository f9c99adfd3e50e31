"""hart train: train a system from a configuration file."""

import argparse
import os
from typing import Any

from hart.cli.options import positive, read_configuration, select_device
from hart.cli.printing import say, tell
from hart.runtime.launch import is_first, is_one_of_several, run_hart

OWN_OPTIONS = ("--help", "--device", "--processes")
"""Options that are not fields of a configuration (`hart.cli.options.split_overrides`)."""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "train",
        help="train a hypernetwork from a YAML configuration",
        description="""\
Train a hypernetwork for a frozen base as a YAML file says. Any field of its sections model, data,
training and distillation can be given behind it as --section.field VALUE. The run's folder gets
config.yaml, metrics.jsonl, checkpoints and final/, the model that the other commands take. An
interrupted run continues from its last checkpoint when the same command is given again; Ctrl-C and
SIGTERM let it finish a step and save, a second Ctrl-C ends it at once.""",
        epilog="""\
examples:
  hart train configs/mini/hart_sni.yaml --data.dir natural-instructions --training.max_steps 2000
  torchrun --nproc-per-node 8 -m hart train configs/t5-large/hart_sni.yaml
  accelerate launch --config_file configs/accelerate/zero2.yaml -m hart train configs/t5-xl/hart_sni.yaml""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        usage="hart train CONFIG.yaml [--section.field VALUE ...] [--device {cpu,cuda}] [--processes N]",
    )
    parser.add_argument("config", metavar="CONFIG.yaml", help="configuration; fields left out keep their defaults")
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        help="default: cuda if there is a GPU, else cpu; CUDA_VISIBLE_DEVICES says which GPUs",
    )
    parser.add_argument(
        "--processes",
        type=positive,
        metavar="N",
        default=1,
        help="train in N processes on the CPU cores of this machine (GPUs: use torchrun or accelerate)",
    )
    parser.set_defaults(read=read_configuration, run=run)


def run(args: argparse.Namespace) -> int:
    if args.device == "cpu":
        # Hides GPUs, which accelerate would use.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""

    from hart.training.stopping import Stopped
    from hart.training.train import train

    select_device(args.device)
    try:
        if args.processes > 1 and not is_one_of_several():
            run_hart(["train", args.config, *args.overrides, "--device", "cpu"], args.processes)
            return 0
        final = train(args.configuration)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command continues from the last checkpoint, if there is one yet") from None
    except Stopped as stop:
        if is_first():
            tell(f"hart: {stop}; the same command continues from there")
        return stop.status
    if is_first():
        say(f"trained model: {final}")
    return 0
