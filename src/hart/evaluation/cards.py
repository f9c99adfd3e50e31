"""Scores of an evaluation in the card of the evaluated model."""

from pathlib import Path

from hart.evaluation.base import Results
from hart.model.card import put_scores


def note_scores(model: Path, results: Results, what: str) -> bool:
    """Write the mean scores into the card of a saved model, replacing earlier ones.

    Returns whether the card has a place for scores.

    Args:
        model: folder of the model.
        what: description of the tasks.

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
