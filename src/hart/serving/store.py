"""The store of adaptations on disk, by the hash of base, model and task.

    STORE/index.sqlite                  one row for each: task, base, model, time, size, use
    STORE/adaptations/<id>/             adaptation.json, adaptation.safetensors, record.json, checksums.json

The folders are authoritative: an index that is lost, damaged or of another version is rebuilt from them, and missing
folders of the store are created again, at its next use. An id is the SHA-256 of base, model and task, so each task is
stored once. Every change of the store is a write transaction of SQLite, which locks it between threads and processes. A
folder is written beside its place, sealed and renamed. So a process may be killed at any time: the next one removes its
unfinished files.
"""

import functools
import hashlib
import json
import re
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hart.data.tasks import Task
from hart.errors import HartError
from hart.model.adaptation import FIELDS_FILE, Adaptation
from hart.runtime.files import CHECKSUMS_FILE, cache_folder, damage, new_directory, seal
from hart.runtime.files.writing import PREFIX

MAX_BYTES = 2 * 1024**3
"""Default limit of a store's size, without its index."""

ID = re.compile(r"[0-9a-f]{64}")
"""Pattern of ids; only matching texts are used as paths."""

_BUSY_SECONDS = 30.0
_VERSION = 1
"""Version of the index's schema, in its `user_version`, incremented by every change; indexes before 1 have 0."""

_SCHEMA = (
    "DROP TABLE IF EXISTS adaptations",
    """\
CREATE TABLE adaptations (
    id TEXT PRIMARY KEY, task TEXT NOT NULL, base TEXT NOT NULL, base_fingerprint TEXT NOT NULL,
    model TEXT NOT NULL, model_fingerprint TEXT NOT NULL, created TEXT NOT NULL, seconds REAL NOT NULL,
    bytes INTEGER NOT NULL, used REAL NOT NULL, uses INTEGER NOT NULL
)""",
    "CREATE INDEX by_use ON adaptations (used)",
    f"PRAGMA user_version = {_VERSION}",
)
_BROKEN = (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
"""Errors of SQLite after which the index is checked; others (a full disk, a lock) do not concern its content."""

_RECORD_FILE = "record.json"
_GONE = ".gone-"
_COLUMNS = "id, task, base, base_fingerprint, model, model_fingerprint, created, seconds, bytes, used, uses"


@dataclass(frozen=True)
class Record:
    """A row of the index.

    Attributes:
        id: 64 hexadecimal digits.
        task: definition and demonstrations, JSON-ready, as in `Adaptation.tasks`.
        base, base_fingerprint: the main model.
        model, model_fingerprint: the model that generated it.
        created: time of generation, ISO 8601.
        seconds: duration of the forward pass that generated it.
        bytes: size on disk.
        used: last use, seconds since 1970.
        uses: number of uses since it was stored.
    """

    id: str
    task: dict[str, Any]
    base: str
    base_fingerprint: str
    model: str
    model_fingerprint: str
    created: str
    seconds: float
    bytes: int
    used: float
    uses: int


def adaptation_id(base_fingerprint: str, model_fingerprint: str, task: Task) -> str:
    """The id of a model's adaptation to a task; white space at the ends of the task's texts is ignored."""
    shown = [[each.input.strip(), each.output.strip(), each.explanation.strip()] for each in task.demonstrations]
    text = json.dumps([base_fingerprint, model_fingerprint, task.definition.strip(), shown], ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


class Store:
    """A folder of adaptations, for several threads and processes at once.

    Args:
        folder: path of the store; None: `adaptations` in the cache (HART_CACHE, or the platform's cache folder).
        max_bytes: size above which the least recently used adaptations are dropped; None: no limit.

    Raises:
        HartError: the folder cannot be written.
    """

    def __init__(self, folder: str | Path | None = None, *, max_bytes: int | None = MAX_BYTES) -> None:
        self.folder = Path(folder) if folder is not None else cache_folder() / "adaptations"
        self.max_bytes = max_bytes
        self._index = self.folder / "index.sqlite"
        self._kept = self.folder / "adaptations"
        self._suspect = False
        self._open()

    def put(self, adaptation: Adaptation, *, model_fingerprint: str, seconds: float = 0.0) -> Record:
        """Store an adaptation to one task; an existing one is kept, and counts as used.

        Raises:
            HartError: it has several tasks, exceeds the store's limit, or cannot be written; no part of it is then
                left.
        """
        (task,) = adaptation.read_tasks() if len(adaptation) == 1 else (None,)
        if task is None:
            raise HartError(
                f"a store keeps adaptations of one task, this one has {len(adaptation)}; add them one by one"
            )
        key = adaptation_id(adaptation.base_fingerprint, model_fingerprint, task)
        with self._writing() as connection:
            kept = self._select(connection, key)
            if kept is not None and self._read(key) is not None:
                connection.execute("UPDATE adaptations SET used = ?, uses = uses + 1 WHERE id = ?", (time.time(), key))
                return kept
            self._remove(connection, key)
            with new_directory(self._kept / key, replaces=FIELDS_FILE) as partial:
                adaptation.save_pretrained(partial)
                about = {"model_fingerprint": model_fingerprint, "seconds": seconds}
                (partial / _RECORD_FILE).write_text(json.dumps(about), encoding="utf-8")
                seal(partial)
                size = _size(partial)
                if self.max_bytes is not None and size > self.max_bytes:
                    raise HartError(
                        f"the adaptation has {size} bytes, and the store takes {self.max_bytes}; raise its limit"
                    )
            record = self._record(key, adaptation, model_fingerprint, seconds)
            self._insert(connection, record)
            self._evict(connection, keep=key)
            return record

    def get(self, id: str) -> Adaptation | None:
        """The adaptation with this id, on the CPU; None if there is none, or its files are missing or damaged.

        A damaged adaptation is removed, so that it can be stored again.
        """
        if not ID.fullmatch(id):
            return None
        found = self._read(id)
        if found is None and ((self._kept / id).exists() or self.record(id) is not None):
            with self._writing() as connection:
                found = self._read(id)  # another process may have replaced it meanwhile
                if found is None:
                    self._remove(connection, id)
        return found

    def record(self, id: str) -> Record | None:
        """The record of an id; None if there is none."""
        if not ID.fullmatch(id):
            return None
        with self._reading() as connection:
            return self._select(connection, id)

    def ids(self, prefix: str, model_fingerprint: str) -> list[str]:
        """At most two ids of a model's adaptations that begin with these hexadecimal digits."""
        # "g" sorts after all hexadecimal digits.
        query = "SELECT id FROM adaptations WHERE id >= ?1 AND id < ?1 || 'g' AND model_fingerprint = ?2 LIMIT 2"
        with self._reading() as connection:
            return [id for (id,) in connection.execute(query, (prefix, model_fingerprint))]

    def records(self, model_fingerprint: str | None = None, *, limit: int = 100, offset: int = 0) -> list[Record]:
        """The records of one model or of all models, the most recently used first."""
        query = (
            f"SELECT {_COLUMNS} FROM adaptations WHERE ?1 IS NULL OR model_fingerprint = ?1 "
            "ORDER BY used DESC, id LIMIT ?2 OFFSET ?3"
        )
        with self._reading() as connection:
            return [_from_row(row) for row in connection.execute(query, (model_fingerprint, limit, offset))]

    def totals(self) -> tuple[int, int]:
        """Number of adaptations, and their size in bytes."""
        with self._reading() as connection:
            count, size = connection.execute("SELECT COUNT(*), COALESCE(SUM(bytes), 0) FROM adaptations").fetchone()
        return count, size

    def touch(self, uses: Mapping[str, int]) -> None:
        """Add uses of adaptations (id → number of uses); unknown ids are ignored."""
        now = time.time()
        with self._writing() as connection:
            connection.executemany(
                "UPDATE adaptations SET used = ?, uses = uses + ? WHERE id = ?",
                [(now, count, id) for id, count in uses.items()],
            )

    def delete(self, id: str) -> bool:
        """Remove an adaptation; returns whether it existed."""
        if not ID.fullmatch(id):
            return False
        with self._writing() as connection:
            return self._remove(connection, id)

    def check(self) -> None:
        """Raise `HartError` unless the store can be read and written, after repairs if possible."""
        self.totals()
        try:
            with tempfile.TemporaryFile(dir=self._kept) as file:
                file.write(bytes(4096))
        except OSError as error:
            raise HartError(f"{self._kept}: cannot be written ({error.strerror})") from error

    def _connect(self) -> sqlite3.Connection:
        """A connection to an index of this version, which is rebuilt if necessary."""
        if self._suspect or not self._index.exists() or not self._kept.is_dir():
            self._open()
        try:
            connection = self._plain_connection()
            if _version(connection) == _VERSION:
                return connection
            connection.close()
        except sqlite3.DatabaseError as error:
            if not _broken(error):
                raise
        self._open()
        return self._plain_connection()

    def _plain_connection(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._index, timeout=_BUSY_SECONDS, isolation_level=None)
        # By default a damaged letter in a name would make its row unreadable for ever.
        connection.text_factory = functools.partial(str, encoding="utf-8", errors="replace")
        try:
            connection.execute("PRAGMA synchronous = NORMAL")
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def _open(self) -> None:
        """Create missing folders, and rebuild an index that is damaged or of another version.

        Raises:
            HartError: the store cannot be written.
        """
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # tasks may be private
            self._kept.mkdir(exist_ok=True)
        except OSError as error:
            raise HartError(f"{self.folder}: cannot be written ({error.strerror})") from error
        try:
            self._bring_up_to_date()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):  # locked, disk full or no permission, but not damaged
                raise HartError(f"{self._index}: cannot be used ({error})") from error
            self._set_aside()
            try:
                self._bring_up_to_date()
            except sqlite3.DatabaseError as again:
                raise HartError(f"{self._index}: cannot be used ({again})") from again
        self._suspect = False

    def _bring_up_to_date(self) -> None:
        with closing(self._plain_connection()) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            (answer,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            if answer != "ok":
                raise sqlite3.DatabaseError(answer)
            connection.execute("BEGIN IMMEDIATE")
            columns = [name for _, name, *_ in connection.execute("PRAGMA table_info(adaptations)")]
            if _version(connection) != _VERSION or columns != _COLUMNS.split(", ") or not _legible(connection):
                for statement in _SCHEMA:
                    connection.execute(statement)
            self._reconcile(connection)
            connection.execute("COMMIT")

    def _set_aside(self) -> None:
        """Remove a damaged index and SQLite's files beside it."""
        for path in self.folder.glob(f"{self._index.name}*"):
            path.unlink(missing_ok=True)

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._telling("read"), closing(self._connect()) as connection:
            yield connection

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A write transaction, exclusive over all processes; it is rolled back after an error."""
        with self._telling("written"), closing(self._connect()) as connection:  # closing rolls back
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.execute("COMMIT")

    @contextmanager
    def _telling(self, what: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            self._suspect = self._suspect or _broken(error)
            raise HartError(f"{self._index}: cannot be {what} ({error})") from error

    def _reconcile(self, connection: sqlite3.Connection) -> None:
        """Synchronise the index with the folders. The caller holds the write lock, so temporary folders are unused."""
        known = {id for (id,) in connection.execute("SELECT id FROM adaptations")}
        found = set()
        for path in self._kept.iterdir():
            if path.name.startswith((PREFIX, _GONE)):
                shutil.rmtree(path, ignore_errors=True)
            elif not ID.fullmatch(path.name):
                continue  # not of the store, such as a user's own folder called `adaptations`
            elif path.name in known or self._adopt(connection, path.name):
                found.add(path.name)
        connection.executemany("DELETE FROM adaptations WHERE id = ?", [(id,) for id in known - found])
        self._evict(connection)

    def _adopt(self, connection: sqlite3.Connection, id: str) -> bool:
        """Add a folder that is not in the index, or remove it if it is incomplete."""
        adaptation = self._read(id)
        if adaptation is not None:
            with suppress(OSError, ValueError, KeyError, TypeError):
                about = json.loads((self._kept / id / _RECORD_FILE).read_text(encoding="utf-8"))
                self._insert(connection, self._record(id, adaptation, about["model_fingerprint"], about["seconds"]))
                return True
        self._remove(connection, id)
        return False

    def _read(self, id: str) -> Adaptation | None:
        """The adaptation in the folder of an id; None if the folder is missing or incomplete.

        Raises:
            HartError: the folder cannot be read now.
        """
        folder = self._kept / id
        if not (folder / CHECKSUMS_FILE).is_file() or damage(folder) is not None:
            return None
        try:
            return Adaptation.from_pretrained(folder)
        except HartError as error:
            if isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, FileNotFoundError):
                raise
            return None

    def _remove(self, connection: sqlite3.Connection, id: str) -> bool:
        row = connection.execute("DELETE FROM adaptations WHERE id = ?", (id,)).rowcount > 0
        folder = self._kept / id
        there = folder.is_dir()
        # Renamed first, so that a reader finds all of it or none.
        gone = self._kept / f"{_GONE}{id}"
        with suppress(OSError):
            shutil.rmtree(gone, ignore_errors=True)
            folder.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)
        return row or there

    def _evict(self, connection: sqlite3.Connection, keep: str | None = None) -> None:
        """Remove the least recently used adaptations until the rest fits; `keep` is never removed."""
        if self.max_bytes is None:
            return
        (total,) = connection.execute("SELECT COALESCE(SUM(bytes), 0) FROM adaptations").fetchone()
        oldest = connection.execute("SELECT id, bytes FROM adaptations ORDER BY used, id").fetchall()
        for id, size in oldest:
            if total <= self.max_bytes:
                break
            if id != keep:
                self._remove(connection, id)
                total -= size

    def _record(self, id: str, adaptation: Adaptation, model_fingerprint: str, seconds: float) -> Record:
        return Record(
            id=id,
            task=adaptation.tasks[0],
            base=adaptation.base,
            base_fingerprint=adaptation.base_fingerprint,
            model=adaptation.model,
            model_fingerprint=model_fingerprint,
            created=adaptation.created,
            seconds=seconds,
            bytes=_size(self._kept / id),
            used=time.time(),
            uses=0,
        )

    def _insert(self, connection: sqlite3.Connection, record: Record) -> None:
        values = {**vars(record), "task": json.dumps(record.task)}
        marks = ", ".join(f":{name}" for name in values)
        connection.execute(f"INSERT OR REPLACE INTO adaptations ({', '.join(values)}) VALUES ({marks})", values)

    def _select(self, connection: sqlite3.Connection, id: str) -> Record | None:
        row = connection.execute(f"SELECT {_COLUMNS} FROM adaptations WHERE id = ?", (id,)).fetchone()
        return None if row is None else _from_row(row)


def _broken(error: sqlite3.Error) -> bool:
    # The lowest eight bits are the primary error code; errors of the Python module have none.
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _BROKEN


def _version(connection: sqlite3.Connection) -> int:
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return version


def _legible(connection: sqlite3.Connection) -> bool:
    """Whether all rows of the index can be read; SQLite's own check does not look at their content."""
    try:
        for row in connection.execute(f"SELECT {_COLUMNS} FROM adaptations"):
            _from_row(row)
    except sqlite3.DatabaseError as error:
        if _broken(error):
            return False
        raise
    return True


def _from_row(row: tuple[Any, ...]) -> Record:
    values = dict(zip(_COLUMNS.split(", "), row, strict=True))
    try:
        return Record(**{**values, "task": json.loads(values["task"])})
    except ValueError as error:
        damaged = sqlite3.DatabaseError("a row is damaged")
        damaged.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise damaged from error


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())
