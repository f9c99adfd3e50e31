"""The record of a run in its folder (run.json): the base, the data, and the actual optimizer.

config.yaml only has the requested settings. When a run is resumed, files under the same names may have changed, and
8-bit Adam may be available or not; such differences are found by run.json.
"""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hart.data.collections import load_tasks
from hart.data.segments import PATTERNS
from hart.data.tasks import Instance, Task
from hart.errors import HartError
from hart.runtime.files import read_json, write_json
from hart.runtime.fingerprints import difference
from hart.training.config import RunConfig

RECORD_FILE = "run.json"
SAMPLED_INSTANCES = 64
"""Sample size for the digest of a task whose instances stay on disk."""
NAMED = 3
"""Most differences in a message."""
INSTEAD = "restore it, or start anew in another training.output_dir"
EXCLUDED_FILE = "excluded.json"
"""File with the tasks that are too long for training."""


def record_of(
    config: RunConfig, base: dict[str, Any], tasks: Sequence[Task] | None, validation: Sequence[Task], optimizer: str
) -> dict[str, Any]:
    """The record of a run, JSON-ready.

    Args:
        base: `MainModel.identity` before the run.
        tasks: training tasks; None: the run pre-trains on text.
        optimizer: the result of `hart.training.optimizer.optimizer_used`.
    """
    data: dict[str, Any] = {"text": text_digests(config)} if tasks is None else {"tasks": task_digests(tasks)}
    if validation:
        data["validation"] = task_digests(validation)
    return {"base": base, "optimizer": optimizer, "data": data}


def write_record(folder: Path, record: dict[str, Any]) -> None:
    write_json(folder / RECORD_FILE, record)


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record written by `write_record`; None if there is none.

    Raises:
        HartError: the record cannot be read.
    """
    path = folder / RECORD_FILE
    if not path.exists():
        return None
    try:
        found = read_json(path, "the record of a run")
    except HartError as error:
        raise HartError(f"{error}; choose another training.output_dir") from None
    if not isinstance(found, dict) or not {"base", "optimizer", "data"} <= found.keys():
        raise HartError(f"{path}: is not the record of a run; choose another training.output_dir")
    return found


def check_same(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Check that a resumed run has the base, teacher and data of its start.

    Raises:
        HartError: something differs; the message names it.
    """
    old, new = (record["base"]["base_fingerprint"] for record in (before, now))
    if old != new:
        raise HartError(
            f"{folder}: the base {now['base']['base']} (model.base) has changed since the run began, and its "
            f"{difference(old, new)}; {INSTEAD}"
        )
    if before.get("teacher") != now.get("teacher"):
        raise HartError(f"{folder}: distillation.teacher has changed since the run began; {INSTEAD}")
    # The optimizer is checked with the states of a checkpoint (`hart.training.sharding.check_layout`).
    parts = ["text", "tasks"]
    if all("validation" in record["data"] for record in (before, now)):  # training.eval_every may begin or stop asking
        parts.append("validation")
    changed = [line for part in parts for line in _differences(part, before, now)]
    _refuse(folder, changed)


def check_same_tasks(config: RunConfig, tasks: Sequence[Task] | None, folder: Path) -> None:
    """Check that a complete run was trained on the configured training data.

    Args:
        tasks: training tasks, instead of those that `config.data` names.

    Raises:
        HartError: something differs (the message names it), or the data cannot be read.
    """
    before = read_record(folder)
    if before is None:
        return
    if tasks is None and config.data.segments:
        now: dict[str, Any] = {"text": text_digests(config)}
    else:
        left_out = read_json(folder / EXCLUDED_FILE, "a list of tasks") if (folder / EXCLUDED_FILE).exists() else {}
        found = load_tasks(config.data, "train") if tasks is None else tasks
        now = {"tasks": task_digests([each for each in found if each.name not in left_out.get("tasks", ())])}
    _refuse(folder, [line for part in now for line in _differences(part, before, {"data": now})])


def _refuse(folder: Path, changed: Sequence[str]) -> None:
    if changed:
        more = f" and {len(changed) - NAMED} more" if len(changed) > NAMED else ""
        raise HartError(
            f"{folder}: the data (data.dir, data.hub_name, or the tasks given) have changed since the run began: "
            f"{'; '.join(changed[:NAMED])}{more}; {INSTEAD}"
        )


def _differences(part: str, before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    old, new = before["data"].get(part, {}), now["data"].get(part, {})
    what = {"text": "file", "tasks": "task", "validation": "validation task"}[part]
    lines = [f"{what} {name} is missing" for name in old if name not in new]
    lines += [f"{what} {name} is new" for name in new if name not in old]
    for name in (name for name in old if name in new and old[name] != new[name]):
        parts = [key for key in old[name] if old[name][key] != new[name].get(key)]
        lines.append(f"{what} {name} has changed ({' and '.join(parts)})")
    if not lines and list(old) != list(new):
        lines.append(f"the {what}s are in another order")
    return lines


def task_digests(tasks: Sequence[Task]) -> dict[str, dict[str, str]]:
    """Name → digests of the used parts of each task, in the order of the tasks.

    For instances on disk, the digest is of their number and an evenly spaced sample, as reading all of them would take
    as long as copying the files.
    """
    found: dict[str, dict[str, str]] = {}
    for number, task in enumerate(tasks, start=1):
        name = task.name or f"number {number}"
        while name in found:
            name += "'"
        found[name] = {
            "definition": _digest([task.definition]),
            "demonstrations": _digest(text for d in task.demonstrations for text in (d.input, d.output, d.explanation)),
            "instances": _digest(_texts(task.instances)),
        }
    return found


def _texts(instances: Sequence[Instance]) -> Iterable[str]:
    count = len(instances)
    yield str(count)
    wanted: Iterable[int] = range(count)
    if not isinstance(instances, tuple) and count > SAMPLED_INSTANCES:
        wanted = (i * (count - 1) // (SAMPLED_INSTANCES - 1) for i in range(SAMPLED_INSTANCES))
    for at in wanted:
        instance = instances[at]
        yield from (instance.input, str(len(instance.references)), *instance.references, *instance.choices)


def text_digests(config: RunConfig) -> dict[str, dict[str, str]]:
    """Name → size of each text file; for a hub data set only its name."""
    data = config.data
    if data.dir is None:
        return {data.hub_name or "the hub's": {}}
    paths = sorted(path for pattern in PATTERNS for path in Path(data.dir).glob(pattern) if path.is_file())
    return {path.name: {"size": str(path.stat().st_size)} for path in paths}


def _digest(texts: Iterable[str]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for text in texts:
        # With its length, so that different lists of texts have different bytes.
        encoded = text.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return digest.hexdigest()
