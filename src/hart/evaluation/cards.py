"""Scores of an evaluation, put into the card of the model that was evaluated."""

from pathlib import Path

from hart.evaluation.base import Results
from hart.model.card import put_scores


def note_scores(model: Path, results: Results, what: str) -> bool:
    """Put the means into the card of a saved model, in the place of earlier ones; whether it has a place for them.

    Args:
        model: folder of the model.
        what: the tasks, in words.

    Raises:
        HartError: the card cannot be written.
    """
    instances = sum(len(task.instances) for task in results.tasks)
    names = " | ".join(name.replace("_", " ") for name in results.summary)
    scores = " | ".join(f"{value:.2f}" for value in results.summary.values())
    lines = (
        f"| tasks | instances | {names} |",
        f"|---|---|{'---|' * len(results.summary)}",
        f"| {what} | {instances} | {scores} |",
    )
    return put_scores(model, "\n".join(lines))
