"""hart predict: answers of an adapted base, without the hypernetwork."""

import argparse
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from hart.cli.options import (
    add_base,
    add_device,
    add_dtype,
    load_base,
    positive,
    progress_bar,
    select_device,
    text,
)
from hart.cli.printing import answer as put
from hart.errors import HartError

if TYPE_CHECKING:
    from hart.data.prompts import Cuts
    from hart.model.adaptation import Adaptation
    from hart.model.main_model import MainModel

logger = logging.getLogger(__name__)

# Batches that are sorted by length together. More would save a little padding, but of mixed tasks each query brings
# its own generated parameters.
CHUNK = 8


TEXTS = {"--input": 1}
"""Options whose values are texts (`hart.cli.options.keep_texts`)."""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "predict",
        help="answer queries with an adaptation",
        description="""\
Answer queries with what hart adapt saved. Only the frozen base is loaded, and refused unless it is
the one that the adaptation was made for. Each line of an input file is a JSON object with "input";
with several adaptations also "adaptation", the folder (or its last name) to use for the line, so
that one batch mixes tasks. Each line comes back with "prediction" added, in the same order.
All lines are checked before the first is answered. Answers are written as they come: an interrupt
loses none that was given, and an older output file stays until the first.""",
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
    queries.add_argument("--input", metavar="TEXT", type=text, help="one query; the answer is printed")
    queries.add_argument("--input-file", metavar="F.jsonl", type=Path, help="one JSON object a line")
    parser.add_argument(
        "--output-file",
        metavar="G.jsonl",
        type=Path,
        help="where the answers go (default: printed); another file than the input; replaced",
    )
    parser.add_argument(
        "--batch-size", metavar="N", type=positive, default=32, help="queries answered together (default: %(default)s)"
    )
    for option, what in (
        ("--max-query-length", "tokens; longer queries are cut from the end"),
        ("--max-new-tokens", "tokens of the longest answer"),
    ):
        parser.add_argument(option, metavar="N", type=positive, help=f"{what} (default: as in the model's training)")
    add_base(parser)
    add_device(parser)
    add_dtype(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from hart.data.prompts import Cuts
    from hart.runtime.files import check_file_target

    device = select_device(args.device)
    if args.output_file is not None:
        check_file_target(args.output_file)
        _refuse_the_input(args.output_file, args.input_file)
    lines = [Line("--input", {"input": args.input})] if args.input_file is None else _read_lines(args.input_file)
    for line in lines:
        if not line.content["input"].strip():
            raise _empty(line)
    chosen = [_row(line, args.adaptations) for line in lines]
    adaptation = _load(args.adaptations)
    main = load_base(adaptation, args.base, dtype=args.dtype, device=device)
    cuts = Cuts()
    queries = _encode(main, adaptation, chosen, lines, args.max_query_length, cuts)
    cuts.tell(logger)
    plain = args.input_file is None and args.output_file is None
    chunk = CHUNK * args.batch_size
    answers = _Answers(args.output_file)
    done = 0
    try:
        with progress_bar("queries", len(lines)) as advance:
            for start in range(0, len(lines), chunk):
                part = slice(start, start + chunk)
                texts = main.generate(
                    queries[part],
                    adaptation if len(adaptation) == 1 else adaptation.select(chosen[part]),
                    batch_size=args.batch_size,
                    max_new_tokens=args.max_new_tokens,
                )
                answers.write(texts if plain else _as_json(lines[part], texts))
                done += len(texts)
                advance(len(texts))
    except KeyboardInterrupt:
        where = args.output_file or "printed"
        raise KeyboardInterrupt(f"{done} of {len(lines)} queries are answered ({where})") from None


@dataclass(frozen=True)
class Line:
    """One query and what came with it; `where` it stands is how messages call it."""

    where: str
    content: dict[str, Any]


class _Answers:
    """Where answers go as they come: a file, which is begun with the first of them, or standard output.

    Until there is an answer, an older file stays as it is; an interrupt loses none that was given.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: BinaryIO | None = None

    def write(self, lines: Sequence[str]) -> None:
        """Add the lines, at once.

        Raises:
            HartError: the file cannot be written (any more).
            BrokenPipeError: nobody reads the pipe any more.
        """
        from hart.runtime.files import open_target

        text = "".join(f"{line}\n" for line in lines)
        if self._path is None:
            put(text)
            return
        try:
            if self._file is None:
                self._file = open_target(self._path)
            # What came in as half a character goes out as the escape that it came as.
            self._file.write(text.encode("utf-8", "backslashreplace"))
            self._file.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise HartError(f"{self._path}: cannot be written ({error.strerror})") from error


def _as_json(lines: Sequence[Line], answers: Sequence[str]) -> list[str]:
    return [
        json.dumps(line.content | {"prediction": answer}, ensure_ascii=False)
        for line, answer in zip(lines, answers, strict=True)
    ]


def _refuse_the_input(output: Path, source: Path | None) -> None:
    """Answers are written as they come: into their own queries, an interrupt would lose those not yet answered."""
    if source is not None and output.is_file() and source.exists() and output.samefile(source):
        raise HartError(f"--output-file: {output} is the input file; give another one")


def _empty(line: Line) -> HartError:
    return HartError(f"{line.where}: the query is empty; give it a text")


def _encode(
    main: "MainModel",
    adaptation: "Adaptation",
    chosen: Sequence[int],
    lines: Sequence[Line],
    max_query_length: int | None,
    cuts: "Cuts",
) -> list[list[int]]:
    """Tokens of all queries, before the first is answered; `cuts` takes note of those that were cut.

    Args:
        chosen: for each line, which entry of the adaptation answers it.

    Raises:
        HartError: a query that the tokenizer turns into nothing.
    """
    from hart.model.answering import limit

    form = adaptation.input_format
    form = replace(form, max_query_length=limit("max_query_length", max_query_length, form.max_query_length))
    tasks = adaptation.read_tasks()
    queries = []
    for entry, line in zip(chosen, lines, strict=True):
        text = line.content["input"]
        noted = None if form.in_context else cuts
        query = form.encode_query(main.tokenizer, text, noted, name=line.where, blank=True)
        if not set(query) - {main.tokenizer.eos_token_id}:
            raise _empty(line)
        if form.in_context:
            query = form.encode_in_context(main.tokenizer, tasks[entry], text, cuts)
        queries.append(query)
    return queries


def _read_lines(path: Path) -> list[Line]:
    """The objects of a file, each with a text as "input"; empty lines are passed over."""
    from hart.runtime.files import parse_json

    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise HartError(f"{path}: the text is not UTF-8") from None
    except OSError as error:
        raise HartError(f"{path}: cannot be read ({error.strerror})") from None
    lines = []
    # Not splitlines, which would also cut at separators that JSON texts may hold as they are.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        content = parse_json(line, where, "a query")
        if not isinstance(content, dict) or not isinstance(content.get("input"), str):
            raise HartError(f'{where}: must be a JSON object with a text as "input"')
        lines.append(Line(where, content))
    if not lines:
        raise HartError(f'{path}: holds no query; write one JSON object with "input" a line')
    return lines


def _load(folders: Sequence[str]) -> "Adaptation":
    """One row for each folder."""
    from hart.model.adaptation import Adaptation

    loaded = [Adaptation.from_pretrained(folder) for folder in folders]
    for folder, adaptation in zip(folders, loaded, strict=True):
        if len(adaptation) != 1:
            raise HartError(f"{folder}: holds adaptations to {len(adaptation)} tasks; give folders of one each")
    return Adaptation.stack(loaded)


def _row(line: Line, folders: Sequence[str]) -> int:
    """Which of the folders a line of the input names."""
    name = line.content.get("adaptation")
    if name is None and len(folders) == 1:
        return 0
    if line.where == "--input":
        raise HartError('several adaptations need --input-file, whose lines name one as "adaptation"')
    found = [i for i, folder in enumerate(folders) if folder == name]
    found = found or [i for i, folder in enumerate(folders) if Path(folder).name == name]
    if len(found) != 1:
        problem = "names none" if not found else "names more than one"
        raise HartError(f'{line.where}: "adaptation" {name!r} {problem} of {", ".join(folders)}')
    return found[0]
