"""Lengths of a task's instances in tokens: the average (App. 8.1.3), and the number above a limit."""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from hart.data.input_format import InputFormat
from hart.data.prompts import Tokenizer
from hart.data.tasks import Instance, Task
from hart.errors import HartError
from hart.runtime.files import cache_folder, write_json
from hart.runtime.fingerprints import tokenizer_digest

logger = logging.getLogger(__name__)

SAMPLE = 1000
"""Most instances in the average length of a task, evenly spaced."""
LOOKED_AT = 100
"""Most instances of a task that are compared with the limits: all of them under the usual cap."""


def average_length(task: Task, tokenizer: Tokenizer, identity: str | None = None) -> float:
    """Mean tokens of input and first reference together, over at most `SAMPLE` instances.

    `identity` is the tokenizer's digest, if the caller has it. The result is cached in `cache_folder` under a hash of
    texts and tokenizer, so it is never outdated.
    """
    sample = _spread(task, SAMPLE)
    texts = [text for instance in sample for text in (instance.input, instance.references[0])]
    key = hashlib.sha256((identity or tokenizer_digest(tokenizer)).encode())
    for text in texts:
        key.update(b"\0" + text.encode())
    path = cache_folder() / "lengths" / f"{key.hexdigest()}.json"
    try:
        return float(json.loads(path.read_text(encoding="utf-8"))["average"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not measured yet, or a damaged file, which will be replaced
    tokens: Any = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]  # type: ignore[arg-type]
    average = 2 * fmean(len(ids) for ids in tokens)
    try:
        write_json(path, {"task": task.name, "average": average, "instances": len(sample)})
    except HartError as error:
        logger.debug("not remembered: %s", error)
    return average


def _spread(task: Task, most: int) -> Sequence[Instance]:
    """At most `most` instances, evenly spaced."""
    count = len(task.instances)
    return [task.instances[i * count // most] for i in range(most)] if count > most else task.instances


def tell_long(tasks: Sequence[Task], tokenizer: Tokenizer, form: InputFormat) -> None:
    """Warn once about queries and once about targets that are longer than their limit and will be cut.

    Queries with demonstrations in the same input have no limit of their own and are not checked. Of each task with its
    instances in memory, at most `LOOKED_AT` evenly spaced ones are checked.
    """
    seen = {task.label: _spread(task, LOOKED_AT) for task in tasks if isinstance(task.instances, tuple)}
    sampled = any(len(task.instances) > LOOKED_AT for task in tasks if task.label in seen)
    inputs = {} if form.in_context else {label: [each.input for each in own] for label, own in seen.items()}
    targets = {label: [text for each in own for text in each.references] for label, own in seen.items()}
    for what, texts, limit in (
        ("queries", inputs, form.max_query_length),
        ("targets", targets, form.max_target_length),
    ):
        # A text hardly ever has more tokens than bytes, so most texts need no tokenisation.
        possible = [(label, text) for label, own in texts.items() for text in own if len(text.encode()) >= limit - 1]
        if not possible:
            continue
        tokens: Any = tokenizer([text.strip() for _, text in possible], add_special_tokens=False, verbose=False)  # type: ignore[arg-type]
        room = limit - (what == "targets" or form.input_eos)
        long = Counter(label for (label, _), ids in zip(possible, tokens["input_ids"], strict=True) if len(ids) > room)
        if long:
            logger.warning(
                "%s: %d of %d%s are longer than %d tokens and cut from the end, most of them in task %s",
                what,
                long.total(),
                sum(map(len, texts.values())),
                " checked" if sampled else "",
                limit,
                ", ".join(label for label, _ in long.most_common(3)),
            )


def without_long(
    tasks: Sequence[Task], tokenizer: Tokenizer, max_average_length: int
) -> tuple[list[Task], dict[str, float]]:
    """The tasks whose average length is at most `max_average_length`, and name → average of the other tasks.

    Raises:
        HartError: no task is left.
    """
    identity = tokenizer_digest(tokenizer)
    averages = {task.name: average_length(task, tokenizer, identity) for task in tasks}
    kept = [task for task in tasks if averages[task.name] <= max_average_length]
    if tasks and not kept:
        raise HartError(
            f"data.max_average_length: every training task is longer than {max_average_length} tokens on average; "
            "raise it"
        )
    return kept, {name: average for name, average in averages.items() if average > max_average_length}
