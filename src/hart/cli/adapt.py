"""hart adapt: adapt the base to a task in one forward pass, and save the adaptation."""

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hart.cli.options import (
    GROUPS_HELP,
    MODEL_HELP,
    Once,
    add_base,
    add_device,
    add_dtype,
    add_overwrite,
    positive,
    select_device,
    text,
)
from hart.cli.printing import say
from hart.errors import HartError

if TYPE_CHECKING:
    from hart.data.tasks import Task


TEXTS = {"--definition": 1, "--demonstration": 2}
"""Options whose values are texts (`hart.cli.options.keep_texts`)."""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "adapt",
        help="adapt a model's base to one task in one forward pass",
        description="""\
Let the hypernetwork read the definition and demonstrations of a task once, and save the generated
parameters in a folder, which hart predict takes together with the frozen base alone. The task is a
JSON file as in Super-NaturalInstructions ("Definition", "Positive Examples"), or is given in words.
A definition alone or demonstrations alone will do, with a warning where the model's training always
had both. A model that was trained on P3 reads demonstrations alone.""",
        epilog="""\
examples:
  hart adapt mini --task task.json --output-dir adaptations/my-task
  hart adapt mini \\
      --definition "You are given a list of words. Keep only the animals, then write them in reverse order." \\
      --demonstration "horse red duck" "duck horse" --demonstration "lion nurse cat pear" "cat lion" \\
      --output-dir adaptations/animals
  hart predict adaptations/animals --input "cat plum dog hat lion"        # lion dog cat""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("--task", metavar="task.json", type=Path, action=Once, help="task file")
    parser.add_argument(
        "--definition", metavar="TEXT", type=text, action=Once, help="what the task asks for, instead of a file"
    )
    parser.add_argument(
        "--demonstration",
        metavar=("INPUT", "OUTPUT"),
        nargs=2,
        type=text,
        action="append",
        default=[],
        help="a solved example; give it once for each",
    )
    parser.add_argument("--demonstration-groups", metavar="N", type=positive, help=GROUPS_HELP)
    parser.add_argument("--output-dir", metavar="A", type=Path, required=True, help="folder for the adaptation")
    add_overwrite(parser, "another adaptation")
    add_base(parser)
    add_device(parser)
    add_dtype(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from hart.model.adaptation import FIELDS_FILE
    from hart.model.hart_model import HartModel
    from hart.runtime.files import check_folder_target

    device = select_device(args.device)
    task = _task(args)
    check_folder_target(args.output_dir, replaces=FIELDS_FILE)
    model = HartModel.from_pretrained(args.model, base=args.base, dtype=args.dtype, device=device)
    start = time.monotonic()
    adaptation = model.adapt(task, demonstration_groups=args.demonstration_groups)
    seconds = time.monotonic() - start
    adaptation.save_pretrained(args.output_dir, overwrite=args.overwrite)
    say(f"adapted {adaptation.base} to task {task.label} in one pass of {seconds:.2f} s: {args.output_dir}")


def _task(args: argparse.Namespace) -> "Task":
    from hart.data.tasks import Task

    if args.task is not None:
        if args.definition is not None or args.demonstration:
            raise HartError("--task: excludes --definition and --demonstration; give the file or the texts")
        return Task.from_file(args.task)
    if not (args.definition or "").strip() and not args.demonstration:
        raise HartError(
            "no task: give --task task.json, --definition TEXT, --demonstration INPUT OUTPUT, or both of these"
        )
    return Task(args.definition or "", args.demonstration)
