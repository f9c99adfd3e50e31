"""Answers in the form of OpenAI's completions."""

import time
import uuid
from collections.abc import Sequence
from typing import Any

from hart.model.answering import Answer
from hart.serving import schemas


class Completion:
    """The form of one reply: whole, or as the pieces of a stream and what ends it."""

    def __init__(self, model: str, *, with_usage: bool) -> None:
        self._model, self._with_usage = model, with_usage
        self._name, self._created = f"cmpl-{uuid.uuid4().hex}", int(time.time())

    def whole(self, answers: Sequence[Answer]) -> schemas.CompletionOut:
        choices = [_choice(answer.text, index, answer) for index, answer in enumerate(answers)]
        return self._reply(choices, _usage(answers))

    def piece(self, text: str) -> dict[str, Any]:
        return self._chunk(_choice(text))

    def end(self, answer: Answer) -> list[dict[str, Any]]:
        usage = [self._chunk(usage=_usage([answer]))] if self._with_usage else []
        return [self._chunk(_choice("", 0, answer)), *usage]

    def _reply(self, choices: list[schemas.Choice], usage: schemas.Usage | None) -> schemas.CompletionOut:
        return schemas.CompletionOut(
            id=self._name, created=self._created, model=self._model, choices=choices, usage=usage
        )

    def _chunk(self, *choices: schemas.Choice, usage: schemas.Usage | None = None) -> dict[str, Any]:
        # As OpenAI's, without a usage unless it is asked for, and then null in all but the last.
        return self._reply([*choices], usage).model_dump(exclude=None if self._with_usage else {"usage"})


def _choice(text: str, index: int = 0, answer: Answer | None = None) -> schemas.Choice:
    """A choice of a completion; of an answer that has ended, why it did."""
    reason: Any = None if answer is None else "stop" if answer.finished else "length"
    return schemas.Choice(index=index, text=text, finish_reason=reason)


def _usage(answers: Sequence[Answer]) -> schemas.Usage:
    read, written = sum(each.query_tokens for each in answers), sum(each.tokens for each in answers)
    return schemas.Usage(prompt_tokens=read, completion_tokens=written, total_tokens=read + written)
