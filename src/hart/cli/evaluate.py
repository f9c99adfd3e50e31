"""hart evaluate: a system on the tasks of a split or of files, as tables and results.json."""

import argparse
import os
import time
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hart.cli.options import (
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
    import torch

    from hart.data.input_format import InputFormat
    from hart.data.tasks import Task
    from hart.evaluation.answers import Results
    from hart.evaluation.choices import ChoiceResults
    from hart.model.hart_model import HartModel
    from hart.model.main_model import MainModel
    from hart.training.config import DataConfig

COPY_SYSTEMS = ("copy-input", "copy-demonstration")
CHOICE_SYSTEMS = ("majority", "chance")
SYSTEMS = ("hart", "base", "base-in-context", *COPY_SYSTEMS, *CHOICE_SYSTEMS)
INSTANCES = 100
SHOTS = 16


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "evaluate",
        help="score a model or a baseline on the tasks of a split or of files",
        description="""\
Adapt the model to each task, let it answer the task's instances, and print the scores.

Free answers are generated and scored by ROUGE-L and exact match per task, per category and over all
instances. Multiple-choice answers (P3, and files whose instances have choices) are chosen by
log-probability and scored by accuracy per template; the table has the paper's columns, beside always
giving the most frequent answer (majority) and guessing (chance). Choices with equal scores, such as the
tokenizer cannot tell apart, share what is to be earned.

Baselines: the un-adapted base with the query alone (base) or behind definition and demonstrations
(base-in-context), and copying the query or the first demonstration's output.""",
        epilog="""\
examples:
  hart evaluate runs/hart/final --data sni --data-dir natural-instructions --output results.json
  hart evaluate runs/p3/final --data p3 --data-dir P3 --output results.json
  hart evaluate runs/p3/final --data p3 --data-dir P3 --subsets 'super_glue_boolq_*'
  hart evaluate mini --task task.json --task other.json
  hart evaluate mini --data procedural --system base-in-context
  hart evaluate --data procedural --system copy-demonstration""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        help=f"{MODEL_HELP}; for base systems also a plain T5, such as mini-base; {_listed()} need none",
    )
    parser.add_argument("--data", choices=("sni", "p3", "procedural"), help="collection of tasks")
    parser.add_argument(
        "--data-dir",
        metavar="D",
        help="folder laid out as allenai/natural-instructions (sni), or with one folder per subset (p3); "
        "default: the hub",
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
    parser.add_argument(
        "--validation-tasks",
        metavar="N",
        type=natural,
        default=0,
        help="size of the validation split, as data.validation_tasks in training (procedural: 0 is all)",
    )
    parser.add_argument(
        "--data-seed",
        metavar="N",
        type=natural,
        default=0,
        help="data.seed of training: which validation tasks, which demonstrations of p3 (default: %(default)s)",
    )
    parser.add_argument(
        "--num-demonstrations",
        metavar="K",
        type=positive,
        default=SHOTS,
        help="p3: demonstrations drawn for each task, of which a model shows as many as it was trained with "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--max-instances",
        metavar="N",
        type=positive,
        help=f"instances per task (default: {INSTANCES}; of p3 and of files all)",
    )
    parser.add_argument("--system", choices=SYSTEMS, default="hart", help="what is scored (default: %(default)s)")
    parser.add_argument(
        "--normalisation",
        choices=("sum", "mean"),
        default="sum",
        help="multiple choice: compare sums of log-probabilities, as T0 does, or means per token "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--batch-size", metavar="N", type=positive, default=32, help="queries answered together (default: %(default)s)"
    )
    parser.add_argument(
        "--output", metavar="results.json", type=Path, help="file for all scores and predictions; replaced if it exists"
    )
    add_base(parser)
    add_device(parser)
    add_dtype(parser)
    parser.set_defaults(run=run)


def _listed() -> str:
    return ", ".join((*COPY_SYSTEMS, *CHOICE_SYSTEMS))


def run(args: argparse.Namespace) -> None:
    from hart.runtime.ranks import joining, rank

    with joining(), open(os.devnull, "w", encoding="utf-8", errors="backslashreplace") as nowhere:
        # Of several processes, the first one speaks and writes.
        with redirect_stdout(nowhere) if rank() else nullcontext():
            _run(args, first=not rank())


def _run(args: argparse.Namespace, *, first: bool) -> None:
    if args.model is None and args.system not in (*COPY_SYSTEMS, *CHOICE_SYSTEMS):
        raise HartError(f"--system {args.system} needs a MODEL: {MODEL_HELP}")
    from hart.runtime.files import check_file_target

    device = select_device(args.device)
    if args.output is not None:
        check_file_target(args.output)
    tasks = _tasks(args)
    multiple_choice = _multiple_choice(tasks, args.system)
    details = {
        "data": args.data,
        "data_dir": args.data_dir,
        "task_files": [str(path) for path in args.task or ()],
        "subsets": args.subsets,
        "split": args.split,
        "validation_tasks": args.validation_tasks,
        "data_seed": args.data_seed,
        "max_instances": args.max_instances,
    }
    # Saved before they are printed, which a terminal may refuse.
    save = partial(_save, args.output if first else None)
    if multiple_choice:
        _choose(args, tasks, device, details, save)
    else:
        _answer(args, tasks, device, details, save)
    if args.output is not None:
        say(f"results: {args.output}")


def _save(path: Path | None, results: "Results | ChoiceResults") -> None:
    if path is not None:
        results.save(path)


def _tasks(args: argparse.Namespace) -> "list[Task]":
    from dataclasses import replace

    from hart.data.collections import load_tasks
    from hart.data.tasks import Task

    if (args.data is None) == (args.task is None):
        raise HartError("give --data or --task: a collection, or files of your own")
    if args.subsets is not None and args.data != "p3":
        raise HartError("--subsets: is for --data p3; leave it out")
    if args.task is None:
        return load_tasks(_data_config(args), args.split)
    tasks = [Task.from_file(path, needs_definition=False) for path in args.task]
    for path, task in zip(args.task, tasks, strict=True):
        if not task.instances:
            raise HartError(f"{path}: has no Instances, nothing to evaluate on")
    return [replace(task, instances=task.instances[: args.max_instances]) for task in tasks]


def _multiple_choice(tasks: "list[Task]", system: str) -> bool:
    """Whether the answers are chosen; refuses a system that cannot answer these tasks."""
    kinds = {task.multiple_choice for task in tasks}
    if len(kinds) > 1:
        raise HartError("--task: some files have choices and some have none; evaluate them separately")
    multiple_choice = kinds.pop()
    if multiple_choice and system in COPY_SYSTEMS:
        raise HartError(f"--system {system}: the tasks are multiple-choice; take {' or '.join(CHOICE_SYSTEMS)}")
    if not multiple_choice and system in CHOICE_SYSTEMS:
        raise HartError(f"--system {system}: the tasks have no choices; take {' or '.join(COPY_SYSTEMS)}")
    return multiple_choice


def _answer(
    args: argparse.Namespace,
    tasks: "list[Task]",
    device: "torch.device",
    details: dict[str, Any],
    save: "Callable[[Results], None]",
) -> None:
    """Generate answers, save and print ROUGE-L and exact match."""
    from hart.data.prompts import Cuts
    from hart.evaluation.answers import COPY_BASELINES, evaluate_tasks
    from hart.evaluation.predictors import base_predictor, hart_predictor, warn
    from hart.runtime.ranks import shared_out

    cuts = Cuts()
    if args.system in COPY_SYSTEMS:
        predict = COPY_BASELINES[args.system]
    elif args.system == "hart":
        model = _load_hart(args, tasks, device)
        predict = hart_predictor(model, batch_size=args.batch_size, cuts=cuts)
        details |= _describe(args, model.main, device)
    else:
        main, form = _load_base(args, tasks, device)
        in_context = args.system == "base-in-context"
        predict = base_predictor(main, form, in_context=in_context, batch_size=args.batch_size, cuts=cuts)
        details |= _describe(args, main, device)
    start = time.monotonic()
    with progress_bar("tasks", len(tasks)) as advance:
        results = evaluate_tasks(
            shared_out(predict, tasks), tasks, system=args.system, details=details, on_task=lambda _: advance(1)
        )
    results.details["seconds"] = round(time.monotonic() - start, 1)
    save(results)
    warn(results, cuts)
    show(results.task_table(), results.category_table())


def _choose(
    args: argparse.Namespace,
    tasks: "list[Task]",
    device: "torch.device",
    details: dict[str, Any],
    save: "Callable[[ChoiceResults], None]",
) -> None:
    """Score choices, save and print accuracies beside the baselines that need no model."""
    from hart.data.prompts import Cuts
    from hart.evaluation.choices import BASELINES, comparison_table, evaluate_choices
    from hart.evaluation.predictors import base_scorer, hart_scorer, warn
    from hart.runtime.ranks import shared_out

    baselines = [evaluate_choices(score, tasks, system=name) for name, score in BASELINES.items()]
    details |= {"normalisation": args.normalisation, "num_demonstrations": args.num_demonstrations}
    details["baselines"] = {each.system: {"accuracy": each.accuracy, "columns": each.columns()} for each in baselines}
    cuts = Cuts()
    if args.system in CHOICE_SYSTEMS:
        results = next(each for each in baselines if each.system == args.system)
        results.details.update(details)
    else:
        options = {"batch_size": args.batch_size, "normalisation": args.normalisation, "cuts": cuts}
        if args.system == "hart":
            model = _load_hart(args, tasks, device)
            score, main = hart_scorer(model, **options), model.main
        else:
            main, form = _load_base(args, tasks, device)
            score = base_scorer(main, form, in_context=args.system == "base-in-context", **options)
        start = time.monotonic()
        with progress_bar("tasks", len(tasks)) as advance:
            results = evaluate_choices(
                shared_out(score, tasks), tasks, system=args.system, details=details, on_task=lambda _: advance(1)
            )
        results.details.update(_describe(args, main, device), seconds=round(time.monotonic() - start, 1))
    save(results)
    if args.system not in CHOICE_SYSTEMS:
        warn(results, cuts)
    rows = [results, *(each for each in baselines if each.system != args.system)]
    show(results.template_table())
    several = len({each.dataset for each in results.templates}) < len(results.templates)
    for summary in ("mean", "median") if several else ("mean",):
        show(comparison_table(rows, summary=summary, title=f"accuracy, {summary} over templates"))
    for column, value in results.macro_f1.items():
        say(f"macro-F1 of {column}: {value:.1f}")


def _data_config(args: argparse.Namespace) -> "DataConfig":
    from hart.training.config import DataConfig

    if args.data == "procedural" and args.data_dir is not None:
        raise HartError("--data-dir: the procedural tasks come with the package; leave it out, or take --data sni")
    if args.data == "sni" and args.split == "validation" and not args.validation_tasks:
        raise HartError("--validation-tasks: give the data.validation_tasks of training, to split off the same tasks")
    if args.data == "p3" and args.split == "validation" and not args.validation_tasks:
        raise HartError(
            "--validation-tasks: give the data.validation_tasks of training, to set aside the same data sets"
        )
    cap = args.max_instances or (None if args.data == "p3" else INSTANCES)
    return DataConfig(
        collection=args.data,
        dir=args.data_dir,
        demonstrations="sampled" if args.data == "p3" else "fixed",
        num_demonstrations=args.num_demonstrations,
        train_subsets=args.subsets if args.split == "validation" else None,
        test_subsets=args.subsets if args.split == "test" else None,
        # Which of the two counts depends on the split.
        max_train_instances=cap,
        max_test_instances=cap,
        validation_tasks=args.validation_tasks,
        seed=args.data_seed,
    )


def _load_hart(args: argparse.Namespace, tasks: "list[Task]", device: "torch.device") -> "HartModel":
    """The model to be scored; refuses one that asks a task for what it does not have."""
    from hart.evaluation.predictors import check_readable
    from hart.model.hart_model import HartModel

    model = HartModel.from_pretrained(args.model, base=args.base, dtype=args.dtype, device=device)
    if args.data == "p3" and model.hypernetwork is not None and model.input_format.prompt_format == "instructions":
        raise HartError(
            f"--data p3: its tasks have no definitions, which {args.model} reads; give a model trained on P3"
        )
    check_readable(model.input_format, tasks)
    return model


def _load_base(
    args: argparse.Namespace, tasks: "list[Task]", device: "torch.device"
) -> tuple["MainModel", "InputFormat"]:
    """The base of a HART model with the model's input format, or a plain T5 with the collection's."""
    from transformers import PretrainedConfig

    from hart.data.input_format import InputFormat
    from hart.evaluation.predictors import check_readable
    from hart.model.bundled import resolve_base, resolve_model
    from hart.model.folder import MODEL_TYPES
    from hart.model.hart_model import HartModel
    from hart.model.main_model import MainModel

    name = args.model
    try:
        config, _ = PretrainedConfig.get_config_dict(resolve_base(resolve_model(name)))
    except (OSError, ValueError):
        config = {}  # whoever loads it says what is wrong
    if config.get("model_type") in MODEL_TYPES:
        model = HartModel.from_pretrained(name, base=args.base, dtype=args.dtype, device=device)
        main, form = model.main, model.input_format
    elif args.base is not None:
        raise HartError(f"--base: {name} is no HART model; give the base itself as MODEL, and leave --base out")
    else:
        form = InputFormat.from_config(_data_config(args)) if args.data == "p3" else InputFormat()
        main = MainModel.from_pretrained(name, dtype=args.dtype, device=device)
    if args.system == "base-in-context":
        check_readable(form, tasks, in_context=True)
    return main, form


def _describe(args: argparse.Namespace, main: "MainModel", device: "torch.device") -> dict[str, Any]:
    return {
        "model": args.model,
        "base": main.name,
        "base_revision": main.revision,
        "base_fingerprint": main.fingerprint,
        "batch_size": args.batch_size,
        "device": str(device),
        "dtype": args.dtype,
    }
