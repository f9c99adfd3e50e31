"""hart evaluate: a system on the tasks of a split, as tables and results.json."""

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hart.cli.options import MODEL_HELP, add_device, check_output_file, natural, positive, progress_bar, select_device
from hart.errors import HartError

if TYPE_CHECKING:
    import torch

    from hart.config import DataConfig
    from hart.evaluation import Predictor
    from hart.input_format import InputFormat
    from hart.main_model import MainModel

COPY_SYSTEMS = ("copy-input", "copy-demonstration")
SYSTEMS = ("hart", "base", "base-in-context", *COPY_SYSTEMS)
INSTANCES = 100


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "evaluate",
        help="score a model or a baseline on the tasks of a split",
        description="""\
Adapt the model to each task of a split, let it answer the task's instances, and print ROUGE-L and
exact match per task, per category and over all instances. Baselines: the un-adapted base with the
query alone (base) or behind definition and demonstrations (base-in-context), and copying the query
or the first demonstration's output.""",
        epilog="""\
examples:
  hart evaluate runs/hart/final --data sni --data-dir natural-instructions --output results.json
  hart evaluate mini --data procedural --system base-in-context
  hart evaluate --data procedural --system copy-demonstration""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        help=f"{MODEL_HELP}; for base systems also a plain T5, such as mini-base; the copy systems need none",
    )
    parser.add_argument("--data", choices=("sni", "procedural"), required=True, help="collection of tasks")
    parser.add_argument(
        "--data-dir", metavar="D", help="folder laid out as allenai/natural-instructions (default for sni: the hub)"
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
        "--data-seed", metavar="N", type=natural, default=0, help="data.seed of training: which validation tasks"
    )
    parser.add_argument(
        "--max-instances",
        metavar="N",
        type=positive,
        default=INSTANCES,
        help="instances per task (default: %(default)s)",
    )
    parser.add_argument("--system", choices=SYSTEMS, default="hart", help="what is scored (default: %(default)s)")
    parser.add_argument(
        "--batch-size", metavar="N", type=positive, default=32, help="queries answered together (default: %(default)s)"
    )
    parser.add_argument(
        "--output", metavar="results.json", type=Path, help="file for all scores and predictions; replaced if it exists"
    )
    add_device(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from rich.console import Console

    from hart.evaluation import COPY_BASELINES, evaluate_tasks
    from hart.task_collections import load_tasks

    if args.model is None and args.system not in COPY_SYSTEMS:
        raise HartError(f"--system {args.system} needs a MODEL: {MODEL_HELP}")
    device = select_device(args.device)
    if args.output is not None:
        check_output_file(args.output)
    tasks = load_tasks(_data_config(args), args.split)
    details = {
        "data": args.data,
        "data_dir": args.data_dir,
        "split": args.split,
        "validation_tasks": args.validation_tasks,
        "data_seed": args.data_seed,
        "max_instances": args.max_instances,
    }
    if args.system in COPY_SYSTEMS:
        predict = COPY_BASELINES[args.system]
    else:
        predict, model_details = _load_system(args, device)
        details |= model_details | {"batch_size": args.batch_size, "device": str(device)}
    start = time.monotonic()
    with progress_bar("tasks", len(tasks)) as advance:
        results = evaluate_tasks(predict, tasks, system=args.system, details=details, on_task=lambda _: advance(1))
    results.details["seconds"] = round(time.monotonic() - start, 1)
    if args.output is not None:
        results.save(args.output)
    console = Console()
    console.print(results.task_table(), results.category_table())
    if args.output is not None:
        print(f"results: {args.output}")


def _data_config(args: argparse.Namespace) -> "DataConfig":
    from hart.config import DataConfig

    if args.data == "procedural" and args.data_dir is not None:
        raise HartError("--data-dir: the procedural tasks come with the package; leave it out, or take --data sni")
    if args.data == "sni" and args.split == "validation" and not args.validation_tasks:
        raise HartError("--validation-tasks: give the data.validation_tasks of training, to split off the same tasks")
    return DataConfig(
        collection=args.data,
        dir=args.data_dir,
        # Which of the two counts depends on the split.
        max_train_instances=args.max_instances,
        max_test_instances=args.max_instances,
        validation_tasks=args.validation_tasks,
        seed=args.data_seed,
    )


def _load_system(args: argparse.Namespace, device: "torch.device") -> tuple["Predictor", dict[str, Any]]:
    """How the system answers a task, and what to keep about it in results.json."""
    from hart.prediction import base_predictor, hart_predictor
    from hart.system import HartModel

    if args.system == "hart":
        model = HartModel.from_pretrained(args.model, device=device)
        return hart_predictor(model, batch_size=args.batch_size), _describe(args.model, model.main)
    main, form = _load_base(args.model, device)
    in_context = args.system == "base-in-context"
    return base_predictor(main, form, in_context=in_context, batch_size=args.batch_size), _describe(args.model, main)


def _load_base(name: str, device: "torch.device") -> tuple["MainModel", "InputFormat"]:
    """The base of a HART model with the model's input format, or a plain T5 with the paper's."""
    from transformers import PretrainedConfig

    from hart.input_format import InputFormat
    from hart.main_model import MainModel
    from hart.model_folder import MODEL_TYPES
    from hart.resources import resolve_base, resolve_model
    from hart.system import HartModel

    try:
        config, _ = PretrainedConfig.get_config_dict(resolve_base(resolve_model(name)))
    except (OSError, ValueError):
        config = {}  # whoever loads it says what is wrong
    if config.get("model_type") in MODEL_TYPES:
        model = HartModel.from_pretrained(name, device=device)
        return model.main, model.input_format
    return MainModel.from_pretrained(name, dtype="float32", device=device), InputFormat()


def _describe(name: str, main: "MainModel") -> dict[str, Any]:
    return {
        "model": name,
        "base": main.name,
        "base_revision": main.revision,
        "base_fingerprint": main.fingerprint,
    }
