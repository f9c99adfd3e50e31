"""Reading values that a person wrote, and refusing with one clear line what is not understood.

The machinery under `hart.training.config`: strict YAML, command-line overrides, and checks of types and
ranges. It knows nothing of what the fields mean.
"""

import copy
import difflib
import math
import re
import types
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import yaml

from hart.errors import HartError

Fields = Mapping[str, Mapping[str, Any]]
"""Section name -> field name -> type."""


class FieldError(HartError):
    """A value that a field cannot take. ``field`` is its dotted name."""

    def __init__(self, field: str, problem: str, prefix: str = "") -> None:
        super().__init__(f"{prefix}{field}: {problem}")
        self.field = field
        self.problem = problem

    def within(self, prefix: str) -> "FieldError":
        """The same error, saying where the value came from."""
        return FieldError(self.field, self.problem, prefix)


# --- types and ranges ---------------------------------------------------------------------------


def typed(value: Any, hint: Any, where: str) -> Any:
    """``value`` if it is of type ``hint``; an int where a float is asked for becomes one.

    Knows the types that configurations use: bool, int, float, str, Literal, Any, X | None, list
    and dict of these.

    Raises:
        FieldError: it is not.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (hint,) = (argument for argument in arguments if argument is not type(None))
        return typed(value, hint, where)
    if origin is Literal:
        if value not in arguments:
            choices = ", ".join(map(str, arguments))
            raise FieldError(where, f"must be one of {choices}, not {value!r}")
        return value
    if origin is list and isinstance(value, list):
        return [typed(item, arguments[0], f"{where}.{i}") for i, item in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise FieldError(where, f"keys must be text, not {key!r}")
        return {key: typed(item, arguments[1], f"{where}.{key}") for key, item in value.items()}
    # bool is a subclass of int, but `max_steps: true` is a mistake.
    if hint is float and type(value) in (int, float):
        if not math.isfinite(value):
            raise FieldError(where, f"must be a finite number, not {value}")
        return float(value)
    if type(value) is not (origin or hint):
        raise FieldError(where, f"must be {_NAMES[origin or hint]}, not {value!r}")
    return value


_NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "a mapping",
}


def in_range(value: float, where: str, *, least: float | None, above: float | None, below: float | None) -> None:
    """Check least <= value, above < value and value < below; None is no bound.

    Raises:
        FieldError: it is out of range.
    """
    if least is not None and value < least:
        raise FieldError(where, f"must be at least {least}, not {value}")
    if above is not None and value <= above:
        raise FieldError(where, f"must be greater than {above}, not {value}")
    if below is not None and value >= below:
        raise FieldError(where, f"must be less than {below}, not {value}")


# --- YAML ---------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads 5e-5 as a number and refuses a key given twice.

    YAML 1.1, which PyYAML implements, wants a dot in a float, and lets the last of two keys win.
    """

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


def _parse(text: str) -> Any:
    # _Loader is a SafeLoader: it builds plain values only.
    return yaml.load(text, Loader=_Loader)  # noqa: S506


def read_sections(path: Path, fields: Fields) -> dict[str, dict[str, Any]]:
    """The sections of a YAML file, each name checked, no value checked; absent ones are empty.

    Raises:
        HartError: the file cannot be read, is not YAML, or holds an unknown section or field.
    """
    try:
        content = _parse(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise HartError(f"{path}: no such configuration file") from None
    except UnicodeDecodeError:
        raise HartError(f"{path}: not a configuration file, the text is not UTF-8") from None
    except OSError as error:
        raise HartError(f"{path}: cannot be read ({error.strerror})") from None
    except yaml.YAMLError as error:
        raise HartError(f"{path}: not valid YAML{_explain(error)}") from None
    sections = {} if content is None else content
    if not isinstance(sections, dict):
        raise HartError(f"{path}: must hold the sections {', '.join(fields)}")
    result: dict[str, dict[str, Any]] = {name: {} for name in fields}
    for section, values in sections.items():
        if section not in fields:
            raise HartError(f"{path}: unknown section {section}; {_suggest(str(section), fields)}")
        if values is not None and not isinstance(values, dict):
            raise HartError(f"{path}: {section} must be a mapping of fields, not {values!r}")
        for name in values or {}:
            check_field(section, name, fields, source=f"{path}: ")
        result[section] = dict(values or {})
    return result


def _explain(error: yaml.YAMLError) -> str:
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return ""
    return f", line {error.problem_mark.line + 1}: {error.problem}"


# --- names --------------------------------------------------------------------------------------


def check_field(section: str, name: Any, fields: Fields, dashes: str = "", *, source: str = "") -> None:
    """Raise `HartError` with the nearest valid name unless ``section`` has a field ``name``.

    ``dashes`` is "--" where the name was an option; ``source`` begins the message.
    """
    if name not in fields[section]:
        wrong = f"{section}.{name}"
        raise HartError(f"{source}unknown field {dashes}{wrong}; {_suggest(wrong, fields, dashes)}")


def _suggest(wrong: str, fields: Fields, dashes: str = "") -> str:
    """The name that was probably meant, else what there is to choose from."""
    section, dot, name = wrong.partition(".")
    full = [f"{each}.{field}" for each in fields for field in fields[each]]
    # A right field without its section, or in the wrong one, is a nearer miss than a misspelling.
    own = [each for each in full if each.split(".")[1] == (name or section)]
    if wrong in fields:
        return f"name one of its fields, e.g. {dashes}{wrong}.{next(iter(fields[wrong]))}"
    if dot and section in fields:
        # Compared without the section, which would make every field of it look alike.
        close = difflib.get_close_matches(name, list(fields[section]), n=1)
        near = own or [f"{section}.{each}" for each in close]
    else:
        near = own or difflib.get_close_matches(wrong, [*fields, *full], n=1)
    if near:
        return f"did you mean {dashes}{near[0]}?"
    return f"choose one of {', '.join(fields[section] if section in fields else fields)}"


# --- command line -------------------------------------------------------------------------------


def apply_overrides(
    raw: dict[str, dict[str, Any]],
    words: Sequence[str],
    fields: Fields,
    defaults: Mapping[str, Mapping[str, Any]],
) -> set[str]:
    """Put ``--section.field value`` and ``--section.field=value`` into ``raw``, in order.

    Returns:
        Dotted names of the fields that were set.

    Raises:
        HartError: a word is no option or lacks its value, or names something unknown.
    """
    touched = set()
    for option, text in _options(words):
        section, _, rest = option.removeprefix("--").partition(".")
        name, *inner = rest.split(".")
        if section not in fields or not rest:
            wrong = option.removeprefix("--")
            raise HartError(f"unknown option {option}; {_suggest(wrong, fields, '--')}")
        check_field(section, name, fields, "--")
        values = raw[section]
        if inner:
            # The file may leave the field at its default, whose other entries are to be kept.
            values.setdefault(name, copy.deepcopy(defaults[section][name]))
            _set(values[name], inner, _value(text, Any, option), option)
        else:
            values[name] = _value(text, fields[section][name], option)
        touched.add(f"{section}.{name}")
    return touched


def _options(words: Iterable[str]) -> Iterable[tuple[str, str]]:
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
    """What ``text`` stands for. Text fields keep it as it is: a folder may be called 2024 or no."""
    choices = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if type(None) in choices and text in ("", "null", "None"):
        return None
    if any(choice is str or get_origin(choice) is Literal for choice in choices):
        return text
    try:
        return _parse(text)
    except yaml.YAMLError as error:
        raise HartError(f"{option}: {text!r} is not valid YAML{_explain(error)}") from None


def _set(container: Any, path: Sequence[str], value: Any, option: str) -> None:
    *outer, last = path
    for key in outer:
        container = container[_key(container, key, option)]
    if isinstance(container, dict):
        container[last] = value
    else:
        container[_key(container, last, option)] = value


def _key(container: Any, key: str, option: str) -> Any:
    """``key`` as the index of an entry that ``container`` has."""
    if isinstance(container, dict) and key in container:
        return key
    if isinstance(container, list) and key.isdecimal() and int(key) < len(container):
        return int(key)
    raise HartError(f"{option}: there is no entry {key!r}")
