"""A section of a configuration: a frozen dataclass whose types and ranges are checked when it is made."""

import dataclasses
from dataclasses import field
from typing import Any, ClassVar, get_type_hints

from hart.runtime import strict


def number(default: Any, *, least: float | None = None, above: float | None = None, below: float = 1e18) -> Any:
    """A numeric field and its range: least <= value or above < value, and value < below."""
    return field(default=default, metadata={"least": least, "above": above, "below": below})


class Section:
    """Checks types and ranges when an instance is made.

    Raises:
        hart.runtime.strict.FieldError: a `HartError` that names ``section.field``.
    """

    section: ClassVar[str]

    def __post_init__(self) -> None:
        hints = hints_of(type(self))
        for each in dataclasses.fields(self):  # type: ignore[arg-type]
            where = f"{self.section}.{each.name}"
            value = strict.typed(getattr(self, each.name), hints[each.name], where)
            if value is not None and each.metadata:
                strict.in_range(value, where, **each.metadata)
            # An int given for a float is stored as a float.
            object.__setattr__(self, each.name, value)
        self._check()

    def _check(self) -> None:
        """Rules that one field's type and range cannot say."""

    def _refuse(self, field_name: str, problem: str) -> None:
        raise strict.FieldError(f"{self.section}.{field_name}", problem)


def hints_of(section: type[Section]) -> dict[str, Any]:
    """Field name -> type."""
    hints = get_type_hints(section)
    return {each.name: hints[each.name] for each in dataclasses.fields(section)}  # type: ignore[arg-type]
