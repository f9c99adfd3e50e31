"""Sections of a configuration: strict pydantic models, read from YAML and the command line.

Unknown names and wrong values are refused with one line that names the file or option, and `section.field`.
"""

import copy
import difflib
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from hart.errors import HartError
from hart.runtime.files.reading import half_character, read_text

LIMIT = 10**18  # small enough as a size or seed for all libraries
PositiveInt = Annotated[int, Field(ge=1, lt=LIMIT)]
NaturalInt = Annotated[int, Field(ge=0, lt=LIMIT)]
PositiveFloat = Annotated[float, Field(gt=0, lt=LIMIT)]
NaturalFloat = Annotated[float, Field(ge=0, lt=LIMIT)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class FieldError(HartError):
    """A wrong value of a field; ``field`` is its dotted name."""

    def __init__(self, field: str, problem: str, prefix: str = "") -> None:
        super().__init__(f"{prefix}{field}: {problem}")
        self.field = field
        self.problem = problem

    def within(self, prefix: str) -> "FieldError":
        """The same error with the source of the value in front."""
        return FieldError(self.field, self.problem, prefix)


class Section(BaseModel):
    """Fields whose types, ranges and rules are checked when an instance is made.

    Raises:
        FieldError: a `HartError` that names ``section.field``.
    """

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
    section: ClassVar[str] = ""

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise self._told(error.errors(include_url=False)[0]) from None

    @model_validator(mode="before")
    @classmethod
    def _whole_characters(cls, values: dict[str, Any]) -> dict[str, Any]:
        if half := half_character(values):
            cls._refuse(half, "contains half of a character or bytes that are not UTF-8; write it in whole characters")
        return values

    @classmethod
    def _refuse(cls, field: str, problem: str) -> None:
        raise FieldError(f"{cls.section}.{field}".removeprefix("."), problem)

    @classmethod
    def _told(cls, error: ErrorDetails) -> FieldError:
        """The `FieldError` for an error of pydantic."""
        where, limits = [str(each) for each in (cls.section, *error["loc"]) if each != ""], error.get("ctx", {})
        if where[-1] == "[key]":
            where, problem = where[:-2], "keys must be text"
        elif error["type"] == "extra_forbidden":
            return FieldError(".".join(where), f"no such field; choose one of {', '.join(cls.model_fields)}")
        elif error["type"] == "literal_error":
            problem = f"must be one of {limits['expected'].replace(chr(39), '').replace(' or ', ', ')}"
        elif error["type"] in _BOUNDS:
            words, limit = _BOUNDS[error["type"]]
            problem = f"must be {words} {limits[limit]:g}"
        else:
            problem = f"must be {_NAMES.get(error['type'], error['msg'])}"
        return FieldError(".".join(where), f"{problem}, not {shortened(error['input'])}")

    def changed(self, **updates: Any) -> Self:
        """A copy with other values, checked by the same rules; a mapping updates the fields of a nested section."""
        for name, value in updates.items():
            section = getattr(self, name, None)
            if isinstance(section, Section) and isinstance(value, Mapping):
                updates[name] = section.changed(**value)
        return type(self)(**dict(self) | updates)

    def to_dict(self) -> dict[str, Any]:
        """The values as nested plain Python objects, deeply copied."""
        return self.model_dump()


_BOUNDS = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("greater than", "gt"),
    "less_than": ("less than", "lt"),
}
_NAMES = {
    "bool_type": "true or false",
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "list_type": "a list",
    "dict_type": "a mapping",
}


def shortened(value: Any) -> str:
    """A value for an error message, shortened."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}…"


# --- YAML ---------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """Loader of hand-written YAML without objects.

    Unlike YAML 1.1, which PyYAML implements, it reads 5e-5 as a number and refuses duplicate keys. It also refuses YAML
    that no configuration needs and that would break the reader: repeated or recursive collections, deep nesting,
    numbers of thousands of digits.
    """

    DEEPEST = 50
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        mark, repeats = self.peek_event().start_mark, self.check_event(yaml.AliasEvent)
        self.depth += 1
        if self.depth > self.DEEPEST:
            raise yaml.composer.ComposerError(None, None, "nested too deeply", mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        if repeats and not isinstance(node, yaml.ScalarNode):
            raise yaml.composer.ComposerError(
                None, None, "an alias of a list or mapping is not supported; write it out", mark
            )
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
            if isinstance(value, int):
                float(value)  # larger numbers cannot be printed either
        except (ValueError, OverflowError, LookupError, AttributeError):  # PyYAML's, too, if a value belies its tag
            kind, text = node.tag.rpartition(":")[2], shortened(node.value)
            raise yaml.constructor.ConstructorError(None, None, f"no {kind}: {text}", node.start_mark) from None
        return value

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: list[Any] = []
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key} is given twice", key_node.start_mark)
            seen.append(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def _parse(text: str, source: str) -> Any:
    try:
        # _Loader is a SafeLoader: it builds plain values only.
        return yaml.load(text, Loader=_Loader)  # noqa: S506
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise HartError(f"{source} not valid YAML{line}: {error.problem}") from None
    except yaml.reader.ReaderError as error:
        raise HartError(f"{source} not valid YAML, character {error.position + 1}: {error.reason}") from None


def read_yaml(path: Path, what: str = "configuration file") -> Any:
    """The content of a YAML file.

    Raises:
        HartError: the file cannot be read, or is not valid YAML; duplicate keys are invalid.
    """
    return _parse(read_text(path, f"a {what}", missing=f"{path}: no such {what}"), f"{path}:")


Sections = Mapping[str, type[Section]]


def read_sections(path: Path, sections: Sections) -> dict[str, dict[str, Any]]:
    """The sections of a YAML file, with checked names and unchecked values; absent sections are empty.

    Raises:
        HartError: the file cannot be read, is not YAML, or holds an unknown section or field.
    """
    content = read_yaml(path)
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise HartError(f"{path}: must hold the sections {', '.join(sections)}")
    for section, values in content.items():
        if section not in sections:
            raise HartError(f"{path}: unknown section {section}; {_suggest(str(section), sections)}")
        if values is not None and not isinstance(values, dict):
            raise HartError(f"{path}: {section} must be a mapping of fields, not {shortened(values)}")
        for name in values or {}:
            _check_field(section, name, sections, source=f"{path}: ")
    return {name: dict(content.get(name) or {}) for name in sections}


# --- names --------------------------------------------------------------------------------------


def _check_field(section: str, name: Any, sections: Sections, dashes: str = "", *, source: str = "") -> None:
    """Raise `HartError` with the nearest valid name unless ``section`` has a field ``name``.

    ``dashes`` is "--" if the name was an option; ``source`` begins the message.
    """
    if name not in sections[section].model_fields:
        wrong = f"{section}.{name}"
        raise HartError(f"{source}unknown field {dashes}{wrong}; {_suggest(wrong, sections, dashes)}")


def _suggest(wrong: str, sections: Sections, dashes: str = "") -> str:
    """A hint for an error message: the closest known name, or the names to choose from."""
    section, dot, name = wrong.partition(".")
    fields = {each: list(model.model_fields) for each, model in sections.items()}
    full = [f"{each}.{field}" for each in fields for field in fields[each]]
    # A correct field name without a section, or with a wrong one, is closer than a misspelled name.
    own = [each for each in full if each.split(".")[1] == (name or section)]
    if wrong in fields:
        return f"name one of its fields, e.g. {dashes}{wrong}.{fields[wrong][0]}"
    if dot and section in fields:
        # Compared without the section, which would make all its fields look similar.
        near = own or [f"{section}.{each}" for each in difflib.get_close_matches(name, fields[section], n=1)]
    else:
        near = own or difflib.get_close_matches(wrong, [*fields, *full], n=1)
    if near:
        return f"did you mean {dashes}{near[0]}?"
    return f"choose one of {', '.join(fields.get(section, fields))}"


# --- command line -------------------------------------------------------------------------------


def apply_overrides(raw: dict[str, dict[str, Any]], words: Sequence[str], sections: Sections) -> set[str]:
    """Set the values of ``--section.field value`` and ``--section.field=value`` in ``raw``, in order.

    Returns:
        The dotted names of the fields that were set.

    Raises:
        HartError: a word is not an option, or lacks its value, or names an unknown field.
    """
    touched = set()
    for option, text in _options(words):
        section, _, rest = option.removeprefix("--").partition(".")
        name, *inner = rest.split(".")
        if section not in sections or not rest:
            wrong = option.removeprefix("--")
            raise HartError(f"unknown option {option}; {_suggest(wrong, sections, '--')}")
        _check_field(section, name, sections, "--")
        values, field = raw[section], sections[section].model_fields[name]
        if inner:
            # If the file does not set the field, the other entries of its default are kept.
            values.setdefault(name, copy.deepcopy(field.default))
            _set(values[name], inner, _value(text, Any, option), option)
        else:
            values[name] = _value(text, field.annotation, option)
        touched.add(f"{section}.{name}")
    return touched


def _options(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    waiting = iter(words)
    for word in waiting:
        if not word.startswith("--"):
            raise HartError(f"unexpected argument {word!r}; options are --section.field value")
        option, equals, text = word.partition("=")
        if not equals:
            text = next(waiting, "--")
            if text.startswith("--"):
                raise HartError(f"{option}: the value is missing")
        yield option, text


def _value(text: str, hint: Any, option: str) -> Any:
    """The value of ``text``, read as YAML; text fields keep it unchanged, as a folder may be called 2024 or no."""
    choices = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if type(None) in choices and text in ("", "null", "None"):
        return None
    if any(choice is str or get_origin(choice) is Literal for choice in choices):
        return text
    return _parse(text, f"{option}: {shortened(text)} is")


def _set(container: Any, path: Sequence[str], value: Any, option: str) -> None:
    *outer, last = path
    for key in outer:
        container = container[_key(container, key, option)]
    container[last if isinstance(container, dict) else _key(container, last, option)] = value


def _key(container: Any, key: str, option: str) -> Any:
    """``key`` as the key or index of an existing entry of ``container``."""
    if isinstance(container, dict) and key in container:
        return key
    if isinstance(container, list) and key.isdecimal() and int(key) < len(container):
        return int(key)
    raise HartError(f"{option}: there is no entry {key!r}")
