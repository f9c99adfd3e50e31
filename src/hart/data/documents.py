"""Random access to the documents of text files, after one pass through each file.

The positions of a file's usable documents are kept in the cache (`hart.runtime.files.cache_folder`), 8 bytes each, for
all processes and later runs: a resumed run does not read earlier documents again, and workers that need every n-th
document do not parse those between. Files of the hub are downloaded one by one into the hub's cache, when their first
document is needed.
"""

import hashlib
import logging
import os
import re
import time
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from hart.data.hub import cached_snapshot, unreachable
from hart.data.reading import check_file, check_text, open_bytes, read_lines
from hart.errors import HartError, first_line
from hart.runtime.files import cache_folder, parse_json, write_bytes

logger = logging.getLogger(__name__)

TRIES = 6
"""Attempts of a download, with pauses of 1, 2, 4, 8 and 16 seconds."""
_LARGE = 2**30


class TextFile(Protocol):
    """A file of documents, local or still to be downloaded."""

    @property
    def key(self) -> str:
        """A text that changes with the content."""
        ...

    def fetch(self) -> Path: ...


@dataclass(frozen=True)
class LocalFile:
    path: Path

    @property
    def key(self) -> str:
        about = self.path.stat()
        return f"{self.path.resolve()} {about.st_size} {about.st_mtime_ns}"

    def fetch(self) -> Path:
        return self.path


@dataclass(frozen=True)
class HubFile:
    repository: str
    revision: str
    name: str

    @property
    def key(self) -> str:
        return f"{self.repository}@{self.revision}/{self.name}"

    def fetch(self) -> Path:
        """The file in the hub's cache, downloaded if it is missing, with `TRIES` attempts.

        Raises:
            HartError: the download failed.
        """
        from huggingface_hub import constants, hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

        for failed in range(1, TRIES + 1):
            try:
                return Path(hf_hub_download(self.repository, self.name, repo_type="dataset", revision=self.revision))
            except Exception as error:  # the hub's client raises many types; each means that there is no file
                absent = isinstance(error, EntryNotFoundError | RepositoryNotFoundError)
                lasting = absent and not isinstance(error, LocalEntryNotFoundError)
                if failed == TRIES or lasting or constants.HF_HUB_OFFLINE:
                    instead = "run the command again to continue, or give a folder of its files as data.dir"
                    raise unreachable(f"{self.repository}: {self.name}", "downloaded", error, instead) from error
                wait = 2 ** (failed - 1)
                reason = first_line(error)
                logger.warning("%s: download failed (%s); again in %d s", self.name, reason, wait)
                time.sleep(wait)
        raise AssertionError


def local_files(paths: Sequence[Path]) -> list[TextFile]:
    return [LocalFile(path) for path in paths]


def hub_files(name: str, config: str | None) -> list[TextFile]:
    """The training files of a data set on the hub (or of a folder that `datasets` reads), in order.

    Raises:
        HartError: the hub cannot be reached and its cache has no files of it, or they are neither JSON lines nor
            parquet.
    """
    import datasets  # an import of seconds

    instead = "give a folder of its files as data.dir"
    try:
        found = list(map(str, datasets.load_dataset_builder(name, config).config.data_files["train"]))
    except Exception as error:
        folder = cached_snapshot(name)
        if folder is not None and config is None:
            return hub_files(str(folder), None)
        files = sorted(folder.glob(f"{config}/*train*.json.gz")) if folder is not None else []
        if not files:
            raise unreachable(name, "read from the hub", error, instead) from error
        _refuse_gaps(name, files)
        return local_files(files)
    texts: list[TextFile] = []
    for url in found:
        if not url.endswith((*_JSON, ".parquet")):
            raise HartError(f"{name}: its file {url} must be JSON lines or parquet; {instead}")
        match = re.fullmatch(r"hf://datasets/(.+?)@(.+?)/(.+)", url)
        texts.append(HubFile(*match.groups()) if match else LocalFile(Path(url)))
    return texts


_JSON = (".json", ".jsonl", ".json.gz", ".jsonl.gz")


def _refuse_gaps(name: str, files: Sequence[Path]) -> None:
    """Raise `HartError` if a numbered file is cached without those before it, as files are read in order."""
    for expected, path in enumerate(files):
        match = re.search(r"\.(\d+)-of-\d+\.", path.name)
        if match and int(match[1]) != expected:
            raise HartError(f"{name}: the hub's cache has {path.name} and lacks the file before it; download that, too")


class Documents:
    """Numbered access to the documents of files with at least `least_words` words.

    `skipped` is the number of other documents in the files that were read.

    Raises:
        HartError: a file cannot be read, or a line has no text; raised when the file's first document is needed.
    """

    def __init__(self, files: Sequence[TextFile], least_words: int) -> None:
        self._files = list(files)
        self._least_words = least_words
        self._ends: list[int] = []  # for each known file: number of usable documents up to its end
        self.skipped = 0
        self._open: tuple[int, int, _Places, _Reader] | None = None

    def text(self, number: int) -> str | None:
        """The document with this number; None if there are fewer."""
        while number >= (self._ends[-1] if self._ends else 0):
            if len(self._ends) == len(self._files):
                return None
            places = self._places(self._files[len(self._ends)])
            self.skipped += places.skipped
            self._ends.append((self._ends[-1] if self._ends else 0) + len(places.offsets))
        at = bisect_right(self._ends, number)
        # A forked worker opens its own files, because open ones share their position with the parent.
        if self._open is None or self._open[:2] != (os.getpid(), at):
            file = self._files[at]
            places = self._places(file)
            path = file.fetch()
            reader: _Reader = _ParquetReader(path) if path.suffix == ".parquet" else _LineReader(path)
            self._open = os.getpid(), at, places, reader
        _, _, places, reader = self._open
        return reader.text(int(places.offsets[number - (self._ends[at - 1] if at else 0)]))

    @property
    def count(self) -> int | None:
        """Number of documents; None until all files are known."""
        return self._ends[-1] if len(self._ends) == len(self._files) else None

    def _places(self, file: TextFile) -> "_Places":
        name = hashlib.sha256(f"{self._least_words} {file.key}".encode()).hexdigest()
        path = cache_folder() / "documents" / f"{name}.npy"
        found = _Places.load(path)
        if found is not None:
            return found
        from filelock import FileLock

        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path.with_suffix(".lock"))
            lock.acquire()
        except OSError as error:
            logger.debug("not remembered: %s", error)
            return self._find(file.fetch())
        try:  # one process reads the file, the others wait for its result
            found = _Places.load(path)
            if found is None:
                found = self._find(file.fetch())
                found.save(path)
        finally:
            lock.release()
        return found

    def _find(self, path: Path) -> "_Places":
        """Find the positions of the usable documents by reading the whole file."""
        check_file(path)
        if path.stat().st_size > _LARGE:
            logger.warning("%s: reading the whole file once to index its documents", path)
        offsets, bad, skipped = [], [], 0
        for where, offset, text in _parquet_texts(path) if path.suffix == ".parquet" else _line_texts(path):
            if len(text.split(maxsplit=self._least_words - 1)) < self._least_words:
                skipped += 1
                continue
            try:
                if not text.isascii():
                    check_text(text, where)
            except HartError as error:
                bad.append(str(error).replace("; replace it", ""))
                continue
            offsets.append(offset)
        if bad:
            # A bad document among millions must not end a run.
            more = f", as are {len(bad) - 1} more of the file" if len(bad) > 1 else ""
            logger.warning("%s; it is left out%s", bad[0], more)
        return _Places(np.array(offsets, dtype=np.int64), skipped + len(bad))

    def __getstate__(self) -> dict[str, Any]:
        # Open files cannot be sent to a worker, which opens its own.
        return {**self.__dict__, "_open": None}


@dataclass(frozen=True)
class _Places:
    """The positions of a file's usable documents, and the number of skipped ones."""

    offsets: np.ndarray
    skipped: int

    def save(self, path: Path) -> None:
        buffer = BytesIO()
        np.save(buffer, np.concatenate([[self.skipped], self.offsets]).astype(np.int64))
        try:
            write_bytes(path, buffer.getvalue())
        except HartError as error:
            logger.debug("not remembered: %s", error)

    @classmethod
    def load(cls, path: Path) -> "_Places | None":
        try:
            found = np.load(path, mmap_mode="r")
            return cls(found[1:], int(found[0]))
        except (OSError, ValueError, EOFError, IndexError):
            return None  # unknown yet, or a damaged file, which will be replaced


class _Reader(Protocol):
    def text(self, offset: int) -> str: ...


class _LineReader:
    """Access to the lines of a file by the position of their first byte; going back in an archive restarts it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO = open_bytes(path)

    def text(self, offset: int) -> str:
        try:
            self._file.seek(offset)
            text = self._file.readline().decode("utf-8-sig")
        except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
            raise HartError(f"{self._path}: cannot be read any more ({error}); download it again") from error
        return _text_of(text, f"{self._path}: byte {offset}")


class _ParquetReader:
    """Access to the rows of a parquet file by number; the last used row group is in memory."""

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet

        self._file = pyarrow.parquet.ParquetFile(path)
        groups = range(self._file.num_row_groups)
        self._ends = np.cumsum([self._file.metadata.row_group(group).num_rows for group in groups]).tolist()
        self._group = -1
        self._texts: list[str] = []

    def text(self, offset: int) -> str:
        group = bisect_right(self._ends, offset)
        if group != self._group:
            self._texts = self._file.read_row_group(group, columns=["text"])["text"].to_pylist()
            self._group = group
        return self._texts[offset - (self._ends[group - 1] if group else 0)]


def _line_texts(path: Path) -> Iterator[tuple[str, int, str]]:
    for number, offset, line in read_lines(path):
        where = f"{path}, line {number}"
        yield where, offset, _text_of(line, where)


def _text_of(line: str, where: str) -> str:
    row = parse_json(line, where, "a document", whole=False)
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        raise HartError(f'{where}: must be a JSON object with a text as "text"')
    return row["text"]


def _parquet_texts(path: Path) -> Iterator[tuple[str, int, str]]:
    import pyarrow
    import pyarrow.parquet

    row = 0
    try:
        file = pyarrow.parquet.ParquetFile(path)
        if "text" not in file.schema_arrow.names:
            raise HartError(f'{path}: its rows have no column "text"')
        for batch in file.iter_batches(batch_size=1000, columns=["text"]):
            for text in batch["text"].to_pylist():
                if not isinstance(text, str):
                    raise HartError(f'{path}, row {row}: has no text in its column "text"')
                yield f"{path}, row {row}", row, text
                row += 1
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = first_line(error)
        raise HartError(f"{path}: damaged after row {row} ({reason}); download it again") from error
