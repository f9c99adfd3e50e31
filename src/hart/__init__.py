"""Adapt a frozen language model to an unseen task in one forward pass of a hypernetwork."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hart.data.tasks import Demonstration, Instance, Task
    from hart.errors import HartError
    from hart.model.adaptation import Adaptation
    from hart.model.hart_model import HartModel
    from hart.serving.client import AsyncClient, Client

__version__ = "0.1.0"
__all__ = ["Adaptation", "AsyncClient", "Client", "Demonstration", "HartError", "HartModel", "Instance", "Task"]

# The public names are imported when they are first used: torch takes seconds, `hart --help` should not.
_HOMES = {
    "Adaptation": "hart.model.adaptation",
    "AsyncClient": "hart.serving.client",
    "Client": "hart.serving.client",
    "Demonstration": "hart.data.tasks",
    "HartError": "hart.errors",
    "HartModel": "hart.model.hart_model",
    "Instance": "hart.data.tasks",
    "Task": "hart.data.tasks",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """All names, including public names that were not imported yet."""
    return sorted({*globals(), *__all__})
