"""A task: its definition, its demonstrations and, if it has any, its instances.

The file format is that of Super-NaturalInstructions (S-NI): one JSON object per task with the keys
``Definition``, ``Positive Examples``, ``Categories`` and ``Instances``. A custom task needs one of
the first two; a multiple-choice task adds ``choices`` to its instances, or ``Choices`` for all of
them. Other keys (sources, licences, negative examples) are ignored: the paper's hypernetwork reads
only definition and positive demonstrations (§4.1, "Def+2Pos").
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from hart.data.reading import check_text
from hart.errors import HartError
from hart.runtime.files import parse_json, read_text, write_json


@dataclass(frozen=True, repr=False)
class Demonstration:
    """One solved example of a task, with an optional ``explanation`` of why the output is correct.

    Raises:
        HartError: a field is not a text.
    """

    input: str
    output: str
    explanation: str = ""

    def __post_init__(self) -> None:
        for key in ("input", "output", "explanation"):
            _text(getattr(self, key), f"demonstration: {key}")

    def __repr__(self) -> str:
        """One line with shortened texts."""
        explained = f", explanation={_short(self.explanation)}" if self.explanation else ""
        return f"Demonstration({_short(self.input)}, {_short(self.output)}{explained})"


@dataclass(frozen=True)
class Instance:
    """One query of a task with all its accepted answers (at least one).

    ``choices`` are the answers to choose from in a multiple-choice task. Both may be given as any sequence of texts.

    Raises:
        HartError: a field has the wrong type, or there is no reference.
    """

    input: str
    references: tuple[str, ...]
    id: str = ""
    choices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _text(self.id, "instance: id")
        where = f"instance {self.id}" if self.id else "instance"
        _text(self.input, f"{where}: input")
        object.__setattr__(self, "references", _texts(self.references, f"{where}: references"))
        object.__setattr__(self, "choices", _texts(self.choices, f"{where}: choices"))
        if not self.references:
            raise HartError(f"{where}: references is empty; give at least one accepted answer")


DemonstrationLike: TypeAlias = Demonstration | Sequence[str] | Mapping[str, str]


@dataclass(frozen=True, init=False, repr=False)
class Task:
    """A task that the hypernetwork adapts the main model to.

    ``demonstrations`` may be given as `Demonstration`, as ``(input, output)`` or
    ``(input, output, explanation)``, or as mappings with those keys; they are stored as
    `Demonstration`. Tasks are immutable and hashable. Either ``definition`` (as in P3) or
    ``demonstrations`` may be empty, not both. ``instances`` may be any constant sequence, such as rows
    on disk; a list is stored as a tuple.

    Raises:
        HartError: there is neither a definition nor a demonstration, or one is malformed.
    """

    definition: str
    demonstrations: tuple[Demonstration, ...]
    name: str
    categories: tuple[str, ...]
    instances: Sequence[Instance]

    # Written out, not generated, so that for type checkers `demonstrations` accepts more types than it holds.
    def __init__(
        self,
        definition: str,
        demonstrations: Iterable[DemonstrationLike] = (),
        name: str = "",
        categories: Iterable[str] = (),
        instances: Iterable[Instance] = (),
    ) -> None:
        _text(name, "task: name")
        where = f"task {name}" if name else "task"
        _text(definition, f"{where}: definition")
        if isinstance(demonstrations, str | Mapping) or not isinstance(demonstrations, Iterable):
            raise HartError(
                f"{where}: demonstrations must be a list of (input, output) pairs, not {_kind(demonstrations)}"
            )
        normalised = tuple(
            _demonstration(item, f"{where}: demonstration {number}")
            for number, item in enumerate(demonstrations, start=1)
        )
        if not definition.strip() and not any(each.input.strip() or each.output.strip() for each in normalised):
            raise HartError(f"{where}: has neither a definition nor demonstrations; give at least one of the two")
        object.__setattr__(self, "definition", definition)
        object.__setattr__(self, "demonstrations", normalised)
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "categories", _texts(categories, f"{where}: categories"))
        if isinstance(instances, str | Mapping) or not isinstance(instances, Iterable):
            raise HartError(f"{where}: instances must be a list of Instance, not {_kind(instances)}")
        lazy = isinstance(instances, Sequence) and not isinstance(instances, list)
        object.__setattr__(self, "instances", instances if lazy else tuple(instances))
        # Rows on disk are not read here.
        for number, instance in enumerate(self.instances if isinstance(self.instances, tuple) else (), start=1):
            if not isinstance(instance, Instance):
                raise HartError(f"{where}: instance {number} must be an Instance, not {_kind(instance)}")

    def __repr__(self) -> str:
        """One line: the shortened definition, and the numbers of demonstrations and instances."""
        parts = [f"name={_short(self.name)}"] if self.name else []
        parts += [f"definition={_short(self.definition)}", f"demonstrations={len(self.demonstrations)}"]
        parts += [f"instances={len(self.instances)}"] if len(self.instances) else []
        return f"Task({', '.join(parts)})"

    @property
    def label(self) -> str:
        """The task's name for messages; without one, the beginning of its definition or first demonstration."""
        if self.name:
            return self.name
        words = " ".join((self.definition.strip() or self.demonstrations[0].input).split())
        return f"'{words}'" if len(words) <= 40 else f"'{words[:40]}…'"

    @property
    def multiple_choice(self) -> bool:
        """Whether the instances have choices; either all have them or none."""
        return bool(self.instances) and bool(self.instances[0].choices)

    @classmethod
    def from_file(cls, path: str | Path) -> "Task":
        """Read a task file; the task has the name of the file.

        Raises:
            HartError: the file cannot be read, is not JSON, or is not a task (see `from_dict`).
        """
        path = Path(path)
        if path.is_dir():
            raise HartError(f"{path}: is a folder; give one of its task files (tasks/NAME.json of a folder of tasks)")
        if path.suffix.lower() in (".csv", ".tsv", ".jsonl", ".parquet"):
            raise HartError(
                f"{path}: is a table, not a task file; make tasks of it with hart tasks make {path} --output-dir DIR"
            )
        text = read_text(path, "a task file", missing=f"{path}: no such task file")
        content = parse_json(text, str(path), "a task file", whole=False)
        return cls.from_dict(content, source=str(path), name=path.stem)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], *, source: str, name: str = "") -> "Task":
        """Build a task from the official S-NI keys; ``source`` names the origin in messages.

        ``Definition`` may be one text or a list of texts, of which the first is used. Instances and
        categories may be missing; so may the definition or the demonstrations, not both. The
        ``choices`` of an instance, or the ``Choices`` of all, must include one of its outputs.

        Raises:
            HartError: a key has the wrong type, there is neither a definition nor a demonstration,
                an instance has no output, there are fewer than two choices, choices lack the
                answer, or only some instances have choices.
        """
        if not isinstance(content, Mapping):
            raise HartError(f"{source}: a task must be a JSON object, not {_kind(content)}")
        definition, demonstrations = _definition(content, source), _positive_examples(content, source)
        if not definition and not demonstrations:
            raise HartError(f"{source}: Definition and Positive Examples are both missing or empty; give one of them")
        instances = _instances(content, source)
        return cls(
            definition=definition,
            demonstrations=demonstrations,
            name=name,
            categories=[
                _text(item, f"{source}: Categories[{index}]")
                for index, item in enumerate(_list(content.get("Categories", []), "Categories", source))
            ],
            instances=instances,
        )

    def to_dict(self) -> dict[str, Any]:
        """The task with the official S-NI keys: the inverse of `from_dict`, except for the name."""
        return {
            "Categories": list(self.categories),
            "Definition": [self.definition] if self.definition else [],
            "Positive Examples": [
                {"input": demo.input, "output": demo.output, "explanation": demo.explanation}
                for demo in self.demonstrations
            ],
            "Instances": [
                {
                    "id": instance.id,
                    "input": instance.input,
                    "output": list(instance.references),
                    **({"choices": list(instance.choices)} if instance.choices else {}),
                }
                for instance in self.instances
            ],
        }

    def save(self, path: str | Path) -> None:
        """Write the task file atomically; an existing file is replaced.

        Raises:
            HartError: the file cannot be written.
        """
        write_json(path, self.to_dict(), indent=1)


def _short(text: str) -> str:
    """A text, shortened to one line."""
    return repr(text if len(text) <= 40 else f"{text[:40]}…")


def _definition(content: Mapping[str, Any], source: str) -> str:
    """The definition; empty if it is missing or blank."""
    value = content.get("Definition")
    if isinstance(value, list):
        value = value[0] if value else None
    definition = "" if value is None else _text(value, f"{source}: Definition")
    return definition if definition.strip() else ""


def _positive_examples(content: Mapping[str, Any], source: str) -> list[Demonstration]:
    examples = _list(content.get("Positive Examples", []), "Positive Examples", source)
    where = f"{source}: Positive Examples"
    for index, example in enumerate(examples):
        if not isinstance(example, Mapping):
            raise HartError(f"{where}[{index}] must be a JSON object, not {_kind(example)}")
    return [_demonstration(item, f"{where}[{index}]") for index, item in enumerate(examples)]


def _demonstration(item: DemonstrationLike, where: str) -> Demonstration:
    if isinstance(item, Demonstration):
        fields: Mapping[str, Any] = vars(item)
    elif isinstance(item, Mapping):
        fields = item
    elif not isinstance(item, str) and isinstance(item, Sequence) and len(item) in (2, 3):
        fields = dict(zip(("input", "output", "explanation"), item, strict=False))
    else:
        raise HartError(f"{where} must be (input, output) or (input, output, explanation)")
    for key in ("input", "output"):
        if key not in fields:
            raise HartError(f"{where}: {key} is missing")
    return Demonstration(
        input=_text(fields["input"], f"{where}: input"),
        output=_text(fields["output"], f"{where}: output"),
        explanation=_text(fields.get("explanation", ""), f"{where}: explanation"),
    )


def _instances(content: Mapping[str, Any], source: str) -> tuple[Instance, ...]:
    common = _list(content.get("Choices", []), "Choices", source)
    items = _list(content.get("Instances", []), "Instances", source)
    instances = tuple(_instance(item, f"{source}: Instances[{index}]", common) for index, item in enumerate(items))
    for index, instance in enumerate(instances):
        if bool(instance.choices) != bool(instances[0].choices):
            raise HartError(f"{source}: Instances[{index}]: choices must be given for all instances or for none")
    return instances


def check_choices(choices: Sequence[str], references: Sequence[str], where: str) -> None:
    """Raise `HartError` unless there are at least two choices and one of them is an accepted answer."""
    if len(choices) < 2:
        raise HartError(f"{where}: has {len(choices)} choices; at least two are needed to choose from")
    if not any(reference in choices for reference in references):
        raise HartError(f"{where}: the answer {references[0]!r} is not among the choices ({', '.join(choices)})")


def _instance(item: Any, where: str, common: list[Any]) -> Instance:
    if not isinstance(item, Mapping):
        raise HartError(f"{where} must be a JSON object, not {_kind(item)}")
    identifier = _text(item.get("id", ""), f"{where}: id")
    if identifier:
        where = f"{where} ({identifier})"
    for key in ("input", "output"):
        if key not in item:
            raise HartError(f"{where}: {key} is missing")
    outputs = item["output"]
    if not isinstance(outputs, list):
        raise HartError(f"{where}: output must be a list of texts, not {_kind(outputs)}")
    if not outputs:
        raise HartError(f"{where}: output is an empty list; give at least one reference answer")
    references = tuple(_text(output, f"{where}: output[{index}]") for index, output in enumerate(outputs))
    choices = item.get("choices", common)
    if not isinstance(choices, list):
        raise HartError(f"{where}: choices must be a list of texts, not {_kind(choices)}")
    choices = tuple(_text(choice, f"{where}: choices[{index}]") for index, choice in enumerate(choices))
    if choices or "choices" in item:
        check_choices(choices, references, where)
    return Instance(_text(item["input"], f"{where}: input"), references, identifier, choices)


def _list(value: Any, key: str, source: str) -> list[Any]:
    if not isinstance(value, list):
        raise HartError(f"{source}: {key} must be a list, not {_kind(value)}")
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise HartError(f"{where} must be a text, not {_kind(value)}")
    return value if value.isascii() else check_text(value, where)


def _texts(values: Any, where: str) -> tuple[str, ...]:
    """A sequence of texts as a tuple; a single text is refused, as it would be read letter by letter."""
    if isinstance(values, str | Mapping) or not isinstance(values, Iterable):
        raise HartError(f"{where} must be a list of texts, not {_kind(values)}")
    texts = tuple(values)
    for index, text in enumerate(texts):
        if not (isinstance(text, str) and text.isascii()):  # for speed; most texts are
            _text(text, f"{where}[{index}]")
    return texts


def _kind(value: Any) -> str:
    """The type of a value in the words of JSON, which users write."""
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "a text"
        case Mapping():
            return "an object"
        case list() | tuple():
            return "a list"
        case _:
            return f"a {type(value).__name__}"
