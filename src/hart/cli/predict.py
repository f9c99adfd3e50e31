"""hart predict: answer queries with an adapted base, without the hypernetwork."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hart.cli.options import (
    Once,
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
from hart.data.tables.formats import FORMATS, Format
from hart.errors import HartError

if TYPE_CHECKING:
    from hart.data.prompts import Cuts
    from hart.data.tables import Answers
    from hart.model.adaptation import Adaptation
    from hart.model.main_model import MainModel
    from hart.model.table_queries import Queries, Query

logger = logging.getLogger(__name__)

# Number of batches that are sorted by length together. More would save a little padding, but with mixed tasks each
# query has its own generated parameters in memory.
CHUNK = 8


TEXTS = {"--input": 1, "--choices": 1, "--choice": 1}
"""Options whose values are texts (`hart.cli.options.keep_texts`)."""
PROBABILITIES = "probabilities"


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "predict",
        help="answer queries with an adaptation",
        description="""\
Answer queries with what hart adapt saved. Only the frozen base is loaded, and refused unless it is
the one that the adaptation was made for. Queries come from JSON lines, a JSON array, CSV, TSV, plain
text (one a line) or Parquet, as the file's ending says; each row comes back with "prediction" added,
in the same order. With several adaptations a row has "adaptation", the folder (or its last name) to
use for it, so that one batch mixes tasks.
With choices the answer is the most probable one of them, and "probabilities" has those of all.
All rows of a file are checked before the first is answered. Answers are written as they come: an
interrupt loses none that was given, and an older output file stays until the first.""",
        epilog="""\
examples:
  hart predict adaptations/animals --input "cat plum dog hat lion"
  hart predict adaptations/animals adaptations/my-task --input-file queries.jsonl --output-file answers.jsonl
  hart predict adaptations/tickets --input-file tickets.csv --input-field text --choices billing,bug,account \\
    --output-file labelled.csv --skip-errors --resume
  cut -f 2 log.tsv | hart predict adaptations/my-task --input-file - --input-format txt""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "adaptations", metavar="A", nargs="+", help="folder that hart adapt wrote; several may be given"
    )
    queries = parser.add_mutually_exclusive_group(required=True)
    queries.add_argument("--input", metavar="TEXT", type=text, action=Once, help="one query; the answer is printed")
    queries.add_argument(
        "--input-file",
        metavar="F",
        type=Path,
        action=Once,
        help="F.jsonl, .json, .csv, .tsv, .txt or .parquet, all but the last also .gz; - is standard input",
    )
    parser.add_argument("--input-format", choices=FORMATS, help="format of a file without such an ending, and of -")
    parser.add_argument(
        "--input-field",
        metavar="NAME",
        type=text,
        help="field of the query (default: input, or the only column of a CSV or TSV file)",
    )
    parser.add_argument(
        "--output-file",
        metavar="G",
        type=Path,
        help="where the answers go, by the same endings (default: printed as JSON lines); another file than the "
        "input; replaced",
    )
    parser.add_argument(
        "--output-format", choices=FORMATS, help="format of printed answers, or of a file with another ending"
    )
    parser.add_argument(
        "--output-field",
        metavar="NAME",
        type=text,
        default="prediction",
        help="field of the answer (default: %(default)s)",
    )
    parser.add_argument(
        "--skip-errors", action="store_true", help="report wrong rows and skip them, instead of stopping"
    )
    parser.add_argument(
        "--resume", action="store_true", help="continue the output file after its answers, which are checked"
    )
    choosing = parser.add_argument_group("choosing")
    choosing.add_argument("--choices", metavar="A,B,...", type=text, action=Once, help="answer with one of these")
    choosing.add_argument(
        "--choice",
        metavar="TEXT",
        type=text,
        action="append",
        help="one of the choices, which may hold commas; repeat it",
    )
    choosing.add_argument(
        "--choices-field",
        metavar="NAME",
        nargs="?",
        const="choices",
        help="field of a row's own choices, a list or a text with commas (default: %(const)s)",
    )
    choosing.add_argument(
        "--normalisation",
        choices=("sum", "mean"),
        help="score of a choice: the sum of its tokens' log-probabilities (default), or their mean, which does not "
        "prefer short choices; softmax over the choices turns scores into probabilities",
    )
    choosing.add_argument(
        "--calibrate",
        action="store_true",
        help="subtract the scores of the same choices for the query N/A, the model's preference without a query "
        "(contextual calibration, Zhao et al. 2021)",
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
    from hart.data.tables import chunks
    from hart.model.table_queries import Encoder
    from hart.runtime.files import check_file_target

    device = select_device(args.device)
    if args.output_file is not None:
        check_file_target(args.output_file)
        _refuse_the_input(args.output_file, args.input_file)
    queries = _queries(args)
    total = queries.check() if queries.again else None
    answers = _answers(args, queries)
    adaptation = _load(args.adaptations)
    main = load_base(adaptation, args.base, dtype=args.dtype, device=device)
    encode = Encoder(main, adaptation, args.max_query_length)
    if queries.choices:
        encode.check_choices(queries.choices, "--choices")
    if queries.again:
        # All queries are checked before the first is answered; the tokens are not kept.
        for _ in queries.read(encode, tell={"tokens"}):
            pass
        encode.cuts.tell(logger)
    stream = queries.read(encode, tell=() if queries.again else {"row", "tokens"})
    done = answers.resume(query.row for query, _ in stream) if args.resume else 0
    if done:
        logger.info("%d queries are already answered in %s", done, answers.place)
    said: set[str] = set()
    plain = args.input_file is None and args.output_file is None and args.output_format is None
    try:
        with progress_bar("queries", None if total is None else total - done) as advance:
            for part in chunks(stream, (CHUNK if queries.again else 1) * args.batch_size):
                asked = [query for query, _ in part]
                adapted = adaptation if len(adaptation) == 1 else adaptation.select([each.entry for each in asked])
                cuts = Cuts()
                made = _respond(args, main, adapted, part, queries.choosing, cuts)
                for noted in (cuts,) if queries.again else (encode.cuts, cuts):
                    noted.tell_first(logger, said)
                if plain:
                    put("".join(f"{fields[args.output_field]}\n" for fields in made))
                else:
                    answers.write([query.row.content | new for query, new in zip(asked, made, strict=True)])
                done += len(part)
                advance(len(part))
    except KeyboardInterrupt:
        count = f"{done} queries are" if total is None else f"{done} of {total} queries are"
        raise KeyboardInterrupt(f"{count} answered ({answers.place})") from None
    if not done:
        raise HartError(f"{queries.name}: has no queries{queries.but_skipped}")
    answers.finish()
    if queries.skipped:
        logger.warning("skipped wrong rows: %d; answered queries: %d", queries.skipped, done)


def _queries(args: argparse.Namespace) -> "Queries":
    from hart.data.tables import Table, format_of
    from hart.model.classifying import check_classes
    from hart.model.table_queries import Queries, split_choices

    given = [*(split_choices(args.choices, "--choices") if args.choices is not None else ()), *(args.choice or ())]
    choices = check_classes(given, "--choices") if given else []
    _refuse_what_has_no_use(args, bool(choices) or args.choices_field is not None)
    source: str | Table
    path = args.input_file
    if path is None:
        source = args.input
    elif path == Path("-"):
        if args.input_format is None:
            raise HartError(f"standard input: say what it holds with --input-format ({', '.join(FORMATS)})")
        source = Table(sys.stdin.buffer, args.input_format, "standard input", args.input_field or "input")
    else:
        form = args.input_format or format_of(path, "--input-format")
        source = Table(path, form, str(path), args.input_field or "input")
    return Queries(
        source,
        folders=args.adaptations,
        field=args.input_field,
        choices=choices,
        choices_field=args.choices_field,
        skip_errors=args.skip_errors,
    )


def _respond(
    args: argparse.Namespace,
    main: "MainModel",
    adaptation: "Adaptation",
    part: Sequence[tuple["Query", list[int]]],
    choosing: bool,
    cuts: "Cuts",
) -> list[dict[str, Any]]:
    """The fields that answers add to their rows, by rank classification (`choosing`) or by generation."""
    from hart.model.classifying import classify

    tokens = [read for _, read in part]
    if not choosing:
        texts = main.generate(tokens, adaptation, batch_size=args.batch_size, max_new_tokens=args.max_new_tokens)
        return [{args.output_field: each} for each in texts]
    found = classify(
        main,
        tokens,
        [query.choices for query, _ in part],
        adaptation,
        calibrate=args.calibrate,
        normalisation=args.normalisation or "sum",
        batch_size=args.batch_size,
        cuts=cuts,
    )
    return [{args.output_field: each.choice, PROBABILITIES: each.probabilities} for each in found]


def _answers(args: argparse.Namespace, queries: "Queries") -> "Answers":
    from hart.data.tables import Answers, format_of

    own = [args.output_field, *([PROBABILITIES] if queries.choosing else [])]
    asked = args.input_field or "input"
    if asked in own or len(set(own)) < len(own):
        raise HartError(
            f"--output-field: {args.output_field!r} is already the field of the query or of probabilities; give another"
        )
    path = args.output_file
    if path is not None and path.suffix == ".gz":
        raise HartError(f"--output-file: {path} ends in .gz, and answers are written uncompressed; leave .gz out")
    form: Format = args.output_format or "jsonl"
    if path is not None and args.output_format is None and path.suffix:  # a pipe or a device has no ending
        form = format_of(path, "--output-format")
    answers = Answers(path, form, own, columns=None if queries.columns is None else list(queries.columns), show=put)
    if path is not None:
        _refuse_the_input(Path(answers.place), args.input_file)
    return answers


def _refuse_what_has_no_use(args: argparse.Namespace, choosing: bool) -> None:
    if args.input_file is None and (args.input_format or args.input_field or args.resume or args.skip_errors):
        raise HartError("--input-format, --input-field, --skip-errors and --resume need an --input-file")
    if choosing and args.max_new_tokens is not None:
        raise HartError("--max-new-tokens: has no effect with choices; leave it out")
    if not choosing and (args.calibrate or args.normalisation is not None):
        raise HartError("--calibrate and --normalisation need choices; give --choices, --choice or --choices-field")


def _refuse_the_input(output: Path, source: Path | None) -> None:
    """Raise `HartError` if the output is the input: an interrupt would lose the queries not yet answered."""
    if source is not None and output.is_file() and source.exists() and output.samefile(source):
        raise HartError(f"--output-file: {output} is the input file; give another one")


def _load(folders: Sequence[str]) -> "Adaptation":
    """One adaptation with an entry for each folder."""
    from hart.model.adaptation import Adaptation

    loaded = [Adaptation.from_pretrained(folder) for folder in folders]
    for folder, adaptation in zip(folders, loaded, strict=True):
        if len(adaptation) != 1:
            raise HartError(f"{folder}: has adaptations to {len(adaptation)} tasks; give folders of one task each")
    return Adaptation.stack(loaded)
