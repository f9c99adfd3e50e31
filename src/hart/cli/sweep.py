"""hart sweep: several configurations and seeds, one table."""

import argparse
from pathlib import Path
from typing import Any

from hart.cli.options import natural
from hart.cli.printing import say

OWN_OPTIONS = ("--help", "--seeds", "--text-dir")


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "sweep",
        help="train and score several configurations and seeds, and put them into one table",
        description="""\
Train each configuration with each seed and score it on the test tasks, each in a process of its own.
The table has trained parameters, time, memory, losses, mean scores with their deviation over seeds, and the
difference to the first configuration, paired by task and seed. A configuration that pre-trains on text is
trained only; name it before the one that starts from it. A sweep that was interrupted goes on with the
same command; what is done is not done again. Fields of a configuration (--section.field VALUE) apply to all.""",
        epilog="""\
examples:
  hart sweep runs/table2 configs/mini/hart_sni.yaml configs/mini/hypertuning_sni.yaml --seeds 0 1 2 \\
      --data.dir natural-instructions
  hart sweep runs/pt configs/mini/hypertuning_pt_pretrain.yaml configs/mini/hypertuning_pt_sni.yaml \\
      --data.dir natural-instructions --text-dir c4/en --training.max_steps 50""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        usage="hart sweep OUT CONFIG.yaml [CONFIG.yaml ...] [--seeds N ...] [--text-dir D] [--section.field VALUE ...]",
    )
    parser.add_argument(
        "out", metavar="OUT", type=Path, help="folder of the sweep: OUT/NAME/seed-N/, table.md, table.json"
    )
    parser.add_argument("configs", metavar="CONFIG.yaml", nargs="+", type=Path, help="what is compared, by file name")
    parser.add_argument("--seeds", metavar="N", nargs="+", type=natural, default=[0], help="default: 0")
    parser.add_argument(
        "--text-dir", metavar="D", help="folder of C4's files, for configurations that pre-train (default: the hub)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from hart.training.sweep import markdown, plan, sweep

    runs = plan(args.out, args.configs, args.seeds, args.overrides, args.text_dir)
    try:
        rows = sweep(args.out, runs, say=say)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command goes on with what is left") from None
    say(markdown(rows), end="")
