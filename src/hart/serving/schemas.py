"""Schemas of requests and replies, also for OpenAPI. Unknown fields are refused by name.

In a request null means the default of a field, as clients of OpenAI's interface send it.
"""

from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    model_validator,
)

from hart.data.tasks import Task
from hart.model.scoring import Normalisation
from hart.serving.settings import (
    MAX_BEAMS,
    MAX_CHARACTERS,
    MAX_CHOICES,
    MAX_DEMONSTRATIONS,
    MAX_INPUTS,
    MAX_NEW_TOKENS,
    MAX_SCORES,
    MAX_STOP_CHARACTERS,
    MAX_STOPS,
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
)

Text = Annotated[str, StringConstraints(min_length=1, max_length=MAX_CHARACTERS, pattern=r"\S")]
MaybeEmpty = Annotated[str, StringConstraints(max_length=MAX_CHARACTERS)]
Id = Annotated[
    str,
    StringConstraints(pattern=r"^[0-9a-f]{8,64}$", min_length=8, max_length=64),
    Field(description="id of an adaptation, 64 hexadecimal digits, or its first ones, at least 8", examples=["0" * 64]),
]


def _number(given: Any) -> Any:
    if isinstance(given, bool):
        raise ValueError("give a number, not true or false")
    return given


Integer: TypeAlias = Annotated[int, BeforeValidator(_number)]
Float: TypeAlias = Annotated[float, BeforeValidator(_number)]


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


def _show_nulls(schema: dict[str, Any]) -> None:
    """Add null to the types of fields with a default in the JSON schema."""
    for name, field in schema["properties"].items():
        kinds = field.get("anyOf") or field.get("oneOf") or []
        if "default" in field and {"type": "null"} not in kinds:
            kept = {key: field[key] for key in ("default", "description", "title") if key in field}
            value = {key: each for key, each in field.items() if key not in kept}
            schema["properties"][name] = {"anyOf": [value, {"type": "null"}], **kept}


class Request(Model):
    model_config = ConfigDict(json_schema_extra=_show_nulls)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        fields, closed = cls.model_fields, cls.model_config.get("extra") == "forbid"
        return {
            name: value
            for name, value in given.items()
            if value is not None or (fields[name].is_required() if name in fields else closed)
        }


class DemonstrationIn(Request):
    """A demonstration: a solved example of the task."""

    input: Text
    output: Text
    explanation: MaybeEmpty = ""


class TaskIn(Request):
    """A task: a definition, demonstrations, or both."""

    definition: MaybeEmpty = Field("", examples=["Keep only the fruits."])
    demonstrations: list[DemonstrationIn] = Field([], max_length=MAX_DEMONSTRATIONS)

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.definition.strip() and not self.demonstrations:
            raise ValueError("definition: is empty, and there are no demonstrations; give at least one of the two")
        return self

    def to_task(self) -> Task:
        return Task(self.definition, [each.model_dump() for each in self.demonstrations])


TAGS = ("as-id", "as-task", "as-list", "as-text", "as-each")
"""Tags of the forms of `adaptation`, `prompt`, `stop` and `choices` in pydantic's messages."""


def _form(given: Any) -> str:
    """The tag of the intended form, so that error messages concern that form alone."""
    return TAGS[0] if isinstance(given, str) else TAGS[2] if isinstance(given, list) else TAGS[1]


_Id: TypeAlias = Annotated[Id, Tag(TAGS[0])]
_Task: TypeAlias = Annotated[TaskIn, Tag(TAGS[1])]
AdaptationIn: TypeAlias = Annotated[
    _Id | _Task, Discriminator(_form), Field(description="an id, or a task given in full")
]
_Each: TypeAlias = Annotated[list[AdaptationIn], Tag(TAGS[2]), Field(min_length=1, max_length=MAX_INPUTS)]
EachAdapted: TypeAlias = Annotated[
    Annotated[_Id | _Task | _Each, Discriminator(_form)] | None,
    Field(description="one for all inputs, or one for each; null asks the un-adapted base"),
]


def check_each(given: Any, inputs: list[str]) -> None:
    """Raise `ValueError` unless adaptations are one for all inputs, or one for each."""
    if isinstance(given, list) and len(given) not in (1, len(inputs)):
        raise ValueError(f"adaptation: {len(given)} for {len(inputs)} inputs; give one, or one each")


NewTokens: TypeAlias = Annotated[
    Integer | None, Field(ge=1, le=MAX_NEW_TOKENS, description="null: as in the model's training")
]


def text_form(given: Any) -> str:
    """The tag of a list or of a text, so that error messages concern that form alone."""
    return TAGS[2] if isinstance(given, list) else TAGS[3]


_StopText: TypeAlias = Annotated[str, StringConstraints(max_length=MAX_STOP_CHARACTERS)]
Stop: TypeAlias = Annotated[
    Annotated[_StopText, Tag(TAGS[3])] | Annotated[list[_StopText], Tag(TAGS[2]), Field(max_length=MAX_STOPS)],
    Discriminator(text_form),
    Field(description="an answer ends before the first of these texts; empty ones are ignored"),
]


class Sampling(Request):
    """Options of generation, common to all routes that generate answers."""

    temperature: Float = Field(0.0, ge=0.0, le=MAX_TEMPERATURE, description="0 takes the likeliest token")
    top_p: Float = Field(1.0, ge=0.01, le=1.0, description="for sampling; needs a temperature")
    stop: Stop = ""
    seed: Integer | None = Field(
        None, ge=-(2**63), lt=2**63, description="for sampling: the same request then gets the same answer"
    )

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if 0 < self.temperature < MIN_TEMPERATURE:
            raise ValueError(f"temperature: must be 0 or at least {MIN_TEMPERATURE}")
        if self.top_p < 1 and self.temperature == 0 and self.top_p_counts():
            raise ValueError("top_p: has no effect without a temperature; set one above 0, or leave top_p out")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop texts in sorted order, so that requests with the same ones share batches."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop
        return tuple(sorted({text for text in given if text}))

    def top_p_counts(self) -> bool:
        """Whether a `top_p` without a temperature is refused."""
        return True


class GenerateIn(Sampling):
    inputs: list[Text] = Field(min_length=1, max_length=MAX_INPUTS, description="queries")
    adaptation: EachAdapted = None
    max_new_tokens: NewTokens = None
    num_beams: Integer = Field(1, ge=1, le=MAX_BEAMS)
    stream: bool = Field(False, description="server-sent events, one input and no beams")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        check_each(self.adaptation, self.inputs)
        if self.num_beams > 1 and self.temperature > 0:
            raise ValueError("num_beams: beam search uses no temperature; set only one of the two")
        if self.stream and (len(self.inputs) > 1 or self.num_beams > 1):
            raise ValueError("stream: needs one input and num_beams 1")
        return self


def _form_of_choices(given: Any) -> str:
    return TAGS[4] if isinstance(given, list) and given and isinstance(given[0], list) else TAGS[2]


_Choices: TypeAlias = Annotated[list[Text], Field(min_length=2, max_length=MAX_CHOICES)]
_ChoicesOfEach: TypeAlias = Annotated[list[_Choices], Tag(TAGS[4]), Field(max_length=MAX_INPUTS)]


class ClassifyIn(Request):
    inputs: list[Text] = Field(min_length=1, max_length=MAX_INPUTS, description="queries")
    choices: Annotated[
        Annotated[_Choices, Tag(TAGS[2])] | _ChoicesOfEach,
        Discriminator(_form_of_choices),
        Field(description=f"for all inputs, or a list for each; at most {MAX_SCORES} in all, counted for each input"),
    ]
    adaptation: EachAdapted = None
    normalisation: Normalisation = Field("sum", description="of the log-probabilities of a choice's tokens")
    calibrate: bool = Field(False, description="subtract the scores of the same choices for a query without content")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        check_each(self.adaptation, self.inputs)
        each = self.choices_of_each
        if len(each) != len(self.inputs):
            raise ValueError(f"choices: lists for {len(each)} of {len(self.inputs)} inputs; give one list, or one each")
        count = sum(map(len, each))
        if count > MAX_SCORES:
            raise ValueError(f"choices: {count} over all inputs, at most {MAX_SCORES} in a request; send fewer inputs")
        return self

    @property
    def choices_of_each(self) -> list[list[str]]:
        """The choices of each input."""
        return self.choices if isinstance(self.choices[0], list) else [self.choices] * len(self.inputs)


class ScoreIn(Request):
    input: Text
    choices: list[Text] = Field(min_length=1, max_length=MAX_CHOICES)
    adaptation: AdaptationIn | None = Field(None, description="null asks the un-adapted base")
    normalisation: Normalisation = Field("sum", description="of the log-probabilities of a choice's tokens")


class AdaptationOut(Model):
    """A stored adaptation."""

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
    never_seen: list[str] = Field([], description="what the task lacks that every task of the model's training had")


class AdaptationsOut(Model):
    adaptations: list[AdaptationOut]


_FAR: Any = Field(
    [], description="numbers, from 0, of inputs far from a bundled model's training data: their answers are unreliable"
)


class GenerateOut(Model):
    outputs: list[str]
    seconds: float = Field(description="waiting included")
    far: list[int] = _FAR


class ScoreOut(Model):
    scores: list[float] = Field(description="log-probabilities in nats, in the order of the choices")
    best: int = Field(description="index of the highest, of equal ones the first")


class ClassificationOut(Model):
    choice: str = Field(description="the most probable one, of equal ones the first")
    probabilities: dict[str, float] = Field(description="of all choices, in their order; they add up to 1")


class ClassifyOut(Model):
    classifications: list[ClassificationOut] = Field(description="in the order of the inputs")
    seconds: float = Field(description="waiting included")
    far: list[int] = _FAR


class ErrorBody(Model):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorOut(Model):
    error: ErrorBody


class State(Model):
    status: Literal["ok"] = "ok"


class Health(Model):
    status: Literal["ok", "degraded"]
    model: str
    base: str
    reads_definition: bool


class Trouble(Health):
    """The state of a server with a failure, and the reason."""

    error: ErrorBody
