"""Requests and replies, as OpenAPI describes them. Unknown fields are refused by name."""

from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Discriminator, Field, StringConstraints, Tag, model_validator

from hart.data.tasks import Task
from hart.scoring import Normalisation
from hart.serving.settings import (
    MAX_BEAMS,
    MAX_CHARACTERS,
    MAX_CHOICES,
    MAX_DEMONSTRATIONS,
    MAX_INPUTS,
    MAX_NEW_TOKENS,
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
)

Text = Annotated[str, StringConstraints(min_length=1, max_length=MAX_CHARACTERS, pattern=r"\S")]
MaybeEmpty = Annotated[str, StringConstraints(max_length=MAX_CHARACTERS)]
Id = Annotated[
    str,
    StringConstraints(pattern=r"^[0-9a-f]{64}$", min_length=64, max_length=64),
    Field(description="id of an adaptation, 64 hexadecimal digits", examples=["0" * 64]),
]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class DemonstrationIn(_Model):
    """A solved example."""

    input: Text
    output: Text
    explanation: MaybeEmpty = ""


class TaskIn(_Model):
    """A task: what it asks for, and solved examples."""

    definition: MaybeEmpty = Field("", examples=["Keep only the fruits."])
    demonstrations: list[DemonstrationIn] = Field(min_length=1, max_length=MAX_DEMONSTRATIONS)

    def to_task(self) -> Task:
        return Task(self.definition, [each.model_dump() for each in self.demonstrations])


TAGS = ("as-id", "as-task", "as-list")
"""What the forms of `adaptation` are called in pydantic's messages."""


def _form(given: Any) -> str:
    """Which form was meant, so that a mistake is told as one of that form alone."""
    return TAGS[0] if isinstance(given, str) else TAGS[2] if isinstance(given, list) else TAGS[1]


_Id: TypeAlias = Annotated[Id, Tag(TAGS[0])]
_Task: TypeAlias = Annotated[TaskIn, Tag(TAGS[1])]
Adapted: TypeAlias = Annotated[_Id | _Task, Discriminator(_form), Field(description="an id, or a task given in full")]
_Each: TypeAlias = Annotated[list[Adapted], Tag(TAGS[2]), Field(min_length=1, max_length=MAX_INPUTS)]


class _Sampling(_Model):
    temperature: float = Field(0.0, ge=0.0, le=MAX_TEMPERATURE, description="0 takes the likeliest token")
    top_p: float = Field(1.0, ge=0.01, le=1.0, description="of sampling, so only with a temperature")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if 0 < self.temperature < MIN_TEMPERATURE:
            raise ValueError(f"temperature must be 0 or at least {MIN_TEMPERATURE}")
        return self


class GenerateIn(_Sampling):
    inputs: list[Text] = Field(min_length=1, max_length=MAX_INPUTS, description="queries")
    adaptation: Annotated[_Id | _Task | _Each, Discriminator(_form)] | None = Field(
        None, description="one for all inputs, or one for each; null asks the un-adapted base"
    )
    max_new_tokens: int | None = Field(None, ge=2, le=MAX_NEW_TOKENS, description="null: as in the model's training")
    num_beams: int = Field(1, ge=1, le=MAX_BEAMS)
    stream: bool = Field(False, description="server-sent events, one input and no beams")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if isinstance(self.adaptation, list) and len(self.adaptation) not in (1, len(self.inputs)):
            raise ValueError(f"adaptation: {len(self.adaptation)} for {len(self.inputs)} inputs; give one, or one each")
        if self.num_beams > 1 and self.temperature > 0:
            raise ValueError("num_beams: beams are searched without a temperature; set one of the two")
        if self.stream and (len(self.inputs) > 1 or self.num_beams > 1):
            raise ValueError("stream: give one input, and no beams")
        return self


class ScoreIn(_Model):
    input: Text
    choices: list[Text] = Field(min_length=1, max_length=MAX_CHOICES)
    adaptation: Adapted | None = Field(None, description="null asks the un-adapted base")
    normalisation: Normalisation = Field("sum", description="of the log-probabilities of a choice's tokens")


class CompletionIn(_Sampling):
    """As OpenAI's completions, as far as it goes: `model` is the id of an adaptation."""

    model: Id
    prompt: Text | Annotated[list[Text], Field(min_length=1, max_length=MAX_INPUTS)]
    max_tokens: int | None = Field(None, ge=2, le=MAX_NEW_TOKENS)
    n: Literal[1] = 1
    stream: bool = False

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.stream and isinstance(self.prompt, list) and len(self.prompt) > 1:
            raise ValueError("stream: give one prompt")
        return self


class AdaptationOut(_Model):
    """What is kept of a task."""

    id: Id
    task: dict[str, Any] = Field(description="definition and demonstrations, as in a task file")
    model: str
    base: str
    created: str
    seconds: float = Field(description="of the forward pass that generated it")
    bytes: int
    uses: int


class AdaptOut(AdaptationOut):
    new: bool = Field(description="false where it was there already")
    demonstrations_read: int = Field(description="how many of the task's demonstrations the model reads")


class AdaptationsOut(_Model):
    adaptations: list[AdaptationOut]


class GenerateOut(_Model):
    outputs: list[str]
    seconds: float = Field(description="waiting included")


class ScoreOut(_Model):
    scores: list[float] = Field(description="log-probabilities in nats, in the order of the choices")
    best: int = Field(description="index of the highest")


class Choice(_Model):
    index: int
    text: str
    finish_reason: Literal["stop", "length"] | None
    logprobs: None = None


class Usage(_Model):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CompletionOut(_Model):
    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage | None = None


class ErrorBody(_Model):
    message: str
    type: str
    param: str | None = None


class ErrorOut(_Model):
    error: ErrorBody


class Health(_Model):
    status: Literal["ok"]
    model: str
    base: str
    reads_definition: bool
