"""Adapt a frozen language model to an unseen task in one forward pass of a hypernetwork."""

from hart.adaptation import Adaptation
from hart.data.tasks import Demonstration, Instance, Task
from hart.errors import HartError
from hart.system import HartModel

__version__ = "0.1.0"
__all__ = ["Adaptation", "Demonstration", "HartError", "HartModel", "Instance", "Task"]
