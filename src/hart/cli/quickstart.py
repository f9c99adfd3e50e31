"""hart quickstart: train, evaluate, plot and adapt with the bundled base, in a few minutes on two cores."""

import argparse
from typing import Any

from hart.cli.options import positive
from hart.cli.printing import console, tell


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "quickstart",
        help="train, evaluate on unseen tasks, plot, adapt one new task: offline, in minutes",
        description="Train a hypernetwork for the bundled base on the bundled tasks, evaluate it on unseen tasks "
        "beside the un-adapted base, draw the losses and scores, and adapt one new task in one forward pass. "
        "Needs neither network nor GPU; about ten minutes on two CPU cores. After an interrupt the same command "
        "continues.",
        epilog="example: hart quickstart --output-dir runs/quickstart",
    )
    parser.add_argument("--output-dir", default="runs/quickstart", help="folder of the run (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and data (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="training steps, for a shorter or longer run")
    parser.add_argument(
        "--processes",
        type=positive,
        metavar="N",
        help="training processes on the CPU (default: 2 with at least two cores and no GPU, else 1)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:

    from hart.runtime.launch import sensible_processes
    from hart.training.quickstart import quickstart, quickstart_config
    from hart.training.stopping import Stopped

    config = quickstart_config(args.output_dir, seed=args.seed)
    if args.steps is not None:
        config = config.changed(training={"max_steps": args.steps})
    groups = config.training.batch_size // config.training.queries_per_task
    try:
        quickstart(config, console(), processes=args.processes or sensible_processes(groups))
    except Stopped as stop:
        tell(f"hart: {stop}; the same command continues from there")
        return stop.status
    return 0
