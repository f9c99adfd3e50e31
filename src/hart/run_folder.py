"""The folder of a run: config.yaml, metrics.jsonl, checkpoints/, best/ and final/."""

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from hart.config import RunConfig
from hart.errors import HartError
from hart.files import damage, write_json, write_text

logger = logging.getLogger(__name__)

# Fields that may change between the start of a run and its continuation: they change no number of it.
FREE_FIELDS = frozenset(
    f"training.{name}"
    for name in (
        "output_dir", "log_every", "save_every", "keep_checkpoints", "num_workers", "tensorboard",
        "resume", "num_threads", "micro_batch_size",
        # `hart.sharding.check_layout` says what of these can change.
        "deepspeed", "fsdp",
    )
) | {"model.attention", "model.gradient_checkpointing", "data.dir"}  # fmt: skip

NAMED = 3
"""Differences from an earlier configuration that a message names."""


class RunFolder:
    """Opens the folder of a run, new or to be continued.

    A folder is taken if it is new, empty, or holds the config.yaml of the same run.

    Args:
        config: the run's configuration, which is written there.
        owner: False in all processes of a run but the first: they look at nothing and write nothing.

    Raises:
        HartError: the folder has other content, belongs to a run with another configuration, or cannot be made.
    """

    def __init__(self, config: RunConfig, *, owner: bool = True) -> None:
        self.path = Path(config.training.output_dir)
        self.metrics = self.path / "metrics.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.final = self.path / "final"
        self.best = self.path / "best"
        saved = self.path / "config.yaml"
        if not owner:
            return
        try:
            occupied = self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir()))
        except OSError as error:
            raise HartError(f"{self.path}: cannot be read ({error.strerror})") from error
        if occupied and not saved.is_file():
            raise HartError(f"{self.path}: exists with other content; choose another training.output_dir")
        if occupied and not config.training.resume:
            raise HartError(
                f"{self.path}: holds a run already and training.resume is false; "
                "choose another training.output_dir or delete the folder"
            )
        if occupied:
            self._check_same(saved, config)
        else:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise HartError(f"{self.path}: cannot be created ({error.strerror})") from error
        config.save(saved)

    @staticmethod
    def _check_same(saved: Path, config: RunConfig) -> None:
        try:
            earlier = yaml.safe_load(saved.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise HartError(f"{saved}: cannot be read; choose another training.output_dir") from error
        old, new = _flatten(earlier), _flatten(config.to_dict())
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

    def last_checkpoint(self, *, before: int | None = None) -> Path | None:
        """The newest undamaged checkpoint (of a step less than `before`); what an interrupted save left is removed.

        A damaged one is named in a warning and left where it is.
        """
        shutil.rmtree(self.checkpoints / ".partial", ignore_errors=True)
        found = {int(p.name[11:]): p for p in self.checkpoints.glob("checkpoint-*") if p.name[11:].isdigit()}
        for step in sorted(found, reverse=True):
            if before is not None and step >= before:
                continue
            wrong = damage(found[step])
            if wrong is None:
                return found[step]
            logger.warning("%s: damaged (%s), going back to the checkpoint before it", found[step], wrong)
        return None

    def note_excluded(self, excluded: Mapping[str, float], max_average_length: int) -> None:
        """Say which tasks are too long to be trained on, and list them in excluded.json."""
        logger.warning(
            "%d tasks of more than %d tokens on average are left out, see %s",
            len(excluded),
            max_average_length,
            self.path / "excluded.json",
        )
        write_json(self.path / "excluded.json", {"max_average_length": max_average_length, "tasks": dict(excluded)})

    def append_metrics(self, row: dict[str, Any]) -> None:
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def rewind_metrics(self, step: int) -> None:
        """Forget what was logged after `step`, before training goes on from there."""
        if self.metrics.exists():
            kept = [row for row in self.read_metrics() if row["step"] <= step]
            write_text(self.metrics, "".join(json.dumps(row) + "\n" for row in kept))

    def read_metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl; a last line cut short by a crash is left out."""
        return read_metrics(self.metrics)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; a line cut short by a crash is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat
