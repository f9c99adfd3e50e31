"""hart figures: draw the paper's figures from runs, as PNG, SVG and CSV."""

import argparse
from pathlib import Path
from typing import Any

from hart.cli.options import add_base, add_device, positive, progress_bar, select_device
from hart.cli.printing import say
from hart.errors import HartError


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "figures",
        help="draw the paper's figures from runs, with the numbers behind them",
        description="""\
Draw each figure of the paper that the given runs can give, and write the numbers behind it as CSV; of the others
one line says what they need. Runs of one configuration with several seeds become one line with a band.
  fig1_attention         attention between layers (schemes bidirectional and causal)
  fig3_autoregression    prediction loss of layer-by-layer schemes and of scheme shared
  fig4_consistency       prediction loss with and without consistency, its spikes and variance
  fig5_consistency_loss  consistency loss
  fig5_tsne              t-SNE of layer states by layer and by task (needs scikit-learn)
  states_cosine          cosine between the states of layers, run by run
Definitions: docs/figures.md.""",
        epilog="""\
examples:
  hart figures runs/quickstart
  hart figures runs/sweep --output-dir figures
  hart figures runs/sweep/causal runs/sweep/hart --formats svg
  hart figures mini --max-tasks 4""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "runs", metavar="RUN", nargs="+", help="folder of a run, of a sweep or of a part of one, of a model, or mini"
    )
    parser.add_argument(
        "--output-dir", metavar="D", type=Path, default=Path("figures"), help="default: %(default)s; files are replaced"
    )
    parser.add_argument("--formats", nargs="+", choices=("png", "svg"), default=("png", "svg"), help="default: png svg")
    parser.add_argument(
        "--max-tasks", metavar="N", type=positive, default=16, help="test tasks that models read (default: %(default)s)"
    )
    parser.add_argument("--data-dir", metavar="D", help="folder of the tasks, if not where the runs say (data.dir)")
    add_base(parser)
    add_device(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from hart.analysis.figures import find_groups, make_figures
    from hart.analysis.figures_reading import Reader
    from hart.analysis.figures_states import passes

    device = select_device(args.device)
    groups, remarks = find_groups(args.runs)
    for remark in remarks:
        say(remark)
    data = next((group.config.data for group in groups if group.config is not None), None)
    reader = Reader(max_tasks=args.max_tasks, data=data, data_dir=args.data_dir, base=args.base, device=device)
    sources = [source for group in groups for source in group.sources]
    outcomes = []
    with progress_bar("tasks", passes(sources, reader)) as advance:
        reader.on_task = advance
        for outcome in make_figures(groups, args.output_dir, reader, formats=args.formats):
            outcomes.append(outcome)
            if outcome.problem:
                say(f"{outcome.name}: not made: {outcome.problem}")
            else:
                say(f"{outcome.name}: {', '.join(str(path) for path in outcome.paths)}")
                for remark in outcome.remarks:
                    say(f"  {remark}")
    if all(outcome.problem for outcome in outcomes):
        raise HartError("no figure can be made of these runs; the lines above say why")
