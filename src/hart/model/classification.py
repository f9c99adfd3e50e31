"""The answer to a query with given choices, in a module without torch so that clients import it quickly."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Classification:
    """The choice for one query, with the probability of every choice.

    Attributes:
        choice: the most probable choice; the first one at a tie.
        probabilities: choice → probability, in the order of the choices; they sum to 1.
    """

    choice: str
    probabilities: dict[str, float]
