"""Pre-training as data: documents cut into what the hypernetwork reads, a query and its answer (§4.1).

HyperTuning-PT: "Each input string is split into four chunks of predefined length. The hypernetwork takes the first
and fourth chunk as input … The main model takes the second chunk as input to predict the third chunk." HINT: "Each
input string is split into three random-length chunks", for hypernetwork, main model and prediction in this order. The
training loop is the one for tasks; only the examples differ.
"""

import gzip
import json
import logging
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from torch.utils.data import Dataset

from hart.data.prompts import Lengths, Tokenizer
from hart.data.sampling import Example
from hart.data.tasks import Task
from hart.errors import HartError

logger = logging.getLogger(__name__)

DEFAULT_HUB_NAME = "allenai/c4"
HUB_CONFIG = "en"
Kind = Literal["four", "three"]

PATTERNS = ("*.json.gz", "*.jsonl.gz", "*.json", "*.jsonl")
LEAST_TOKENS = 4
"""Of a segment. A document of 4 × this many words has at least as many tokens, so every segment can have its share."""


class SegmentDataset(Dataset[Example]):
    """`length` examples cut from a stream of documents.

    Example i is a pure function of (seed, i): the i-th usable document, cut by a random stream of its own. Documents
    with fewer than 16 words are skipped. Nothing but the current document is held in memory: reading on is cheap,
    going back starts the stream again. When all documents are used up the stream starts over, with other cuts.

    - `four`: A, B, C, D follow each other in a window of at most `max_document_tokens`, which starts at random in
      longer documents. B and C have a quarter of the window each, at most the limits of query and target; A and D share
      the rest as equally as the limit of the hypernetwork's input allows, and go to it as one text, A before D.
    - `three`: the window is cut at two random places, each segment has at least 4 tokens. A segment longer than its
      limit loses the end that is farther from the text it borders on in use: the hypernetwork's and the main model's
      their beginning, the target its end. So what the main model reads always ends where the target begins.

    Args:
        tokenizer: of the main model.
        directory: folder of files in C4's layout: one JSON object with `text` per line, gzipped or not, read in the
            order of their names. None: the hub data set `hub_name`, streamed.
        hub_name: stands in for a folder.
        kind: `four` or `three`.
        length: examples of a whole run: steps × global batch size.
        seed: of all cuts.
        lengths: limits in tokens, end-of-sequence token included.
        max_document_tokens: size of the window.

    Raises:
        HartError: no such folder, no files in it, a damaged file, a line without `text`, only too short documents, or a
            hub that cannot be reached. Missing folders are told at once, damaged files when they are reached.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        directory: Path | None,
        hub_name: str = DEFAULT_HUB_NAME,
        kind: Kind,
        length: int,
        seed: int,
        lengths: Lengths,
        max_document_tokens: int = 512,
    ) -> None:
        if kind not in get_args(Kind):
            raise HartError(f"segments: kind '{kind}' is not one of {', '.join(get_args(Kind))}")
        if max_document_tokens < 4 * LEAST_TOKENS:
            raise HartError(f"data.max_document_tokens: must be at least {4 * LEAST_TOKENS}, not {max_document_tokens}")
        self.source = str(directory) if directory is not None else hub_name
        # Messages name the tasks of a batch; here there is one, which stands for the text.
        self.tasks = (Task("Continue the text.", [("", "")], name=f"text of {self.source}"),)
        self.skipped = 0
        self._tokenizer = tokenizer
        self._files = None if directory is None else _files(directory)
        self._hub_name = hub_name
        self._cut = {"four": self._cut_four, "three": self._cut_three}[kind]
        self._length = length
        self._seed = seed
        self._lengths = lengths
        self._window = max_document_tokens
        self._rewind()
        self._count: int | None = None  # usable documents, known after the first round
        self._check_first()

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Example:
        """Example `index`; its `slot` is the index."""
        if not 0 <= index < self._length:
            raise IndexError(f"example {index} of {self._length}")
        text = self._document(index)
        tokens = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        key = np.array([self._seed, index], dtype=np.uint64)
        rng = np.random.Generator(np.random.Philox(key=key))
        start = int(rng.integers(max(0, len(tokens) - self._window) + 1))
        read, query, target = self._cut(tokens[start : start + self._window], rng)
        end = [self._tokenizer.eos_token_id]
        return Example(demo_ids=read + end, query_ids=query + end, labels=target + end, slot=int(index), task_index=0)

    def _cut_four(self, tokens: list[int], rng: np.random.Generator) -> tuple[list[int], list[int], list[int]]:
        quarter = len(tokens) // 4
        b, c = min(quarter, self._lengths.query - 1), min(quarter, self._lengths.target - 1)
        rest = min(len(tokens) - b - c, self._lengths.demonstrations - 1)
        a = (rest + 1) // 2
        ends = np.cumsum([a, b, c, rest - a]).tolist()
        return tokens[:a] + tokens[ends[2] : ends[3]], tokens[a : ends[1]], tokens[ends[1] : ends[2]]

    def _cut_three(self, tokens: list[int], rng: np.random.Generator) -> tuple[list[int], list[int], list[int]]:
        # Two different places among those that leave each segment its least size.
        free = len(tokens) - 3 * LEAST_TOKENS
        first, second = np.sort(rng.integers(free + 1, size=2)).tolist()
        first, second = first + LEAST_TOKENS, second + 2 * LEAST_TOKENS
        read, query, target = tokens[:first], tokens[first:second], tokens[second:]
        limits = self._lengths
        return read[-(limits.demonstrations - 1) :], query[-(limits.query - 1) :], target[: limits.target - 1]

    def _document(self, index: int) -> str:
        """The usable document of example `index`; reads on from the last one, or from the start."""
        if self._count is not None:
            index %= self._count
        if index < self._next:
            self._rewind()
        while True:
            for text in self._stream:
                self._next += 1
                if self._next > index:
                    return text
            if not self._next:
                raise HartError(
                    f"{self.source}: all {self.skipped} documents are shorter than {4 * LEAST_TOKENS} words; "
                    "give longer texts"
                )
            if self._count is None:
                self._count = self._next
                logger.warning(
                    "%s: all %d usable documents were read (%d were too short), starting again",
                    self.source, self._count, self.skipped,
                )  # fmt: skip
            index %= self._count
            self._rewind()

    def _rewind(self) -> None:
        self._next = 0
        self._stream = self._usable()

    def _usable(self) -> Iterator[str]:
        """Texts of enough words; how many were not is counted in the first round."""
        for text in self._texts():
            # Words, because counting them needs no tokenizer and a word has at least one token.
            if len(text.split(maxsplit=4 * LEAST_TOKENS)) >= 4 * LEAST_TOKENS:
                yield text
            elif self._count is None:
                self.skipped += 1

    def _texts(self) -> Iterator[str]:
        if self._files is None:
            yield from _hub_texts(self._hub_name)
            return
        for path in self._files:
            yield from _file_texts(path)

    def _check_first(self) -> None:
        """Read one document now, so that a wrong folder is told before the base is loaded and the run begins."""
        self._document(0)
        self._rewind()
        self.skipped = 0

    def __getstate__(self) -> dict[str, Any]:
        # A generator over open files cannot go to a worker, which starts its own.
        return {name: value for name, value in self.__dict__.items() if name not in ("_stream", "_next")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._rewind()


def _files(directory: Path) -> list[Path]:
    if not directory.is_dir():
        raise HartError(f"{directory}: no such folder; give one with text files in C4's layout")
    files = sorted({path for pattern in PATTERNS for path in directory.glob(pattern)})
    if not files:
        raise HartError(f"{directory}: holds no file {' or '.join(PATTERNS)}; give a folder in C4's layout")
    return files


def _file_texts(path: Path) -> Iterator[str]:
    opened = gzip.open if path.suffix == ".gz" else open
    number = 0
    try:
        with opened(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _text(line, f"{path}, line {number}")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise HartError(f"{path}: damaged after line {number} ({error}); download it again") from error
    except UnicodeDecodeError as error:
        raise HartError(f"{path}: not UTF-8 after line {number}; give text files") from error
    except OSError as error:
        raise HartError(f"{path}: cannot be read ({error.strerror})") from error


def _text(line: str, where: str) -> str:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise HartError(f"{where}: not JSON ({error.msg})") from None
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        raise HartError(f'{where}: must be a JSON object with a text as "text"')
    return row["text"]


def _hub_texts(name: str) -> Iterator[str]:
    import datasets  # an import of seconds

    try:
        config = (HUB_CONFIG,) if name == DEFAULT_HUB_NAME else ()
        for row in datasets.load_dataset(name, *config, split="train", streaming=True):
            if not isinstance(row.get("text"), str):
                raise HartError(f'{name}: its rows have no text in a column "text"')
            yield row["text"]
    except HartError:
        raise
    except Exception as error:  # the hub client has many; all mean that there is no text
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise HartError(
            f"{name}: cannot be streamed from the hub ({reason}); give a folder of its files as data.dir"
        ) from error
