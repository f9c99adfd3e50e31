"""Answers in the form of OpenAI's completions and chat completions, complete or as chunks of a stream."""

import time
import uuid
from collections.abc import Sequence
from typing import Any

from hart.model.answering import Answer
from hart.serving import logprobs
from hart.serving import openai_replies as replies
from hart.serving.logprobs import Token


class _Reply:
    """One reply. In a stream `usage` is absent unless requested; then it is null in all chunks but the last."""

    _PREFIX: str
    _CHUNK: str
    _EMPTY: dict[str, Any]
    """The empty text of the chunk with the finish reason."""

    def __init__(self, model: str, *, with_usage: bool) -> None:
        self._head: dict[str, Any] = {
            "id": f"{self._PREFIX}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }
        self._with_usage = with_usage

    def end(self, answer: Answer) -> list[dict[str, Any]]:
        """The chunks after the last piece of a stream: the finish reason, and the usage."""
        usage = [self._chunk(usage=_usage([answer]))] if self._with_usage else []
        return [self._chunk(_choice(_reason(answer), **self._EMPTY)), *usage]

    def _chunk(self, *choices: dict[str, Any], usage: replies.Usage | None = None) -> dict[str, Any]:
        chunk = {**self._head, "object": self._CHUNK, "choices": [*choices]}
        return chunk | {"usage": usage and usage.model_dump()} if self._with_usage else chunk


class Completion(_Reply):
    _PREFIX, _CHUNK, _EMPTY = "cmpl", "text_completion", {"text": ""}

    def whole(self, answers: Sequence[Answer], tokens: Sequence[list[Token] | None], n: int) -> replies.CompletionOut:
        """The complete reply.

        Args:
            answers: the n answers to each prompt, in the order of the prompts.
            tokens: tokens of each answer, if log-probabilities were requested.
        """
        choices = [
            replies.Choice(
                index=index,
                text=answer.text,
                finish_reason=_reason(answer),
                logprobs=None if own is None else logprobs.of_completion(own),
            )
            for index, (answer, own) in enumerate(zip(answers, tokens, strict=True))
        ]
        return replies.CompletionOut(**self._head, choices=choices, usage=_usage(answers, n))

    def begin(self) -> list[dict[str, Any]]:
        """The chunks before the first piece."""
        return []

    def piece(self, text: str) -> dict[str, Any]:
        return self._chunk(_choice(None, text=text))


class ChatCompletion(_Reply):
    """An answer as the message of an assistant."""

    _PREFIX, _CHUNK, _EMPTY = "chatcmpl", "chat.completion.chunk", {"delta": {}}

    def whole(self, answers: Sequence[Answer], tokens: Sequence[list[Token] | None], n: int) -> replies.ChatOut:
        """As `Completion.whole`."""
        choices = [
            replies.ChatChoice(
                index=index,
                message=replies.MessageOut(content=answer.text),
                finish_reason=_reason(answer),
                logprobs=None if own is None else logprobs.of_chat(own),
            )
            for index, (answer, own) in enumerate(zip(answers, tokens, strict=True))
        ]
        return replies.ChatOut(**self._head, choices=choices, usage=_usage(answers, n))

    def begin(self) -> list[dict[str, Any]]:
        """The chunks before the first piece: the role."""
        return [self._chunk(_choice(None, delta={"role": "assistant", "content": "", "refusal": None}))]

    def piece(self, text: str) -> dict[str, Any]:
        return self._chunk(_choice(None, delta={"content": text}))


def _choice(reason: str | None, **content: Any) -> dict[str, Any]:
    return {"index": 0, **content, "finish_reason": reason, "logprobs": None}


def _reason(answer: Answer) -> Any:
    return "stop" if answer.finished else "length"


def _usage(answers: Sequence[Answer], n: int = 1) -> replies.Usage:
    """The usage as OpenAI counts it: each prompt once, for any number of answers."""
    read, written = sum(each.query_tokens for each in answers[::n]), sum(each.tokens for each in answers)
    return replies.Usage(prompt_tokens=read, completion_tokens=written, total_tokens=read + written)
