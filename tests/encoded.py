"""Tasks and texts as tokens, and the notes about cuts."""

import logging

import pytest

from hart.data.input_format import InputFormat
from hart.data.prompts import Cuts
from hart.data.tasks import Task

TASK = Task(
    definition="  Reverse the words \n",
    demonstrations=[
        ("a b c", "c b a", "The words are reversed"),
        ("Is it so?", "so? it Is"),
        ("x", "x"),
    ],
    name="reverse",
)
P3_TASK = Task("", [("the cat", "mat"), ("on the mat ", " cat"), ("one two three", "two")], name="p3")


def encode_task(tokenizer, task: Task, limit: int = 1024, cuts: Cuts | None = None, **form) -> list[int]:
    return InputFormat(max_demonstrations_length=limit, **form).encode_task(tokenizer, task, cuts)


def encode_in_context(tokenizer, task: Task, query: str, limit: int, cuts: Cuts | None = None, **form) -> list[int]:
    form = InputFormat(max_demonstrations_length=limit, demonstrations_to="main", **form)
    return form.encode_input(tokenizer, task, query, cuts)


def tokens_of(tokenizer, *texts: str) -> list[int]:
    return [token for text in texts for token in tokenizer(text, add_special_tokens=False).input_ids]


def told(cuts: Cuts, caplog: pytest.LogCaptureFixture) -> list[str]:
    """What is told now, and nothing the second time."""
    caplog.clear()
    for _ in range(2):
        cuts.tell(logging.getLogger("hart.data.prompts"))
    assert all(record.levelno == logging.WARNING for record in caplog.records)
    return list(caplog.messages)
