"""hart evaluate: score a system on the tasks of a split or of files, with tables and results.json."""

import argparse
import os
import time
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hart.cli.options import (
    GROUPS_HELP,
    MODEL_HELP,
    add_base,
    add_device,
    add_dtype,
    natural,
    positive,
    progress_bar,
    select_device,
)
from hart.cli.printing import say, show
from hart.errors import HartError

if TYPE_CHECKING:
    from rich.table import Table

    from hart.data.tasks import Task
    from hart.evaluation.base import Metric, Results, System

TASK_TEXTS = ("both", "definition", "demonstrations")
WITH_MODEL = ("hart", "base", "base-in-context")
BASES = WITH_MODEL[1:]
WITHOUT_MODEL = ("copy-input", "copy-demonstration", "majority", "chance")


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "evaluate",
        help="score a model or a baseline on the tasks of a split or of files",
        description="""\
Adapt the model to each task, let it answer the task's instances, and print the scores.

Free answers are generated and scored by ROUGE-L and exact match per task, per category and over all
instances. Multiple-choice answers (P3, and files whose instances have choices) are chosen by
log-probability and scored by accuracy per template; the table has the paper's columns, beside always
giving the most frequent answer (majority) and guessing (chance). Choices with equal scores, as of equal
tokens, share the credit.

Baselines: the un-adapted base with the query alone (base) or behind definition and demonstrations
(base-in-context), and copying the query or the first demonstration's output.""",
        epilog="""\
examples:
  hart evaluate runs/hart/final --data sni --data-dir natural-instructions --output results.json
  hart evaluate runs/p3/final --data p3 --data-dir P3 --output results.json
  hart evaluate runs/p3/final --data p3 --data-dir P3 --subsets 'super_glue_boolq_*'
  hart evaluate mini --task task.json --task other.json
  hart evaluate mini --data procedural --max-instances 10 --diagnostics
  hart evaluate mini --data procedural --against base --against base-in-context
  hart evaluate mini --data procedural --task-text definition
  hart evaluate --data procedural --system copy-demonstration""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        help=f"{MODEL_HELP}; for base systems also a base, such as mini-base; {', '.join(WITHOUT_MODEL)} need none",
    )
    parser.add_argument("--data", metavar="NAME", help="collection of tasks: sni, p3, procedural or needle")
    parser.add_argument(
        "--data-dir",
        metavar="D",
        help="laid out as allenai/natural-instructions (sni), or one folder per subset (p3); default: the hub",
    )
    parser.add_argument(
        "--task",
        metavar="FILE",
        type=Path,
        action="append",
        help="a task file with instances, instead of --data; can be given again",
    )
    parser.add_argument(
        "--subsets",
        metavar="PATTERN",
        action="append",
        help="p3: subsets to evaluate, a name or a pattern; can be given again (default: the eight held-out tasks)",
    )
    parser.add_argument("--split", choices=("test", "validation"), default="test", help="default: %(default)s")
    for option, kind, default, what in (
        (
            "--validation-tasks",
            natural,
            0,
            "data.validation_tasks of training: size of that split (procedural, needle: 0 is all)",
        ),
        ("--data-seed", natural, 0, "data.seed of training; selects validation tasks and demonstrations of p3"),
        ("--num-demonstrations", positive, 16, "p3: drawn for each task; a model shows as many as in its training"),
        ("--demonstration-groups", positive, None, GROUPS_HELP),
        ("--max-instances", positive, None, "instances per task (default: 100; of p3 and of files all)"),
        ("--batch-size", positive, 32, "queries answered together"),
    ):
        shown = "" if default is None else " (default: %(default)s)"
        parser.add_argument(option, metavar="N", type=kind, default=default, help=what + shown)
    parser.add_argument(
        "--system", choices=(*WITH_MODEL, *WITHOUT_MODEL), default="hart", help="what is scored (default: %(default)s)"
    )
    parser.add_argument(
        "--against",
        choices=BASES,
        action="append",
        default=[],
        help="score the un-adapted base too, on the same tasks, and print both; can be given again",
    )
    parser.add_argument(
        "--task-text",
        choices=TASK_TEXTS,
        default=TASK_TEXTS[0],
        help="what is shown of each task: all of it, its definition alone or its demonstrations alone "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--normalisation",
        choices=("sum", "mean"),
        default="sum",
        help="multiple choice: compare sums of log-probabilities (as T0) or means per token (default: %(default)s)",
    )
    parser.add_argument(
        "--diagnostics",
        action="store_true",
        help="measure the layer states of MODEL's hypernetwork, and score the tasks with other tasks' adaptations, "
        "with parameters or memory only, and with other demonstrations; takes about eight times as long",
    )
    parser.add_argument(
        "--robustness",
        action="store_true",
        help="score variants of the tasks: without definition or demonstrations, in other words, with wrong "
        "demonstrations; and ask queries of other tasks; takes about seven times as long",
    )
    parser.add_argument(
        "--distractors",
        metavar="F",
        help="with --robustness: file of data.distractors; counts the held-out ones that the adapted model answers "
        "as its base does",
    )
    parser.add_argument(
        "--output", metavar="results.json", type=Path, help="file for all scores and predictions; replaced if it exists"
    )
    add_base(parser)
    add_device(parser)
    add_dtype(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from hart.runtime.ranks import joining, rank
    from hart.runtime.sections import FieldError

    with joining(), open(os.devnull, "w", encoding="utf-8", errors="backslashreplace") as nowhere:
        # The first of several processes prints and writes.
        with redirect_stdout(nowhere) if rank() else nullcontext():
            try:
                _run(args, first=not rank())
            except FieldError as error:
                raise HartError(f"--{error.field.replace('_', '-')}: {error.problem}") from None


def _run(args: argparse.Namespace, *, first: bool) -> None:
    for option in ("diagnostics", "robustness", "against"):
        if getattr(args, option) and args.system != "hart":
            raise HartError(f"--{option} needs an adapted model, and --system is {args.system}; leave one out")
    if args.distractors is not None and not args.robustness:
        raise HartError("--distractors needs --robustness; give both, or leave --distractors out")
    if args.model is None and args.system in WITH_MODEL:
        raise HartError(f"--system {args.system} needs a MODEL: {MODEL_HELP}")
    from hart.data.distractors import read_distractors
    from hart.evaluation.run import evaluate, metric_of, warn
    from hart.evaluation.selection import Selection
    from hart.evaluation.systems import BASELINES, load_system
    from hart.runtime.files import check_file_target

    device = select_device(args.device)
    if args.output is not None:
        check_file_target(args.output)
    distractors = [] if args.distractors is None else read_distractors(args.distractors)[1]
    if args.diagnostics and args.task_text != TASK_TEXTS[0]:
        raise HartError(f"--diagnostics draws other demonstrations, and --task-text is {args.task_text}; leave one out")
    names = ("data", "data_dir", "subsets", "split", "validation_tasks", "data_seed", "max_instances", "task_text")
    chosen = Selection(**{name: getattr(args, name) for name in (*names, "num_demonstrations")}, task_files=args.task)
    tasks = chosen.load()
    metric, details = metric_of(tasks), chosen.to_dict()
    if args.system in WITHOUT_MODEL:
        system = BASELINES[args.system]
    else:
        given = ("base", "dtype", "batch_size", "normalisation")
        options = {name: getattr(args, name) for name in given}
        if args.demonstration_groups is not None:
            if args.system != "hart":
                raise HartError(
                    f"--demonstration-groups: needs a hypernetwork, and --system is {args.system}; leave it out"
                )
            options["demonstration_groups"] = args.demonstration_groups
        system = load_system(args.system, args.model, form=chosen.form, device=device, **options)
        chosen.check_readable(system, args.model)
        details |= {"model": args.model, "device": str(device), **options}
    form = system.form
    if form is not None and form.demonstration_groups > 1:
        if all(len(task.demonstrations) <= form.num_demonstrations for task in tasks):
            say("warning: no task has demonstrations for a second group; with p3, raise --num-demonstrations")
    for option, what in (("diagnostics", "diagnosis"), ("robustness", "robustness")):
        if getattr(args, option):
            from hart.evaluation.other_adaptations import check_comparable

            check_comparable(system.model, tasks, what)
    start = time.monotonic()
    with progress_bar("tasks", len(tasks)) as advance:
        results = evaluate(system, tasks, metric, details=details, on_task=lambda _: advance(1), beside=True)
    results.details["seconds"] = round(time.monotonic() - start, 1)
    # Saved before further work, and before printing, which may fail on a terminal.
    if first and args.output is not None:
        results.save(args.output)
    how = {name: getattr(args, name) for name in ("batch_size", "normalisation")}
    how |= {"seed": args.data_seed, "own": results.summary, "bar": progress_bar}
    found = robust = None
    others = [_of_base(name, system, tasks, metric, args) for name in dict.fromkeys(args.against)]
    if others:
        results.details["against"] = {each.system: each.brief() for each in others}
        if first and args.output is not None:
            results.save(args.output)
    if args.diagnostics:
        from hart.evaluation.diagnostics import diagnose

        found = diagnose(system.model, tasks, **how)
        results = replace(results, diagnostics=found.to_dict())
        if first and args.output is not None:
            results.save(args.output)
    if args.robustness:
        from hart.evaluation.robustness import measure_robustness

        told = chosen.other_definition
        robust = measure_robustness(system.model, tasks, other_definition=told, distractors=distractors, **how)
        results = replace(results, robustness=robust.to_dict())
        if first and args.output is not None:
            results.save(args.output)
    if system not in metric.beside:  # those have ties by design
        warn(system, results)
    show(*results.tables())
    for line in results.lines:
        say(line)
    if others:
        show(_side_by_side([results, *others]))
    if found is not None:
        show(*found.tables())
        if found.warning:
            say(f"warning: {found.warning}")
    if robust is not None:
        show(*robust.tables())
    if args.output is not None:
        say(f"results: {args.output}")
        if first and args.system == "hart" and _beside(args.output, Path(args.model)):
            _note_in_card(args, results)


def _of_base(
    name: str, system: "System", tasks: Sequence["Task"], metric: "Metric[Any]", args: argparse.Namespace
) -> "Results":
    """The results of the base of an adapted model, on the same tasks."""
    from hart.evaluation.run import evaluate, warn
    from hart.evaluation.systems import base_system

    options = {each: getattr(args, each) for each in ("batch_size", "normalisation")}
    base = base_system(
        system.model.main, system.model.input_format, in_context=name == "base-in-context", name=name, **options
    )
    with progress_bar(f"tasks, {name}", len(tasks)) as advance:
        results: Results = evaluate(base, tasks, metric, on_task=lambda _: advance(1))
    warn(base, results)
    return results


def _side_by_side(systems: Sequence["Results"]) -> "Table":
    """A table with a row for each system: its means over all instances."""
    from rich.table import Table

    table = Table("system", title="against its base")
    for name in systems[0].summary:
        table.add_column(name.replace("_", " ").replace("rouge l", "ROUGE-L"), justify="right")
    for each in systems:
        table.add_row(each.system, *(f"{value:.2f}" for value in each.summary.values()))
    return table


def _beside(output: Path, model: Path) -> bool:
    """Whether the results file is in the folder of a model or in its parent, the folder of its run."""
    return model.is_dir() and output.resolve().parent in (model.resolve(), model.resolve().parent)


def _note_in_card(args: argparse.Namespace, results: "Results") -> None:
    from hart.evaluation.cards import note_scores

    tasks = f"{args.data}, {args.split}" if args.data else ", ".join(path.name for path in args.task)
    shown = "" if args.task_text == TASK_TEXTS[0] else f", {args.task_text} alone"
    if note_scores(Path(args.model), results, f"{tasks}: {len(results.tasks)} tasks{shown}"):
        say(f"model card: {Path(args.model) / 'README.md'}")
