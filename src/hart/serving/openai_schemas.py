"""Requests in the form of OpenAI's completions and chat completions.

What would change the answer, and what a model here cannot do, is taken at the value that changes nothing, and refused
by name at any other. Fields that are not known here are taken and not read; `unread` names them. The table in
docs/serving.md says it for each field.
"""

import json
import re
from abc import abstractmethod
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    WithJsonSchema,
    model_validator,
)

from hart.serving.schemas import TAGS, Integer, MaybeEmpty, NewTokens, Request, Sampling, Text, text_form
from hart.serving.settings import MAX_CHARACTERS, MAX_INPUTS, MAX_LOGPROBS

BASE = "base"
"""Name of the un-adapted base in place of the id of an adaptation."""

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
        raise ValueError(f"only {shown} is supported, and changes nothing; leave it out")

    kind = {"enum": list(values)} if values else {"type": "null"}
    described = WithJsonSchema({**kind, "description": "taken for OpenAI's clients; changes nothing"})
    return Annotated[Any, BeforeValidator(check), described, Field(values[0] if values else None)]


def _kind(value: Any) -> type:
    return float if isinstance(value, int) and not isinstance(value, bool) else type(value)


_Label: TypeAlias = Annotated[
    MaybeEmpty | None, Field(description="of the caller's own; taken for OpenAI's clients, and not kept")
]
_OneText: TypeAlias = Annotated[Text, Tag(TAGS[3])]
_MaybeEmptyText: TypeAlias = Annotated[MaybeEmpty, Tag(TAGS[3])]


class _Open(Request):
    """Base of schemas that accept and ignore unknown fields."""

    model_config = ConfigDict(extra="allow")


def unread(given: _Open) -> list[str]:
    """Names of the ignored fields of a request, such as `messages.0.name`."""
    names = list(given.model_extra or {})
    for field in type(given).model_fields:
        value = getattr(given, field)
        inner = [(f"{field}.{number}", each) for number, each in enumerate(value)] if isinstance(value, list) else []
        for where, part in [(field, value), *inner]:
            if isinstance(part, _Open):
                names += [f"{where}.{name}" for name in unread(part)]
    return names


class StreamOptions(_Open):
    include_usage: bool = Field(False, description="a last event before [DONE] that counts tokens")
    include_obfuscation: _one_of(False)  # type: ignore[valid-type]


class _OpenAI(Sampling, _Open):
    """The common fields of completions and chat completions."""

    model: ModelName
    max_tokens: NewTokens = None
    max_completion_tokens: NewTokens = Field(None, description="another name of max_tokens")
    stream: bool = False
    stream_options: StreamOptions = Field(StreamOptions.model_validate({}), description="only with stream")
    user: _Label = None
    metadata: dict[MaybeEmpty, MaybeEmpty] | None = Field(None, description="as user")
    store: _one_of(False)  # type: ignore[valid-type]
    service_tier: _one_of("auto", "default")  # type: ignore[valid-type]
    n: Integer = Field(1, ge=1, le=MAX_INPUTS, description="answers to each prompt, sampled independently")
    frequency_penalty: _one_of(0)  # type: ignore[valid-type]
    presence_penalty: _one_of(0)  # type: ignore[valid-type]
    logit_bias: _one_of({})  # type: ignore[valid-type]
    # Of other servers that their users reach with OpenAI's clients.
    top_k: _one_of(-1, 0)  # type: ignore[valid-type]
    min_p: _one_of(0)  # type: ignore[valid-type]
    repetition_penalty: _one_of(1)  # type: ignore[valid-type]

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.max_tokens and self.max_completion_tokens and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens: differs from max_completion_tokens, which means the same; give one of them")
        if self.stream_options.include_usage and not self.stream:
            raise ValueError("stream_options: include_usage needs a stream; set stream, or leave it out")
        if self.n > 1 and self.temperature == 0:
            raise ValueError("n: without a temperature all answers are the same; set one above 0, or n to 1")
        if self.stream and self.n > 1:
            raise ValueError("n: a stream has one answer; set n to 1, or leave stream out")
        if self.stream and self.top is not None:
            raise ValueError("logprobs: a stream has none; leave one of the two out")
        return self

    @property
    def new_tokens(self) -> int | None:
        return self.max_tokens or self.max_completion_tokens

    @property
    @abstractmethod
    def top(self) -> int | None:
        """Number of likeliest tokens to report at each token; None: no log-probabilities."""

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
    """The supported part of OpenAI's completions; `model` is the id of an adaptation, or the base."""

    prompt: Prompt
    logprobs: Annotated[
        Annotated[Integer, Field(ge=0, le=MAX_LOGPROBS)] | None,
        BeforeValidator(lambda given: None if given is False else given),
        Field(description="log-probabilities of the answer's tokens and of so many likeliest ones"),
    ] = None
    best_of: Integer | None = Field(None, ge=1, le=MAX_INPUTS, description="the same as n")
    echo: _one_of(False)  # type: ignore[valid-type]
    suffix: _one_of("")  # type: ignore[valid-type]

    @model_validator(mode="after")
    def _one_stream(self) -> Self:
        if self.stream and isinstance(self.prompt, list) and len(self.prompt) > 1:
            raise ValueError("stream: give one prompt")
        if self.n * len(self.prompts) > MAX_INPUTS:
            raise ValueError(
                f"n: {self.n} answers to each of {len(self.prompts)} prompts exceed {MAX_INPUTS}; lower one"
            )
        if self.best_of is not None and self.best_of != self.n:
            raise ValueError("best_of: must be equal to n, as all answers are returned; set it to n, or leave it out")
        return self

    @property
    def prompts(self) -> list[str]:
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    @property
    def top(self) -> int | None:
        return self.logprobs


class TextPart(_Open):
    """A part of a message's content."""

    type: Literal["text"]
    text: MaybeEmpty


def _only_text(given: Any) -> Any:
    if isinstance(given, dict) and isinstance(given.get("type"), str) and given["type"] != "text":
        raise ValueError("must be of type text, as this model reads text only")
    return given


def _readable(given: str | list[TextPart]) -> str | list[TextPart]:
    text = content_text(given)
    if not text.strip() or len(text) > MAX_CHARACTERS:
        raise ValueError(f"has {len(text)} characters; give it a text of at most {MAX_CHARACTERS} that is not blank")
    return given


def _not_too_long(given: str | list[TextPart]) -> str | list[TextPart]:
    if len(content_text(given)) > MAX_CHARACTERS:
        raise ValueError(f"has {len(content_text(given))} characters, at most {MAX_CHARACTERS}")
    return given


def content_text(content: str | list[TextPart]) -> str:
    """The text of a message's content, with its parts joined by line breaks."""
    return content if isinstance(content, str) else "\n".join(part.text for part in content)


_Part: TypeAlias = Annotated[TextPart, BeforeValidator(_only_text)]
_Parts: TypeAlias = Annotated[list[_Part], Tag(TAGS[2]), Field(min_length=1, max_length=MAX_INPUTS)]
Content: TypeAlias = Annotated[_OneText | _Parts, Discriminator(text_form), AfterValidator(_readable)]


class MessageIn(_Open):
    """The user's message: the query."""

    role: Literal["user"]
    content: Content

    @property
    def text(self) -> str:
        return content_text(self.content)


_OTHER_ROLES = ("assistant", "developer", "function", "system", "tool")


def _one_query(given: Any) -> Any:
    """Refuse a conversation before its messages are looked at: in those of other roles all may be right."""
    if isinstance(given, list):
        roles = [each.get("role") for each in given if isinstance(each, dict)]
        if len(given) > 1 or any(role in _OTHER_ROLES for role in roles if isinstance(role, str)):
            raise ValueError(
                "give one message of role user: the adaptation holds the task, and each query is answered by itself, "
                "without system message or earlier turns"
            )
    return given


class ChatIn(_OpenAI):
    """The supported part of OpenAI's chat completions: one user message for the adaptation that `model` names."""

    messages: Annotated[list[MessageIn], Field(min_length=1, max_length=1), BeforeValidator(_one_query)]
    logprobs: bool = Field(False, description="log-probabilities of the answer's tokens")
    top_logprobs: Integer = Field(
        0, ge=0, le=MAX_LOGPROBS, description="and of so many likeliest ones; only with logprobs"
    )
    tools: _one_of([])  # type: ignore[valid-type]
    tool_choice: _one_of("none", "auto")  # type: ignore[valid-type]
    parallel_tool_calls: _one_of(True, False)  # type: ignore[valid-type]
    functions: _one_of([])  # type: ignore[valid-type]
    function_call: _one_of("none", "auto")  # type: ignore[valid-type]
    response_format: _one_of({"type": "text"})  # type: ignore[valid-type]
    modalities: _one_of(["text"])  # type: ignore[valid-type]
    audio: _one_of()  # type: ignore[valid-type]
    web_search_options: _one_of()  # type: ignore[valid-type]
    moderation: _one_of()  # type: ignore[valid-type]
    safety_identifier: _Label = None
    prompt_cache_key: _Label = None

    @model_validator(mode="after")
    def _with_logprobs(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs: only with logprobs; set that to true, or leave this out")
        return self

    @property
    def turns(self) -> list[dict[str, str]]:
        """Role and text of each message."""
        return [{"role": _ROLES.get(each.role, each.role), "content": each.text} for each in self.messages]

    @property
    def top(self) -> int | None:
        return self.top_logprobs if self.logprobs else None


_ROLES = {"developer": "system"}
"""OpenAI's newer name of the system message → its name in chat templates."""


class TurnIn(_Open):
    """One message of a conversation."""

    role: Literal["user", "assistant", "system", "developer"]
    content: Annotated[_MaybeEmptyText | _Parts, Discriminator(text_form), AfterValidator(_not_too_long)]
    tool_calls: _one_of([])  # type: ignore[valid-type]
    function_call: _one_of()  # type: ignore[valid-type]

    @property
    def text(self) -> str:
        return content_text(self.content)


def _ends_with_a_query(given: list[TurnIn]) -> list[TurnIn]:
    if given[-1].role != "user" or not given[-1].text.strip():
        raise ValueError("the last message must be of role user and have a text, as it is the query")
    return given


class ConversationIn(ChatIn):
    """OpenAI's chat completions for a model with a chat template, which reads whole conversations."""

    messages: Annotated[  # type: ignore[assignment]
        list[TurnIn], Field(min_length=1, max_length=MAX_INPUTS), AfterValidator(_ends_with_a_query)
    ]
