"""Extensions: schemes and PEFT kinds of other installed packages.

A package names its module in its metadata, under the entry point group `hart.extensions`; the module registers its
classes when it is imported. Only installed packages are imported, never code in the folder of a model.
"""

from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import Any, TypeVar

from hart.errors import HartError

GROUP = "hart.extensions"
"""Entry point group of packages that extend hart."""

T = TypeVar("T")


@cache
def load_extensions() -> None:
    """Import the modules of all extensions, once per process.

    Raises:
        HartError: an extension cannot be imported.
    """
    for point in entry_points(group=GROUP):
        try:
            point.load()
        except Exception as error:  # code of other packages may raise anything
            package = point.name if point.dist is None else point.dist.name
            raise HartError(
                f"{package}: its extension {point.value} cannot be imported ({type(error).__name__}: {error}); "
                "repair or uninstall the package"
            ) from error


def find(registry: Mapping[str, T], name: Any) -> T | None:
    """The entry `name` of a registry, or None; extensions are imported if the entry is missing.

    Raises:
        HartError: as in `load_extensions`.
    """
    if not isinstance(name, str):
        return None
    if name not in registry:
        load_extensions()
    return registry.get(name)
