"""hart predict: answers of an adapted base, without the hypernetwork."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hart.cli.options import add_device, add_dtype, check_output_file, positive, progress_bar, select_device
from hart.errors import HartError

if TYPE_CHECKING:
    from hart.adaptation import Adaptation

# Batches that are sorted by length together. More would save a little padding, but of mixed tasks each query brings
# its own generated parameters.
CHUNK = 8


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "predict",
        help="answer queries with an adaptation",
        description="""\
Answer queries with what hart adapt saved. Only the frozen base is loaded, and refused unless it is
the one that the adaptation was made for. Each line of an input file is a JSON object with "input";
with several adaptations also "adaptation", the folder (or its last name) to use for the line, so
that one batch mixes tasks. Each line comes back with "prediction" added, in the same order.""",
        epilog="""\
examples:
  hart predict adaptations/reverse --input "three two one"
  hart predict adaptations/reverse adaptations/my-task --input-file queries.jsonl --output-file answers.jsonl""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "adaptations", metavar="A", nargs="+", help="folder that hart adapt wrote; several may be given"
    )
    queries = parser.add_mutually_exclusive_group(required=True)
    queries.add_argument("--input", metavar="TEXT", help="one query; the answer is printed")
    queries.add_argument("--input-file", metavar="F.jsonl", type=Path, help="one JSON object a line")
    parser.add_argument(
        "--output-file", metavar="G.jsonl", type=Path, help="where the answers go (default: printed); replaced"
    )
    parser.add_argument(
        "--batch-size", metavar="N", type=positive, default=32, help="queries answered together (default: %(default)s)"
    )
    for option, what in (
        ("--max-query-length", "tokens; longer queries are cut from the end"),
        ("--max-new-tokens", "tokens of the longest answer"),
    ):
        parser.add_argument(option, metavar="N", type=positive, help=f"{what} (default: as in the model's training)")
    add_device(parser)
    add_dtype(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from hart.files import write_text
    from hart.main_model import MainModel

    device = select_device(args.device)
    if args.output_file is not None:
        check_output_file(args.output_file)
    lines = _read_lines(args.input_file) if args.input is None else [{"input": args.input}]
    if args.input is not None and not args.input.strip():
        raise HartError("--input: the query is empty; give it a text")
    rows = [_row(line.get("adaptation"), args.adaptations, args.input_file) for line in lines]
    adaptation = _load(args.adaptations)
    main = MainModel.from_pretrained(
        adaptation.base, revision=adaptation.base_revision, dtype=args.dtype, device=device
    )
    answers: list[str] = []
    chunk = CHUNK * args.batch_size
    with progress_bar("queries", len(lines)) as advance:
        for start in range(0, len(lines), chunk):
            part = slice(start, start + chunk)
            answers += main.generate(
                [line["input"] for line in lines[part]],
                adaptation if len(adaptation) == 1 else adaptation.select(rows[part]),
                batch_size=args.batch_size,
                max_query_length=args.max_query_length,
                max_new_tokens=args.max_new_tokens,
            )
            advance(len(lines[part]))
    if args.input is not None and args.output_file is None:
        print(answers[0])
        return
    answered = [line | {"prediction": answer} for line, answer in zip(lines, answers, strict=True)]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in answered)
    if args.output_file is None:
        print(text, end="")
    else:
        write_text(args.output_file, text)


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file, each with a text as "input"; empty lines are passed over."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise HartError(f"{path}: the text is not UTF-8") from None
    except OSError as error:
        raise HartError(f"{path}: cannot be read ({error.strerror})") from None
    rows = []
    # Not splitlines, which would also cut at separators that JSON texts may hold as they are.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise HartError(f"{path}, line {number}: not JSON ({error.msg})") from None
        if not isinstance(row, dict) or not isinstance(row.get("input"), str):
            raise HartError(f'{path}, line {number}: must be a JSON object with a text as "input"')
        if not row["input"].strip():
            raise HartError(f"{path}, line {number}: the query is empty; give it a text")
        rows.append(row)
    if not rows:
        raise HartError(f'{path}: holds no query; write one JSON object with "input" a line')
    return rows


def _load(folders: Sequence[str]) -> "Adaptation":
    """One row for each folder."""
    from hart.adaptation import Adaptation

    loaded = [Adaptation.from_pretrained(folder) for folder in folders]
    for folder, adaptation in zip(folders, loaded, strict=True):
        if len(adaptation) != 1:
            raise HartError(f"{folder}: holds adaptations to {len(adaptation)} tasks; give folders of one each")
    return Adaptation.stack(loaded)


def _row(name: Any, folders: Sequence[str], source: Path | None) -> int:
    """Which of the folders a line of the input names."""
    if name is None and len(folders) == 1:
        return 0
    if source is None:
        raise HartError('several adaptations need --input-file, whose lines name one as "adaptation"')
    found = [i for i, folder in enumerate(folders) if folder == name]
    found = found or [i for i, folder in enumerate(folders) if Path(folder).name == name]
    if len(found) != 1:
        problem = "names none" if not found else "names more than one"
        raise HartError(f'{source}: "adaptation" {name!r} {problem} of {", ".join(folders)}')
    return found[0]
