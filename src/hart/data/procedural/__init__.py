"""The bundled procedural collection: generated tasks in the format of Super-NaturalInstructions.

A task is a selector followed by a finisher ("keep only the animals, then write them in reverse order"). Tasks
of the test and validation splits are combinations that do not occur in training; each of their two primitives, in
the wording of their definition, does. Solving such a task from its definition and demonstrations is therefore
generalisation to a new task, not recall.
"""

from hart.data.procedural.collection import (
    SPLITS,
    Combination,
    combinations,
    load_procedural,
    write_collection,
)

__all__ = ["SPLITS", "Combination", "combinations", "load_procedural", "write_collection"]
