"""The answer to a query with given choices, in a module without torch so that clients import it quickly."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Classification:
    """The answer to one query with given choices.

    Attributes:
        choice: the most probable choice, the first of several equally probable ones.
        probabilities: choice → its probability, in the order of the choices; they add up to 1.
    """

    choice: str
    probabilities: dict[str, float]
