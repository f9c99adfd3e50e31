"""Average length of a task's instances in tokens, measured once and remembered on the disk (section 8.1.3)."""

import hashlib
import json
import logging
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from hart.data.prompts import Tokenizer
from hart.data.tasks import Task
from hart.errors import HartError
from hart.files import cache_folder, write_json

logger = logging.getLogger(__name__)

SAMPLE = 1000
"""Instances that are measured, evenly spaced over the task."""


def average_length(task: Task, tokenizer: Tokenizer, identity: str | None = None) -> float:
    """Mean tokens of input and first reference together, over at most `SAMPLE` instances.

    `identity` is that of the tokenizer, where a caller has it already. The result is kept in `cache_folder` under a
    name made of the texts and the tokenizer, so it is never out of date.
    """
    count = len(task.instances)
    rows = [task.instances[i * count // SAMPLE] for i in range(SAMPLE)] if count > SAMPLE else task.instances
    texts = [text for row in rows for text in (row.input, row.references[0])]
    key = hashlib.sha256((identity or tokenizer_identity(tokenizer)).encode())
    for text in texts:
        key.update(b"\0" + text.encode())
    path = cache_folder() / "lengths" / f"{key.hexdigest()}.json"
    try:
        return float(json.loads(path.read_text(encoding="utf-8"))["average"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not measured yet, or a damaged file, which is replaced
    tokens: Any = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]  # type: ignore[arg-type]
    average = 2 * fmean(len(ids) for ids in tokens)
    try:
        write_json(path, {"task": task.name, "average": average, "instances": len(rows)})
    except HartError as error:
        logger.debug("not remembered: %s", error)
    return average


def without_long(
    tasks: Sequence[Task], tokenizer: Tokenizer, max_average_length: int
) -> tuple[list[Task], dict[str, float]]:
    """The tasks whose average length is at most that, and name → average of the others.

    Raises:
        HartError: none is left.
    """
    identity = tokenizer_identity(tokenizer)
    averages = {task.name: average_length(task, tokenizer, identity) for task in tasks}
    kept = [task for task in tasks if averages[task.name] <= max_average_length]
    if tasks and not kept:
        raise HartError(
            f"data.max_average_length: every training task is longer than {max_average_length} tokens on average; "
            "raise it"
        )
    return kept, {name: average for name, average in averages.items() if average > max_average_length}


def tokenizer_identity(tokenizer: Any) -> str:
    """A hash of all that decides how the tokenizer cuts a text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend is not None else json.dumps(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(text.encode()).hexdigest()
