"""Counts of instances whose scores say less than they seem to, as results.json and a warning give them."""

from collections.abc import Mapping
from typing import Any


def count_marks(kind: str, instances_of: Mapping[str, int], total: int) -> dict[str, Any]:
    """`kind` → its counts; empty if there are none.

    Args:
        instances_of: task → how many of its instances are meant.
        total: number of all instances.
    """
    names = [name for name, count in instances_of.items() if count]
    if not names:
        return {}
    counts = {"instances": sum(instances_of.values()), "of": total, "tasks": len(names), "of_tasks": len(instances_of)}
    return {kind: {**counts, "first": names[0]}}


def counted(mark: Mapping[str, Any]) -> str:
    """The beginning of a sentence about what `count_marks` has counted."""
    return "{instances} of {of} instances (in {tasks} of {of_tasks} tasks, first: {first})".format(**mark)
