"""Pre-training data: documents cut into segments for the hypernetwork, a query and its answer (§4.1).

HyperTuning-PT: "Each input string is split into four chunks of predefined length. The hypernetwork takes the first
and fourth chunk as input … The main model takes the second chunk as input to predict the third chunk." HINT: "Each
input string is split into three random-length chunks", for hypernetwork, main model and prediction in this order. The
training loop is the same as for tasks; only the examples differ.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from hart.data.base import Collection
from hart.data.documents import Documents, hub_files, local_files
from hart.data.input_format import InputFormat
from hart.data.prompts import Tokenizer
from hart.data.sampling import Example, Examples
from hart.data.streams import in_first_worker, numbered_stream
from hart.data.tasks import Task
from hart.data.tokens import begin_of
from hart.errors import HartError

if TYPE_CHECKING:
    from hart.data.config import DataConfig

logger = logging.getLogger(__name__)

DEFAULT_HUB_NAME = "allenai/c4"
HUB_CONFIG = "en"
Kind = Literal["four", "three"]

PATTERNS = ("*.json.gz", "*.jsonl.gz", "*.json", "*.jsonl")
LEAST_TOKENS = 4
"""Least number of tokens of a segment, unless its limit is lower."""
LEAST_WORDS = 4 * LEAST_TOKENS
"""Least number of words of a document. A word has at least one token, so every segment gets `LEAST_TOKENS`."""


class Segments(Collection):
    """The collection of text to pre-train on, cut into segments; it has no tasks."""

    hub_name = DEFAULT_HUB_NAME
    is_text = True

    def __init__(self, kind: Kind) -> None:
        self.name = f"{kind}_segments"
        self._kind = kind

    def load(self, data: "DataConfig", split: str) -> list[Task]:
        raise HartError(f"data.collection: {self.name} is text to pre-train on, which has no {split} tasks")

    def problems(self, data: "DataConfig") -> Iterator[tuple[str, str]]:
        yield from super().problems(data)
        if data.demonstrations_to != "hypernetwork":
            yield "demonstrations_to", f"must be hypernetwork with {self.name}: the hypernetwork reads one segment"
        if data.validation_tasks:
            yield "validation_tasks", f"must be 0 with {self.name}, which has no tasks"

    def examples(
        self,
        data: "DataConfig",
        tasks: Sequence[Task],
        tokenizer: Tokenizer,
        *,
        length: int,
        seed: int,
        queries_per_task: int,
        reader: Tokenizer | None = None,
        teacher: InputFormat | None = None,
    ) -> Examples:
        if reader is not None:
            raise HartError(
                f"data.collection: {self.name} cuts one text into parts for both networks, which must then have one "
                "tokenizer; this base and hypernetwork have two"
            )
        return SegmentDataset(
            tokenizer,
            InputFormat.from_config(data),
            directory=None if data.dir is None else Path(data.dir),
            hub_name=data.hub_name or self.hub_name,
            kind=self._kind,
            length=length,
            seed=seed,
            max_document_tokens=data.max_document_tokens,
            teacher=teacher,
        )


class SegmentDataset(Examples):
    """`length` examples cut from a stream of documents.

    Example i is a pure function of (seed, i): the i-th usable document, cut by its own random stream. Documents with
    fewer than 16 words or with a lone surrogate are left out. After the last document the first one follows, with other
    random cuts. Files are read by `hart.data.documents`.

    - `four`: consecutive segments A, B, C, D. Of n tokens (those of the document, at most `max_document_tokens`), B and
      C have a quarter each, at most the limits of query and target. A and D share the rest equally, at most the limit
      of the hypernetwork's input, which is A followed by D. If the document is longer than the four segments, they
      start at a random place.
    - `three`: a window of at most `max_document_tokens`, at a random place of the document, is cut at two random
      places; each segment has at least 4 tokens. Then each is cut to its limit without a gap between them: the
      beginning of a too long query goes to the hypernetwork's segment, which loses its own beginning; a too long target
      loses its end.

    Args:
        tokenizer: tokenizer of the main model.
        form: input format with the limits of the segments, including the end-of-sequence token.
        directory: folder of files in C4's layout: one JSON object with `text` per line, gzipped or not, read in the
            order of their names. None: the hub data set `hub_name`, downloaded file by file when needed.
        hub_name: hub data set that replaces a folder.
        kind: `four` or `three`.
        length: number of examples of a whole run: steps × global batch size.
        seed: seed of all cuts.
        max_document_tokens: size of the window.
        teacher: input format of a teacher, if there is one. It reads all text before the target; a text longer than the
            limit loses its beginning.

    Raises:
        HartError: the kind is unknown, the folder is missing or empty, a file is damaged, a line has no `text`, all
            documents are too short, or the hub cannot be reached. Errors after the first file with a usable document
            are raised by the example that reaches them.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        form: InputFormat,
        *,
        directory: Path | None,
        hub_name: str = DEFAULT_HUB_NAME,
        kind: Kind,
        length: int,
        seed: int,
        max_document_tokens: int = 512,
        teacher: InputFormat | None = None,
    ) -> None:
        if kind not in get_args(Kind):
            raise HartError(f"segments: kind '{kind}' is not one of {', '.join(get_args(Kind))}")
        if seed < 0:
            raise HartError(f"seed: must be at least 0, not {seed}")
        if max_document_tokens < LEAST_WORDS:
            raise HartError(f"max_document_tokens: must be at least {LEAST_WORDS}, not {max_document_tokens}")
        self.source = str(directory) if directory is not None else hub_name
        # A single task stands for the text, as messages name the tasks of a batch.
        self.tasks = (Task("Continue the text.", [("", "")], name=f"text of {self.source}"),)
        self._tokenizer = tokenizer
        config = HUB_CONFIG if hub_name == DEFAULT_HUB_NAME else None
        files = hub_files(hub_name, config) if directory is None else local_files(_files(directory))
        self._documents = Documents(files, LEAST_WORDS)
        self._again = False
        self._cut = _cut_four if kind == "four" else _cut_three
        self._length = length
        self._seed = seed
        self._begin = begin_of(tokenizer)
        self._form = replace(
            form,
            max_demonstrations_length=form.max_demonstrations_length - len(self._begin),
            max_query_length=form.max_query_length - len(self._begin),
        )
        self._window = max_document_tokens
        self._taught = None if teacher is None else teacher.max_demonstrations_length - len(self._begin) - 1
        self._document(0)  # read now, so that a wrong folder fails before a run begins

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Example:
        """Example `index`; its `slot` is the index."""
        if not 0 <= index < self._length:
            raise IndexError(f"example {index} of {self._length}")
        text = self._document(index)
        end = [self._tokenizer.eos_token_id]
        tokens = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        # A tokenizer may drop words that are only control characters; such rare documents are padded.
        tokens = tokens + end * (LEAST_WORDS - len(tokens))
        rng = numbered_stream(self._seed, index)
        read, query, target, after = self._cut(tokens, self._window, self._form, rng)
        begin = self._begin
        example = Example(
            demo_ids=[begin + read + after + end],
            query_ids=begin + query + end,
            labels=target + end,
            slot=int(index),
            task_index=0,
        )
        if self._taught is not None:  # without the text after the target, which would reveal it
            example["teacher_ids"] = begin + (read + query)[-self._taught :] + end
        return example

    def _document(self, index: int) -> str:
        """The usable document of example `index`; the last one is followed by the first."""
        if (text := self._documents.text(index)) is not None:
            return text
        count = self._documents.count
        if not count:
            raise HartError(
                f"{self.source}: has no document of {LEAST_WORDS} words or more ({self.skipped} shorter ones); give "
                "longer texts"
            )
        if not self._again and in_first_worker():
            self._again = True
            used = f"all {count} usable documents were read ({self.skipped} others were left out)"
            logger.warning("%s: %s, starting again", self.source, used)
        text = self._documents.text(index % count)
        assert text is not None
        return text

    @property
    def skipped(self) -> int:
        """Number of documents that are too short or not text, in the files that were read."""
        return self._documents.skipped


Cut = tuple[list[int], list[int], list[int], list[int]]
"""Tokens of the hypernetwork's segment before the query, of query, target, and the hypernetwork's segment after it."""


def _cut_four(tokens: list[int], window: int, form: InputFormat, rng: np.random.Generator) -> Cut:
    size = min(len(tokens), window)
    b, c = min(size // 4, form.max_query_length - 1), min(size // 4, form.max_target_length - 1)
    rest = min(size - b - c, form.max_demonstrations_length - 1)
    start = int(rng.integers(len(tokens) - rest - b - c + 1))
    query = start + (rest + 1) // 2
    target = query + b
    after = target + c
    return tokens[start:query], tokens[query:target], tokens[target:after], tokens[after : after + rest // 2]


def _cut_three(tokens: list[int], window: int, form: InputFormat, rng: np.random.Generator) -> Cut:
    start = int(rng.integers(max(0, len(tokens) - window) + 1))
    end = min(len(tokens), start + window)
    # Two random places among the tokens beyond the least sizes of the three segments.
    free = end - start - 3 * LEAST_TOKENS
    first, second = np.sort(rng.integers(free + 1, size=2)).tolist()
    target = start + second + 2 * LEAST_TOKENS
    query = max(start + first + LEAST_TOKENS, target - (form.max_query_length - 1))
    start, end = max(start, query - (form.max_demonstrations_length - 1)), min(end, target + form.max_target_length - 1)
    return tokens[start:query], tokens[query:target], tokens[target:end], []


def _files(directory: Path) -> list[Path]:
    if not directory.is_dir():
        raise HartError(f"{directory}: no such folder; give one with text files in C4's layout")
    files = sorted(path for pattern in PATTERNS for path in directory.glob(pattern) if path.is_file())
    if not files:
        raise HartError(f"{directory}: holds no file {' or '.join(PATTERNS)}; give a folder in C4's layout")
    return files
