"""hart quickstart: the whole method with what the package brings, in a few minutes on two cores."""

import argparse
from typing import Any


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "quickstart",
        help="train, evaluate on unseen tasks, plot, adapt one new task: offline, in minutes",
        description="Train a hypernetwork for the bundled base on the bundled tasks, evaluate it on unseen tasks "
        "beside the un-adapted base, draw the losses and scores, and adapt one new task in one forward pass. "
        "Needs neither network nor GPU; about ten minutes on two CPU cores. An interrupted run goes on where it was.",
        epilog="example: hart quickstart --output-dir runs/quickstart",
    )
    parser.add_argument("--output-dir", default="runs/quickstart", help="folder of the run (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and data (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="training steps, for a shorter or longer run")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    import dataclasses

    from rich.console import Console

    from hart.quickstart import quickstart, quickstart_config

    config = quickstart_config(args.output_dir, seed=args.seed)
    if args.steps is not None:
        training = dataclasses.replace(config.training, max_steps=args.steps)
        config = dataclasses.replace(config, training=training)
    quickstart(config, Console())
