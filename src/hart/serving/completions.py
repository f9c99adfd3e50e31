"""Answers in the form of OpenAI's completions and chat completions: whole, or as what a stream consists of."""

import time
import uuid
from collections.abc import Sequence
from typing import Any

from hart.model.answering import Answer
from hart.serving import openai_schemas as schemas


class _Reply:
    """One reply; in a stream `usage` is absent unless asked for, and then null in all chunks but the last."""

    _PREFIX: str
    _CHUNK: str
    _EMPTY: dict[str, Any]
    """The text of the chunk that says why an answer ended."""

    def __init__(self, model: str, *, with_usage: bool) -> None:
        self._head: dict[str, Any] = {
            "id": f"{self._PREFIX}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }
        self._with_usage = with_usage

    def end(self, answer: Answer) -> list[dict[str, Any]]:
        """The chunks after the last piece of a stream: why it ended, and the usage."""
        usage = [self._chunk(usage=_usage([answer]))] if self._with_usage else []
        return [self._chunk(_choice(_reason(answer), **self._EMPTY)), *usage]

    def _chunk(self, *choices: dict[str, Any], usage: schemas.Usage | None = None) -> dict[str, Any]:
        chunk = {**self._head, "object": self._CHUNK, "choices": [*choices]}
        return chunk | {"usage": usage and usage.model_dump()} if self._with_usage else chunk


class Completion(_Reply):
    _PREFIX, _CHUNK, _EMPTY = "cmpl", "text_completion", {"text": ""}

    def whole(self, answers: Sequence[Answer]) -> schemas.CompletionOut:
        choices = [
            schemas.Choice(index=index, text=answer.text, finish_reason=_reason(answer))
            for index, answer in enumerate(answers)
        ]
        return schemas.CompletionOut(**self._head, choices=choices, usage=_usage(answers))

    def begin(self) -> list[dict[str, Any]]:
        """The chunks before the first piece."""
        return []

    def piece(self, text: str) -> dict[str, Any]:
        return self._chunk(_choice(None, text=text))


class ChatCompletion(_Reply):
    """An answer as the message of an assistant."""

    _PREFIX, _CHUNK, _EMPTY = "chatcmpl", "chat.completion.chunk", {"delta": {}}

    def whole(self, answers: Sequence[Answer]) -> schemas.ChatOut:
        (answer,) = answers
        message = schemas.MessageOut(content=answer.text)
        choice = schemas.ChatChoice(index=0, message=message, finish_reason=_reason(answer))
        return schemas.ChatOut(**self._head, choices=[choice], usage=_usage(answers))

    def begin(self) -> list[dict[str, Any]]:
        """The chunks before the first piece: who speaks."""
        return [self._chunk(_choice(None, delta={"role": "assistant", "content": "", "refusal": None}))]

    def piece(self, text: str) -> dict[str, Any]:
        return self._chunk(_choice(None, delta={"content": text}))


def _choice(reason: str | None, **content: Any) -> dict[str, Any]:
    return {"index": 0, **content, "finish_reason": reason, "logprobs": None}


def _reason(answer: Answer) -> Any:
    return "stop" if answer.finished else "length"


def _usage(answers: Sequence[Answer]) -> schemas.Usage:
    read, written = sum(each.query_tokens for each in answers), sum(each.tokens for each in answers)
    return schemas.Usage(prompt_tokens=read, completion_tokens=written, total_tokens=read + written)
