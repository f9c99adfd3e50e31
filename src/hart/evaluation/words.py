"""Names of scores and diagnostics in files and tables, in a module without torch for code that only reads results."""

from collections.abc import Mapping
from typing import Any

METRICS = {"procedural": ("exact_match", "rouge_l"), "p3": ("accuracy",)}
"""Collection → its scores, the main one first; all other collections have ROUGE-L, then exact match."""
METRIC_NAMES = {"exact_match": "exact match", "rouge_l": "ROUGE-L", "accuracy": "accuracy"}


def metrics_of(collection: str, found: Mapping[str, Any] | None = None) -> tuple[str, ...]:
    """Names of a collection's scores in results.json, the main one first.

    Args:
        found: results of the collection's tasks. Tasks whose instances all have choices have an accuracy alone, in any
            collection.
    """
    return METRICS["p3"] if "accuracy" in (found or {}) else METRICS.get(collection, ("rouge_l", "exact_match"))


OWN, ANOTHER_TASK = "own", "another_task"

IN_WORDS = {
    OWN: "own",
    ANOTHER_TASK: "another task's",
    "shuffled_demonstrations": "own demonstrations in another order",
    "other_demonstrations": "other demonstrations of the task",
    "parameters_only": "parameters only",
    "memory_only": "memory only",
    "another_tasks_parameters": "own memory, another task's parameters",
    "another_tasks_memory": "own parameters, another task's memory",
}
"""Kind of adaptation (`hart.evaluation.other_adaptations`) → its name in tables."""

CAUSES = {
    "stacks": "stacks",
    "layers": "layers",
    "tasks": "tasks, alike in all layers",
    "tasks_by_layer": "tasks, another in each layer",
    "demonstrations": "demonstrations of a task",
}
"""Share of `hart.evaluation.states.variance_shares` → its name in tables."""

TOLD = {
    OWN: "the task as it is",
    "other_words": "definition in other words",
    "no_definition": "without definition",
    "no_demonstrations": "without demonstrations",
    "one_wrong_output": "one demonstration has another one's output",
    "all_wrong_outputs": "all demonstrations have another one's output",
    "foreign_demonstration": "one demonstration is another task's",
}
"""Variant of a task (`hart.evaluation.robustness`) → its name in tables."""
