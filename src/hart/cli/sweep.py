"""hart sweep: train and score several configurations and seeds, with one table."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hart.cli.options import natural, positive
from hart.cli.printing import say
from hart.errors import HartError

if TYPE_CHECKING:
    from hart.training.sweep_plan import SweepRun

OWN_OPTIONS = ("--help", "--output-dir", "--row", "--seeds", "--jobs", "--processes", "--text-dir")


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "sweep",
        help="train and score several configurations and seeds, and put them into one table",
        description="""\
Train each configuration with each seed and score it on the test tasks, each in a process of its own.
The table has trained parameters, time, memory, losses, mean scores with their deviation over seeds, and the
difference to the first configuration, paired by seed; hart report makes a page of it. What is
compared is named by configuration files, or by one study file: rows that change a base configuration, and
grids of values that are chosen on validation tasks (docs/studies.md). A configuration that pre-trains on
text is trained only; name it before the one that starts from it. An interrupted sweep continues with the
same command, and finished runs are kept. Fields of a configuration (--section.field VALUE) apply to all.""",
        epilog="""\
examples:
  hart sweep configs/studies/procedural.yaml --output-dir runs/procedural --jobs 2
  hart sweep configs/studies/procedural.yaml --output-dir runs/procedural --row hart --row causal --seeds 3 4
  hart sweep runs/table2 configs/mini/hart_sni.yaml configs/mini/hypertuning_sni.yaml --seeds 0 1 2 \\
      --data.dir natural-instructions
  hart sweep runs/pt configs/mini/hypertuning_pt_pretrain.yaml configs/mini/hypertuning_pt_sni.yaml \\
      --data.dir natural-instructions --text-dir c4/en --training.max_steps 50""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        usage="""\
hart sweep STUDY.yaml --output-dir OUT [--row NAME ...] [--seeds N ...] [options] [--section.field VALUE ...]
       hart sweep OUT CONFIG.yaml [CONFIG.yaml ...] [--seeds N ...] [options] [--section.field VALUE ...]""",
    )
    parser.add_argument(
        "paths",
        metavar="FILE",
        nargs="+",
        type=Path,
        help="a study file, or configurations, compared by file name; before them OUT where --output-dir is not given",
    )
    parser.add_argument(
        "--output-dir", metavar="OUT", type=Path, help="folder of the sweep: OUT/NAME/seed-N/, table.md, table.json"
    )
    parser.add_argument("--row", metavar="NAME", action="append", help="only this row of a study; can be given again")
    parser.add_argument(
        "--seeds", metavar="N", nargs="+", type=natural, help="default: the study's own; of configurations 0"
    )
    parser.add_argument(
        "--jobs",
        metavar="N",
        type=positive,
        default=1,
        help="runs side by side, each with its share of the cores, or with a GPU of its own (default: 1)",
    )
    parser.add_argument(
        "--processes", metavar="N", type=positive, default=1, help="processes that train each run (default: 1)"
    )
    parser.add_argument(
        "--text-dir", metavar="D", help="folder of C4's files, for configurations that pre-train (default: the hub)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from hart.analysis.paper import check_places
    from hart.training.sweep import sweep
    from hart.training.sweep_plan import plan
    from hart.training.sweep_study import is_study, plan_study, read_study
    from hart.training.sweep_table import markdown

    out, *files = args.paths if args.output_dir is None else (args.output_dir, *args.paths)
    if not files:
        raise HartError(f"no configuration follows OUT ({out}); add configurations, or give a study with --output-dir")
    if args.seeds and len({*args.seeds}) < len(args.seeds):
        raise HartError("--seeds has a seed twice; remove one")
    listing = None
    if any(is_study(file) for file in files):
        if len(files) > 1:
            raise HartError(f"{files[1]}: a study must be the only file; give one study, or configurations")
        study = read_study(files[0])
        for row in study.rows:
            try:
                check_places(row.paper)
            except HartError as error:
                raise HartError(f"{row.where}: paper: {error}") from None
        listing = study.listing()
        runs = plan_study(
            study, out, names=args.row, seeds=args.seeds, overrides=args.overrides, text_dir=args.text_dir
        )
    elif args.row:
        raise HartError("--row: needs a study, and configurations are given; leave it out")
    else:
        runs = plan(out, files, args.seeds or [0], args.overrides, args.text_dir)
    missed: list[SweepRun] = []
    try:
        rows = sweep(
            out, runs, jobs=args.jobs, processes=args.processes, listing=listing, say=say, missed=missed.append
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command continues with the remaining runs") from None
    say(markdown(rows), end="")
    if not any(row["runs"] for row in rows):
        raise HartError(f"{out}: no run has results; the lines above say why")
    if missed:
        more = f" and {len(missed) - 1} more" if len(missed) > 1 else ""
        raise HartError(f"{out}: {missed[0].label}{more} not done; the lines above say why")
