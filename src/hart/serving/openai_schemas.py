"""Requests and replies in the form of OpenAI's completions and chat completions.

What the official client sends and a model here can do nothing with is taken at the value that changes nothing, and
refused by name at any other.
"""

import json
import re
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    WithJsonSchema,
    model_validator,
)

from hart.serving.schemas import TAGS, MaybeEmpty, Model, NewTokens, Request, Sampling, Text, text_form
from hart.serving.settings import MAX_CHARACTERS, MAX_INPUTS

BASE = "base"
"""What the un-adapted base is called where the id of an adaptation is expected."""

_MODEL = rf"^({BASE}|[0-9a-f]{{8,64}})$"


def _model_name(given: str) -> str:
    # Without $, which lets a line break follow.
    if re.fullmatch(_MODEL[1:-1], given) is None:
        raise ValueError(f"give the id of an adaptation, or {BASE}; GET /v1/models lists them")
    return given


ModelName: TypeAlias = Annotated[
    str,
    AfterValidator(_model_name),
    WithJsonSchema({"type": "string", "pattern": _MODEL, "description": f"id of an adaptation, or {BASE}"}),
]


def _one_of(*values: Any) -> Any:
    """A field of OpenAI's that may have these values alone, because others would change the answer."""

    def check(given: Any) -> Any:
        # By type, too: for Python 0 is False, and 1.0 is True.
        if any(_kind(given) == _kind(value) and given == value for value in values):
            return given
        shown = " or ".join(json.dumps(value) for value in (*values, None))
        raise ValueError(f"is not supported here but as {shown}, which changes nothing; leave it out")

    default = values[0]
    described = WithJsonSchema({"enum": list(values), "description": "taken for OpenAI's clients; changes nothing"})
    return Annotated[Any, BeforeValidator(check), described, Field(default)]


def _kind(value: Any) -> type:
    return float if isinstance(value, int) and not isinstance(value, bool) else type(value)


_Label: TypeAlias = Annotated[
    MaybeEmpty | None, Field(description="of the caller's own; taken for OpenAI's clients, and not kept")
]
_OneText: TypeAlias = Annotated[Text, Tag(TAGS[3])]


class StreamOptions(Request):
    include_usage: bool = Field(False, description="a last event before [DONE] that counts tokens")
    include_obfuscation: _one_of(False)  # type: ignore[valid-type]


class _OpenAI(Sampling):
    """What completions and chat completions have in common."""

    model: ModelName
    max_tokens: NewTokens = None
    max_completion_tokens: NewTokens = Field(None, description="another name of max_tokens")
    stream: bool = False
    stream_options: StreamOptions = Field(StreamOptions.model_validate({}), description="only with stream")
    user: _Label = None
    metadata: dict[MaybeEmpty, MaybeEmpty] | None = Field(None, description="as user")
    store: _one_of(False)  # type: ignore[valid-type]
    service_tier: _one_of("auto", "default")  # type: ignore[valid-type]
    n: _one_of(1)  # type: ignore[valid-type]
    frequency_penalty: _one_of(0)  # type: ignore[valid-type]
    presence_penalty: _one_of(0)  # type: ignore[valid-type]
    logit_bias: _one_of({})  # type: ignore[valid-type]
    logprobs: _one_of(False)  # type: ignore[valid-type]

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.max_tokens and self.max_completion_tokens and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens: is another than max_completion_tokens, and they mean the same; give one")
        if self.stream_options.include_usage and not self.stream:
            raise ValueError("stream_options: include_usage is of a stream; set stream, or leave it out")
        return self

    @property
    def new_tokens(self) -> int | None:
        return self.max_tokens or self.max_completion_tokens

    def top_p_counts(self) -> bool:
        # With OpenAI the temperature is 1 unless it is given; a 0 that was given asks for no sampling.
        return "temperature" not in self.model_fields_set


def _no_tokens(given: Any) -> Any:
    if isinstance(given, list) and given and all(isinstance(each, int | list) for each in given):
        raise ValueError("give a text or a list of texts; lists of tokens are not taken")
    return given


_Texts: TypeAlias = Annotated[list[Text], Tag(TAGS[2]), Field(min_length=1, max_length=MAX_INPUTS)]
Prompt: TypeAlias = Annotated[_OneText | _Texts, Discriminator(text_form), BeforeValidator(_no_tokens)]


class CompletionIn(_OpenAI):
    """As OpenAI's completions, as far as it goes: `model` is the id of an adaptation, or the base."""

    prompt: Prompt
    best_of: _one_of(1)  # type: ignore[valid-type]
    echo: _one_of(False)  # type: ignore[valid-type]
    suffix: _one_of("")  # type: ignore[valid-type]

    @model_validator(mode="after")
    def _one_stream(self) -> Self:
        if self.stream and isinstance(self.prompt, list) and len(self.prompt) > 1:
            raise ValueError("stream: give one prompt")
        return self


class TextPart(Request):
    """A part of a message's content."""

    type: Literal["text"]
    text: MaybeEmpty


def _only_text(given: Any) -> Any:
    if isinstance(given, dict) and isinstance(given.get("type"), str) and given["type"] != "text":
        raise ValueError("is no text, and this model reads text alone; send parts of type text")
    return given


def _readable(given: str | list[TextPart]) -> str | list[TextPart]:
    text = content_text(given)
    if not text.strip() or len(text) > MAX_CHARACTERS:
        raise ValueError(f"has {len(text)} characters; give it a text of at most {MAX_CHARACTERS} that is not blank")
    return given


def content_text(content: str | list[TextPart]) -> str:
    """The text of a message's content, its parts one under the other."""
    return content if isinstance(content, str) else "\n".join(part.text for part in content)


_Part: TypeAlias = Annotated[TextPart, BeforeValidator(_only_text)]
_Parts: TypeAlias = Annotated[list[_Part], Tag(TAGS[2]), Field(min_length=1, max_length=MAX_INPUTS)]
Content: TypeAlias = Annotated[_OneText | _Parts, Discriminator(text_form), AfterValidator(_readable)]


class MessageIn(Request):
    """The user's message, which is the query."""

    role: Literal["user"]
    content: Content


_OTHER_ROLES = ("assistant", "developer", "function", "system", "tool")


def _one_query(given: Any) -> Any:
    """Refuse a conversation before its messages are looked at: in those of other roles all may be right."""
    if isinstance(given, list):
        roles = [each.get("role") for each in given if isinstance(each, dict)]
        if len(given) > 1 or any(role in _OTHER_ROLES for role in roles if isinstance(role, str)):
            raise ValueError(
                "give one message, of role user: each query is answered by itself, and what to do is told by the "
                "adaptation, so a system message or earlier turns would not be read"
            )
    return given


class ChatIn(_OpenAI):
    """As OpenAI's chat completions, as far as it goes: one message of a user, to the adaptation that `model` names."""

    messages: Annotated[list[MessageIn], Field(min_length=1, max_length=1), BeforeValidator(_one_query)]
    top_logprobs: _one_of(0)  # type: ignore[valid-type]
    tools: _one_of([])  # type: ignore[valid-type]
    tool_choice: _one_of("none", "auto")  # type: ignore[valid-type]
    parallel_tool_calls: _one_of(True, False)  # type: ignore[valid-type]
    functions: _one_of([])  # type: ignore[valid-type]
    function_call: _one_of("none", "auto")  # type: ignore[valid-type]
    response_format: _one_of({"type": "text"})  # type: ignore[valid-type]
    modalities: _one_of(["text"])  # type: ignore[valid-type]
    safety_identifier: _Label = None
    prompt_cache_key: _Label = None

    @property
    def query(self) -> str:
        return content_text(self.messages[0].content)


class _Choice(Model):
    index: int
    finish_reason: Literal["stop", "length"] | None
    logprobs: None = None


class Choice(_Choice):
    text: str


class MessageOut(Model):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(_Choice):
    message: MessageOut


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
    """What `model` may name."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="when, in seconds since 1970; of the base when the server was started")
    owned_by: str = Field(description="the model that made the adaptation, or the base's name")


class ModelsOut(Model):
    object: Literal["list"] = "list"
    data: list[ModelOut]
