"""hart report: one HTML page on the runs of a study."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hart.cli.printing import say, show, tell

if TYPE_CHECKING:
    from rich.table import Table

    from hart.analysis.report_tables import CollectionReport


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "report",
        help="one HTML page of the runs of a sweep: tables, differences, curves, commands",
        description="""\
Put the runs of a sweep's folder on one HTML page that needs no network: the paper's tables with its numbers
beside the measured ones, all rows with their deviations, differences with intervals over seeds and over tasks,
loss curves, configurations, and the command of each run; and all numbers into a CSV file beside it. No model
is loaded. Runs that are not finished are named and left out of the scores.""",
        epilog="""\
examples:
  hart report runs/procedural
  hart report runs/table2 --output table2.html --against hypertuning_sni""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="folder of a sweep: DIR/NAME/seed-N/results.json")
    parser.add_argument(
        "--output", metavar="FILE", type=Path, help="the page (default: DIR/report.html); its CSV file lies beside it"
    )
    parser.add_argument(
        "--against", metavar="NAME", help="row that the others are compared with (default: the first of the study)"
    )
    parser.set_defaults(run=run, light=True)


def run(args: argparse.Namespace) -> None:
    from hart.analysis.report import report

    made = report(args.folder, output=args.output, against=args.against)
    for note in made.study.notes:
        tell(f"hart: {note}")
    show(*(_table(each) for each in made.collections))
    say(f"report: {made.path}")
    say(f"numbers: {made.csv}")


def _table(report: "CollectionReport") -> "Table":
    """A table of the scores of all rows, with the differences and their intervals over seeds."""
    from rich.table import Table
    from rich.text import Text

    from hart.analysis.report_tables import MISSING, Cell
    from hart.evaluation.words import METRIC_NAMES

    table = Table(title=Text(report.scores.title), title_style="bold", title_justify="left")
    table.add_column("row", overflow="fold")
    metrics = [METRIC_NAMES[name] for name in report.rows[0].metrics]
    for name in ("seeds", *metrics, f"− {report.against.name}", "95 % over seeds"):
        table.add_column(name, justify="right")
    shown = {name: dict(zip(report.scores.columns, cells, strict=True)) for name, _, cells in report.scores.rows}
    for row in report.rows:
        found = report.differences.get(row.name)
        interval = found and found.over_seeds
        difference = Cell(found.mean, form="+.1f").shown() if found else MISSING
        ends = Cell(interval=interval).shown() if interval else MISSING
        scores = (shown[row.name][name].shown() for name in metrics)
        table.add_row(Text(row.name), str(len(row.scored)), *scores, difference, Text(ends))
    return table
