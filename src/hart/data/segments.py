"""Pre-training as data: documents cut into what the hypernetwork reads, a query and its answer (§4.1).

HyperTuning-PT: "Each input string is split into four chunks of predefined length. The hypernetwork takes the first
and fourth chunk as input … The main model takes the second chunk as input to predict the third chunk." HINT: "Each
input string is split into three random-length chunks", for hypernetwork, main model and prediction in this order. The
training loop is the one for tasks; only the examples differ.
"""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from torch.utils.data import Dataset, get_worker_info

from hart.data.prompts import Lengths, Tokenizer
from hart.data.reading import parse_json, read_lines
from hart.data.sampling import Example
from hart.data.tasks import Task
from hart.errors import HartError

logger = logging.getLogger(__name__)

DEFAULT_HUB_NAME = "allenai/c4"
HUB_CONFIG = "en"
Kind = Literal["four", "three"]

PATTERNS = ("*.json.gz", "*.jsonl.gz", "*.json", "*.jsonl")
LEAST_TOKENS = 4
"""Of a segment, unless its limit is lower."""
LEAST_WORDS = 4 * LEAST_TOKENS
"""Of a document. A word has at least one token, so every segment can have its share."""


class SegmentDataset(Dataset[Example]):
    """`length` examples cut from a stream of documents.

    Example i is a pure function of (seed, i): the i-th usable document, cut by a random stream of its own. Documents
    with fewer than 16 words are skipped; `skipped` is how many there are as far as was read. Nothing but the current
    document is held in memory: reading on is cheap, going back starts the stream again. When all documents are used up
    the stream starts over, with other cuts wherever the kind leaves a choice.

    - `four`: A, B, C, D follow each other. Of a document of n tokens, or `max_document_tokens` if it is longer, B and C
      have a quarter each, at most the limits of query and target. A and D share the rest equally, at most the limit of
      the hypernetwork's input, and go to it as one sequence, A before D. The four start at random where the document
      is longer than they are together.
    - `three`: a window of at most `max_document_tokens`, at a random place of the document, is cut at two random
      places; each segment has at least 4 tokens. Then each is cut to its limit without a gap between them: a query that
      is too long leaves its beginning to the hypernetwork's segment, that one loses its beginning, the target its end.

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
        HartError: an unknown kind, no such folder, no files in it, a damaged file, a line without `text`, only too
            short documents, or a hub that cannot be reached. All of it here, but for what is wrong behind the first
            usable document, which is told by the example that reaches it.
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
        if seed < 0:
            raise HartError(f"seed: must be at least 0, not {seed}")
        if max_document_tokens < LEAST_WORDS:
            raise HartError(f"max_document_tokens: must be at least {LEAST_WORDS}, not {max_document_tokens}")
        self.source = str(directory) if directory is not None else hub_name
        # Messages name the tasks of a batch; here there is one, which stands for the text.
        self.tasks = (Task("Continue the text.", [("", "")], name=f"text of {self.source}"),)
        self.skipped = 0
        self._tokenizer = tokenizer
        self._files = None if directory is None else _files(directory)
        self._hub_name = hub_name
        self._cut = _cut_four if kind == "four" else _cut_three
        self._length = length
        self._seed = seed
        self._lengths = lengths
        self._window = max_document_tokens
        self._count: int | None = None  # usable documents, known after the first round
        # One document now, so that a wrong folder is told before a run begins.
        self._rewind()
        self._document(0)
        self._rewind()

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Example:
        """Example `index`; its `slot` is the index."""
        if not 0 <= index < self._length:
            raise IndexError(f"example {index} of {self._length}")
        text = self._document(index)
        end = [self._tokenizer.eos_token_id]
        tokens = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        # A tokenizer may drop words of control characters alone: too rare a document to read on for.
        tokens = tokens + end * (LEAST_WORDS - len(tokens))
        key = np.array([self._seed, index], dtype=np.uint64)
        rng = np.random.Generator(np.random.Philox(key=key))
        read, query, target = self._cut(tokens, self._window, self._lengths, rng)
        return Example(demo_ids=read + end, query_ids=query + end, labels=target + end, slot=int(index), task_index=0)

    def _document(self, index: int) -> str:
        """The usable document of example `index`; reads on from the last one, or from the start."""
        if self._count is not None:
            index %= self._count
        # A forked worker shares the place in an open file with its parent, so it opens files of its own.
        if index < self._next or self._pid != os.getpid():
            self._rewind()
        while True:
            try:
                for text in self._stream:
                    self._next += 1
                    if self._next > index:
                        return text
            except HartError:
                self._rewind()  # a stream that failed has ended, which must not be taken for the last document
                raise
            if not self._next:
                raise HartError(
                    f"{self.source}: none of its {self.skipped} documents has {LEAST_WORDS} words; give longer texts"
                )
            worker = get_worker_info()
            if worker is None or worker.id == 0:
                used = f"all {self._next} usable documents were read ({self.skipped} were too short)"
                logger.warning("%s: %s, starting again", self.source, used)
            self._count = self._next
            index %= self._count
            self._rewind()

    def _rewind(self) -> None:
        self._next = 0
        self._pid = os.getpid()
        self._stream = self._usable()

    def _usable(self) -> Iterator[str]:
        """Texts of enough words, which can be told without the tokenizer."""
        too_short = 0
        for text in self._texts():
            if len(text.split(maxsplit=LEAST_WORDS - 1)) == LEAST_WORDS:
                yield text
            else:
                too_short += 1
                self.skipped = max(self.skipped, too_short)  # a second round meets the same again

    def _texts(self) -> Iterator[str]:
        if self._files is None:
            yield from _hub_texts(self._hub_name)
            return
        for path in self._files:
            yield from _file_texts(path)

    def __getstate__(self) -> dict[str, Any]:
        # A generator over open files cannot go to a worker, which starts its own.
        return {name: value for name, value in self.__dict__.items() if name != "_stream"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._rewind()


Segments = tuple[list[int], list[int], list[int]]
"""Tokens for the hypernetwork, of the query and of the target."""


def _cut_four(tokens: list[int], window: int, lengths: Lengths, rng: np.random.Generator) -> Segments:
    size = min(len(tokens), window)
    b, c = min(size // 4, lengths.query - 1), min(size // 4, lengths.target - 1)
    rest = min(size - b - c, lengths.demonstrations - 1)
    start = int(rng.integers(len(tokens) - rest - b - c + 1))
    query = start + (rest + 1) // 2
    target = query + b
    after = target + c
    read = tokens[start:query] + tokens[after : after + rest // 2]
    return read, tokens[query:target], tokens[target:after]


def _cut_three(tokens: list[int], window: int, lengths: Lengths, rng: np.random.Generator) -> Segments:
    start = int(rng.integers(max(0, len(tokens) - window) + 1))
    end = min(len(tokens), start + window)
    # Two places among what the least sizes of the three leave free.
    free = end - start - 3 * LEAST_TOKENS
    first, second = np.sort(rng.integers(free + 1, size=2)).tolist()
    target = start + second + 2 * LEAST_TOKENS
    query = max(start + first + LEAST_TOKENS, target - (lengths.query - 1))
    start, end = max(start, query - (lengths.demonstrations - 1)), min(end, target + lengths.target - 1)
    return tokens[start:query], tokens[query:target], tokens[target:end]


def _files(directory: Path) -> list[Path]:
    if not directory.is_dir():
        raise HartError(f"{directory}: no such folder; give one with text files in C4's layout")
    files = sorted(path for pattern in PATTERNS for path in directory.glob(pattern) if path.is_file())
    if not files:
        raise HartError(f"{directory}: holds no file {' or '.join(PATTERNS)}; give a folder in C4's layout")
    return files


def _file_texts(path: Path) -> Iterator[str]:
    for number, line in read_lines(path):
        where = f"{path}, line {number}"
        row = parse_json(line, f"{where}:")
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            raise HartError(f'{where}: must be a JSON object with a text as "text"')
        yield row["text"]


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
