"""The answer to a query for which choices were given. It needs no torch, so that a client has it at once."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Classification:
    """The answer to one query.

    Attributes:
        choice: the most probable one, of equal ones the first.
        probabilities: of each choice, in their order; they add up to 1.
    """

    choice: str
    probabilities: dict[str, float]
