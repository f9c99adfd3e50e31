"""The folder of a run: config.yaml, run.json, metrics.jsonl, steps.csv, checkpoints/, best/ and final/."""

import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock

from hart.errors import HartError
from hart.runtime.files import damage, write_json, write_text
from hart.runtime.sections import read_yaml
from hart.training.config import RunConfig, with_defaults
from hart.training.run_record import EXCLUDED_FILE, NAMED, read_record

logger = logging.getLogger(__name__)

MOVABLE = ("data.dir", "data.distractors")
"""Fields with paths that may change when a run is resumed."""

# Fields that may change when a run is resumed, as they do not affect its numbers.
FREE_FIELDS = frozenset(
    f"training.{name}"
    for name in (
        "output_dir", "log_every", "save_every", "eval_every", "keep_checkpoints", "num_workers", "trackers",
        "resume", "num_threads", "micro_batch_size",
        # `hart.training.sharding.check_layout` checks changes of these.
        "deepspeed", "fsdp",
    )
) | {
    "model.attention", "model.gradient_checkpointing", "distillation.cache", *MOVABLE,
}  # fmt: skip

LOCK_FILE = ".lock"


class HeldError(HartError):
    """Another process holds a folder."""


@contextmanager
def holding(folder: Path, what: str = "training.output_dir") -> Iterator[None]:
    """A context that locks `folder` for this process against all other commands; a missing folder is created.

    The operating system releases the lock when the process ends in any way; the lock file that remains has no meaning.
    After an error, a folder that was missing or empty before is missing or empty again.

    Args:
        what: the option for the folder, for messages.

    Raises:
        HeldError: another process holds the folder.
        HartError: the folder cannot be written.
    """
    lock, new = filelock.FileLock(str(folder / LOCK_FILE)), False
    try:
        new = not folder.exists()
        if folder.is_symlink() and new:
            raise HartError(f"{folder}: is a broken link; create its target, or choose another {what}")
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise HeldError(
            f"{folder}: is in use by another process; wait until it ends, or choose another {what}"
        ) from None
    except NotImplementedError:  # a file system without locks
        logger.warning("%s: its file system has no locks; make sure that no other process uses the folder", folder)
    except OSError as error:
        raise HartError(f"{folder}: cannot be {'created' if new else 'written'} ({error.strerror})") from error
    try:
        yield
    finally:
        lock.release()
        if not _occupied(folder):
            with suppress(OSError):  # another process has just locked it
                (folder / LOCK_FILE).unlink(missing_ok=True)
                if new:
                    folder.rmdir()


@contextmanager
def undone_on_error(folder: Path) -> Iterator[None]:
    """A context that empties a previously empty folder after an error, so that a corrected command can use it.

    The folder must be held.
    """
    occupied = _occupied(folder)
    try:
        yield
    except BaseException:
        if not occupied:
            for path in folder.iterdir():
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                elif path.name != LOCK_FILE:
                    path.unlink(missing_ok=True)
        raise


def _occupied(folder: Path) -> bool:
    """Whether a folder has content other than its lock file.

    Raises:
        HartError: the folder cannot be read.
    """
    try:
        return folder.exists() and (not folder.is_dir() or any(each.name != LOCK_FILE for each in folder.iterdir()))
    except OSError as error:
        raise HartError(f"{folder}: cannot be read ({error.strerror})") from error


class RunFolder:
    """The folder of a new or resumed run.

    The folder must be missing, empty, or have the config.yaml of the same run.

    Attributes:
        config: the run's configuration.
        record: base, data and optimizer of the run (`hart.training.run_record`).

    Args:
        config: the run's configuration, which is written into a new folder.
        owner: False in all processes except the first: they check and write nothing.

    Raises:
        HartError: the folder has other content, belongs to a run with another configuration, or cannot be created.
    """

    def __init__(self, config: RunConfig, *, owner: bool = True) -> None:
        self.config = config
        self.path = Path(config.training.output_dir)
        self.metrics = self.path / "metrics.jsonl"
        self.steps = self.path / "steps.csv"
        self.checkpoints = self.path / "checkpoints"
        self.final = self.path / "final"
        self.best = self.path / "best"
        self.record: dict[str, Any] = {}
        if not owner:
            return
        occupied = self.check_free(self.path)
        if occupied and not config.training.resume:
            raise HartError(
                f"{self.path}: holds a run already and training.resume is false; "
                "choose another training.output_dir or delete the folder"
            )
        if occupied:
            # config.yaml is only replaced (`save_config`) after base and data were checked.
            self._check_same(self.path / "config.yaml", config)
        else:
            self.save_config()

    def save_config(self) -> None:
        """Write config.yaml with the current configuration."""
        self.config.save(self.path / "config.yaml")

    @staticmethod
    def check_free(path: Path) -> bool:
        """Whether `path` has a run already; False if it is missing or empty.

        Raises:
            HartError: the folder has other content, or cannot be read.
        """
        occupied = _occupied(path)
        if occupied and not (path / "config.yaml").is_file():
            raise HartError(f"{path}: exists with other content; choose another training.output_dir")
        return occupied

    @staticmethod
    def is_complete(path: Path) -> bool:
        """Whether the run at `path` has been trained to its end."""
        return (path / "final" / "config.json").is_file()

    @staticmethod
    def _check_same(saved: Path, config: RunConfig) -> None:
        try:
            earlier = read_yaml(saved)
        except HartError as error:
            raise HartError(f"{error}; choose another training.output_dir") from error
        old, new = _flatten(with_defaults(earlier) or earlier), _flatten(config.to_dict())
        record = read_record(saved.parent)
        if record and new["training.optimizer"] == record["optimizer"]:
            old["training.optimizer"] = record["optimizer"]  # the fallback optimizer may be configured explicitly
        changed = [
            f"{key} was {old.get(key)!r} and is {new.get(key)!r}"
            for key in sorted(old.keys() | new.keys())
            if old.get(key) != new.get(key) and key not in FREE_FIELDS
        ]
        if changed:
            more = f" and {len(changed) - NAMED} more" if len(changed) > NAMED else ""
            raise HartError(
                f"{saved.parent}: holds a run with another configuration ({'; '.join(changed[:NAMED])}{more}); "
                "choose another training.output_dir or restore the value"
            )

    def saved(self) -> dict[int, Path]:
        """Step → checkpoint, complete or damaged; other names are ignored."""
        return {int(p.name[11:]): p for p in self.checkpoints.glob("checkpoint-*") if p.name[11:].isdecimal()}

    def last_checkpoint(self, *, before: int | None = None) -> Path | None:
        """The newest undamaged checkpoint (of a step below `before`); remains of an interrupted save are removed.

        A damaged checkpoint is named in a warning and kept.
        """
        shutil.rmtree(self.checkpoints / ".partial", ignore_errors=True)
        found = self.saved()
        for step in sorted(found, reverse=True):
            if before is not None and step >= before:
                continue
            wrong = damage(found[step])
            if wrong is None:
                return found[step]
            logger.warning("%s: damaged (%s), going back to the checkpoint before it", found[step], wrong)
        return None

    def note_excluded(self, excluded: Mapping[str, float], max_average_length: int) -> None:
        """Report the tasks that are too long for training, and list them in excluded.json."""
        logger.warning(
            "%d tasks of more than %d tokens on average are left out, see %s",
            len(excluded),
            max_average_length,
            self.path / EXCLUDED_FILE,
        )
        write_json(self.path / EXCLUDED_FILE, {"max_average_length": max_average_length, "tasks": dict(excluded)})

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl.

        Raises:
            HartError: the file cannot be written.
        """
        _append(self.metrics, json.dumps(row) + "\n")

    def append_steps(self, first: int, losses: Mapping[str, Sequence[float]]) -> None:
        """Append lines to steps.csv: the losses of each step, beginning with step `first`.

        Raises:
            HartError: the file cannot be written.
        """
        table = zip(*losses.values(), strict=True)
        lines = [",".join(map(repr, (step, *values))) for step, values in enumerate(table, first)]
        if not self.steps.exists():
            lines.insert(0, ",".join(["step", *losses]))
        _append(self.steps, "\n".join(lines) + "\n")

    def rewind_metrics(self, step: int) -> None:
        """Remove the logs of steps after `step`, before training is resumed from it."""
        if self.metrics.exists():
            kept = [row for row in read_metrics(self.metrics) if row["step"] <= step]
            write_text(self.metrics, "".join(json.dumps(row) + "\n" for row in kept))
        if self.steps.exists():
            header, *lines = self.steps.read_text(encoding="utf-8").splitlines() or [""]
            whole = (line for line in lines if line.count(",") == header.count(","))
            kept_lines = [line for line in whole if int(line.partition(",")[0]) <= step]
            if kept_lines:
                write_text(self.steps, "".join(f"{line}\n" for line in [header, *kept_lines]))
            else:  # the header may be cut short
                self.steps.unlink()


def _append(path: Path, text: str) -> None:
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise HartError(
            f"{path}: cannot be written ({error.strerror}); fix this and run the command again "
            "to continue from the last checkpoint"
        ) from error


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl, without incomplete lines (after a crash) and other invalid lines."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict) and "step" in row]


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat
