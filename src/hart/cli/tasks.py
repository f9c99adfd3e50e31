"""hart tasks: make task files from tables, and check a folder of them before training."""

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hart.cli.libraries import silence_libraries
from hart.cli.options import MODEL_HELP, Once, natural, positive, progress_bar, text
from hart.cli.printing import say, show
from hart.data.tables.formats import FORMATS
from hart.errors import HartError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hart.data.own_tasks.checking import Limits, Report
    from hart.data.own_tasks.making import Made
    from hart.data.tasks import Task

logger = logging.getLogger(__name__)

TEXTS = {"--definition": 1}
"""Options whose values are texts (`hart.cli.options.keep_texts`)."""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "tasks",
        help="make task files from tables, and check a folder of them",
        description="""\
Make the task files that hart adapt, hart train and hart evaluate read, from tables of inputs and outputs; and
look through a folder of task files before training: what would be refused, repeated, cut or left out.""",
        epilog="""\
examples:
  hart tasks make tickets.csv --definition "Name the department of the ticket." --output-dir my-tasks
  hart tasks check my-tasks --model mini""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(metavar="{make,check}", required=True)
    _add_make(commands)
    _add_check(commands)


def _add_make(commands: Any) -> None:
    make = commands.add_parser(
        "make",
        help="task files from tables, folders of tables, or data sets",
        description="""\
Write DIR/tasks/NAME.json for each task, and its name into DIR/splits/default/train_tasks.txt (or
test_tasks.txt), the layout that data.dir of a configuration takes. TABLE is CSV, TSV, JSON lines, a JSON
array or Parquet as its ending says, a folder of such files (a task each), standard input (-), a folder that
datasets.save_to_disk wrote, or a data set on the hub. A table is one task, called as its file, or with
--task-field or --definition-field one for each value of that column.
Some rows become demonstrations, the others instances: the first rows, or with --seed random ones; where
outputs are labels (at most 20 different ones, with 3 rows each on average) the first row of each label in
turn. Rows with the input of a demonstration are left out. --test-tasks sets whole tasks aside to test on,
--test-rows some rows of each other task. Tasks that are in DIR already stay there.""",
        epilog="""\
examples:
  hart tasks make tickets.csv --input-field text --output-field department \\
    --definition "Name the department that answers the ticket." --output-dir my-tasks
  hart tasks make tables/ --demonstrations 4 --seed 0 --test-tasks 5 --output-dir my-tasks
  hart tasks make tickets.csv --test-rows 20 --seed 0 --definition "…" --output-dir my-tasks
  hart tasks make all.parquet --task-field task --definition-field instruction --output-dir my-tasks
  cut -f 2,3 log.tsv | hart tasks make - --input-format tsv --name log --definition "…" --output-dir my-tasks""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    make.add_argument("tables", metavar="TABLE", nargs="+", help="file, folder, - or data set; several may be given")
    make.add_argument("--output-dir", metavar="DIR", type=Path, required=True, help="folder that the tasks go to")
    make.add_argument("--input-format", choices=FORMATS, help="format of files without a known ending, and of -")
    for name, what in (("input", "the text to answer"), ("output", "its answer, or a list of accepted ones")):
        make.add_argument(
            f"--{name}-field", metavar="NAME", default=name, help=f"column of {what} (default: %(default)s)"
        )
    make.add_argument(
        "--definition",
        metavar="TEXT",
        type=text,
        action=Once,
        help="what the task asks for; else --definition-field, else NAME.definition.txt beside the table",
    )
    make.add_argument("--definition-field", metavar="NAME", help="column of the definition; a task for each value")
    make.add_argument("--task-field", metavar="NAME", help="column that tells tasks apart, and names them")
    make.add_argument("--name", metavar="NAME", help="name of the task, or beginning of several names, for one TABLE")
    make.add_argument(
        "--demonstrations", metavar="K", type=positive, default=2, help="rows of each task (default: %(default)s)"
    )
    make.add_argument(
        "--seed", metavar="N", type=natural, help="choose demonstrations at random (and test tasks, test rows)"
    )
    make.add_argument(
        "--test-tasks",
        metavar="N",
        type=natural,
        default=0,
        help="number of these tasks set aside at random to test on (default: none; replaced tasks stay in their list)",
    )
    make.add_argument(
        "--test-rows",
        metavar="N",
        type=natural,
        default=0,
        help="rows of each training task, held out at random as a test task NAME_held_out (default: none)",
    )
    make.add_argument(
        "--choices",
        action="store_true",
        help="outputs are labels: hart evaluate then chooses among them, as in multiple-choice tasks",
    )
    make.add_argument("--split", metavar="NAME", help="split of a data set (default: the only one)")
    make.add_argument("--subset", metavar="NAME", help="configuration of a data set on the hub")
    make.add_argument("--skip-errors", action="store_true", help="report wrong rows and leave them out")
    make.add_argument("--overwrite", action="store_true", help="replace tasks of the same name")
    make.set_defaults(run=run_make, light=True)


def run_make(args: argparse.Namespace) -> None:
    from hart.data.own_tasks.folder import add_tasks, check_new, drawn_for_testing, tested_before
    from hart.data.own_tasks.making import Fields, held_out_name, hold_out, make_tasks, refuse_twins
    from hart.data.own_tasks.sources import open_sources

    _refuse_what_has_no_use(args)
    sources = open_sources(
        args.tables,
        format=args.input_format,
        standard_input=sys.stdin.buffer if "-" in args.tables else None,
        split=args.split,
        subset=args.subset,
    )
    if args.name is not None and len(sources) > 1:
        raise HartError(f"--name: {len(sources)} tables are given, and each is named after its file; leave it out")
    skipped = 0

    def skip(error: Exception) -> None:
        nonlocal skipped
        skipped += 1
        logger.warning("%s", error)

    made: list[Made] = []
    for source in sources:
        made += make_tasks(
            source,
            Fields(args.input_field, args.output_field, args.definition_field, args.task_field),
            name=args.name,
            definition=args.definition,
            demonstrations=args.demonstrations,
            seed=args.seed,
            choices=args.choices,
            skip=skip if args.skip_errors else None,
        )
    usable = [each.task.name for each in made if each.task.instances]
    if args.test_tasks:
        testing = drawn_for_testing(usable, args.test_tasks, args.seed or 0)
    else:
        testing = tested_before(args.output_dir, usable)
    held_out: list[Task] = []
    for index, each in enumerate(made):
        if args.test_rows and each.task.instances and each.task.name not in testing:
            made[index], rows = hold_out(each, args.test_rows, args.seed or 0)
            held_out.append(rows)
    refuse_twins([(each.shown[0], each.task.name) for each in made] + [(each.name, each.name) for each in held_out])
    tasks = [each.task for each in made]
    check_new(args.output_dir, [each.name for each in [*tasks, *held_out]], overwrite=args.overwrite)
    trained = [] if args.test_rows else [name for name in usable if name not in testing]
    tested = tested_before(args.output_dir, list(map(held_out_name, trained)))
    split_before = [name for name in trained if held_out_name(name) in tested]
    add_tasks(args.output_dir, tasks, testing=testing, overwrite=args.overwrite, held_out=held_out)
    if skipped:
        logger.warning("wrong rows that were left out: %d", skipped)
    for name in split_before:
        logger.warning(
            "task %s: is trained on all its rows, and the test task %s holds rows of it; give --test-rows again, or "
            "remove that name from the list of test tasks",
            name,
            held_out_name(name),
        )
    for each in made:
        if not each.task.instances:
            logger.warning("task %s: all rows are demonstrations; it can be adapted to, not trained on", each.task.name)
        if each.untold:
            untold = ", ".join(map(repr, each.untold[:SHOWN])) + (", …" if len(each.untold) > SHOWN else "")
            logger.warning(
                "task %s: neither the definition nor a demonstration names the labels %s, so a model cannot know "
                "them; name them in the definition, or raise --demonstrations",
                each.task.name,
                untold,
            )
    _tell(made, args.output_dir, testing, drawn=args.seed is not None, held_out=held_out)


def _refuse_what_has_no_use(args: argparse.Namespace) -> None:
    if args.definition is not None and not args.definition.strip():
        raise HartError("--definition: is empty; say what the task asks for")
    if args.definition is not None and args.definition_field is not None:
        raise HartError("--definition and --definition-field both say what the tasks ask for; give one")
    if args.input_format == "txt":
        raise HartError("--input-format: a plain text has no outputs; give a table")


SHOWN = 5
"""Most tasks that `hart tasks make` reports one by one."""


def _tell(made: "list[Made]", folder: Path, testing: set[str], *, drawn: bool, held_out: "Sequence[Task]" = ()) -> None:
    for each in made[:SHOWN]:
        one, some = ("a random row", "random rows") if drawn else ("the first row", "the first rows")
        how = some
        if each.labels:
            shown = min(each.labels, len(each.shown))
            how = f"{one} of each of {each.labels} labels in turn"
            if shown < each.labels:
                how = f"{one} of each of {shown} of {each.labels} labels"
        left = f"; {each.left_out} rows with their inputs left out" if each.left_out else ""
        places = "; ".join(each.shown)
        say(f"{each.task.name}: {len(each.task.instances)} instances; demonstrations ({how}): {places}{left}")
    if len(made) > SHOWN:
        say(f"… and {len(made) - SHOWN} more tasks")
    rows = sum(len(each.instances) for each in held_out)
    also = f"; {rows} held-out rows in {len(held_out)} more test tasks" if held_out else ""
    say(f"{len(made)} tasks ({len(testing)} to test on){also}: {folder}")


def _add_check(commands: Any) -> None:
    check = commands.add_parser(
        "check",
        help="look through folders of task files",
        description="""\
Look through the tasks that the lists of a folder name, one after the other: rows that repeat or contradict
each other, empty texts, training tasks that share their definition or rows with test tasks. With --model or
--config also lengths in tokens, and what would be cut or left out at its limits, with the code that training
and adapting use. The exit status is 1 where training or evaluation would refuse something, else 0.""",
        epilog="""\
examples:
  hart tasks check my-tasks
  hart tasks check my-tasks --config configs/mini/hart_sni.yaml
  hart tasks check my-tasks --model mini --format json""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    check.add_argument("folders", metavar="DIR", nargs="+", type=Path, help="with tasks/ and splits/default/")
    limits = check.add_mutually_exclusive_group()
    limits.add_argument("--model", metavar="MODEL", help=MODEL_HELP)
    limits.add_argument("--config", metavar="CONFIG.yaml", help="configuration that is to train on them")
    check.add_argument("--format", choices=("text", "json"), default="text", help="default: %(default)s")
    check.set_defaults(run=run_check, light=True)  # without a model, no torch


def run_check(args: argparse.Namespace) -> int:
    from hart.data.own_tasks.checking import check_folder, count_tasks

    limits = _limits(args.model, args.config)
    reports = []
    with progress_bar("tasks", sum(map(count_tasks, args.folders))) as advance:
        for folder in args.folders:
            reports.append(check_folder(folder, limits, advance=advance))
    if args.format == "json":
        say(json.dumps([each.to_dict() for each in reports], indent=2, ensure_ascii=False))
    else:
        for each in reports:
            _show(each)
        if limits is None:
            say("lengths in tokens: give --model or --config")
    return int(any(each.refused for each in reports))


def _limits(model: str | None, config: str | None) -> "Limits | None":
    if model is None and config is None:
        return None

    silence_libraries()
    from hart.data.own_tasks.checking import Limits
    from hart.model.tokenization import tokenization_of_config, tokenization_of_model
    from hart.training.config import load

    if config is None:
        return Limits(*tokenization_of_model(str(model)))
    loaded = load(config)
    data = loaded.data
    if data.collection != "sni":
        raise HartError(f"{config}: data.collection is {data.collection}, and a folder of task files needs sni")
    return Limits(
        *tokenization_of_config(loaded.model, data),
        demonstrations=data.demonstrations,
        queries_per_task=loaded.training.queries_per_task,
        max_train_instances=data.max_train_instances,
        max_test_instances=data.max_test_instances,
        seed=data.seed,
        validation_tasks=data.validation_tasks,
    )


_COLUMNS = {
    "tasks": "tasks",
    "rows": "rows",
    "repeated": "repeated",
    "contradicting": "contradicting",
    "shown": "demonstrated",
    "empty_inputs": "empty inputs",
    "empty_outputs": "empty outputs",
    "same_definition": "tasks also in test",
    "same_rows": "rows also in test",
}
"""Field of `Counts` → its label in the table."""


def _show(report: "Report") -> None:
    from rich.table import Table
    from rich.text import Text

    counts = Table("", *report.splits, title=Text(str(report.folder)), title_justify="left")
    for name, shown in _COLUMNS.items():
        counts.add_row(shown, *(f"{getattr(each, name):,}" for each in report.splits.values()))
    tables = [counts]
    if report.lengths:
        lengths = Table("tokens", "texts", "mean", "longest", "limit", "longer", title_justify="left")
        for what, each in report.lengths.items():
            if each.texts:
                lengths.add_row(
                    what, f"{each.texts:,}", f"{each.mean:.1f}", str(each.longest), str(each.limit), f"{each.cut:,}"
                )
        tables.append(lengths)
    show(*tables)
    for line in report.refused[:REFUSED]:
        say(f"refused: {line}")
    if len(report.refused) > REFUSED:
        say(f"refused: … and {len(report.refused) - REFUSED} more (--format json has all)")
    for what, tasks in report.warnings.items():
        more = f", … ({len(tasks)} in all)" if len(tasks) > SHOWN else ""
        say(f"warning: {what}: {', '.join(tasks[:SHOWN])}{more}")


REFUSED = 20
"""Most lines on refused tasks in the text output."""
