"""Replies in the form of OpenAI's completions, chat completions and models, also as OpenAPI schemas."""

from typing import Literal

from pydantic import Field

from hart.serving.schemas import Model


class LogProbs(Model):
    """Log-probabilities of a completion: one entry per generated token, including the end of sequence."""

    tokens: list[str]
    token_logprobs: list[float] = Field(description="in nats")
    top_logprobs: list[dict[str, float]] = Field(description="of the likeliest tokens, and of the generated one")
    text_offset: list[int] = Field(description="where each token begins in the text")


class TopLogProb(Model):
    token: str
    logprob: float = Field(description="in nats")
    bytes: list[int] | None = Field(description="null where a token is a part of a letter")


class TokenLogProb(TopLogProb):
    top_logprobs: list[TopLogProb]


class ChatLogProbs(Model):
    """Log-probabilities of a chat completion: one entry per generated token, including the end of sequence."""

    content: list[TokenLogProb]
    refusal: None = None


class _Choice(Model):
    index: int
    finish_reason: Literal["stop", "length"] | None


class Choice(_Choice):
    text: str
    logprobs: LogProbs | None = None


class MessageOut(Model):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(_Choice):
    message: MessageOut
    logprobs: ChatLogProbs | None = None


class Usage(Model):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class _Reply(Model):
    id: str
    created: int
    model: str
    usage: Usage | None = None


class CompletionOut(_Reply):
    object: Literal["text_completion"] = "text_completion"
    choices: list[Choice]


class ChatOut(_Reply):
    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]


class ModelOut(Model):
    """One value that `model` may have."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="when, in seconds since 1970; of the base when the server was started")
    owned_by: str = Field(description="the model that made the adaptation, or the base's name")


class ModelsOut(Model):
    object: Literal["list"] = "list"
    data: list[ModelOut]
