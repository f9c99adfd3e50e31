"""Scores of tasks under adaptations other than their own, which show whether the task was read, and by which parts."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from random import Random
from typing import Any

from hart.data.prompts import Cuts
from hart.data.tasks import Demonstration, Task
from hart.errors import HartError
from hart.evaluation.run import evaluate, metric_of
from hart.evaluation.systems import hart_system
from hart.evaluation.words import ANOTHER_TASK, OWN
from hart.model.adaptation import Adaptation
from hart.model.hart_model import HartModel

Adapt = Callable[[Task], Adaptation]

Bar = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""(description, number of steps) → context with a function that advances a progress bar by some steps."""


def check_comparable(model: HartModel, tasks: Sequence[Task], what: str) -> None:
    """Raise `HartError` if the model has no hypernetwork or there are fewer than two tasks; `what` needs both."""
    if model.hypernetwork is None:
        raise HartError(f"{model.name or 'model'}: has no hypernetwork, which {what} needs")
    if len(tasks) < 2:
        raise HartError(f"{what} compares tasks with each other; give at least two")


def other_adaptations(model: HartModel, tasks: Sequence[Task], seed: int) -> dict[str, Adapt]:
    """Kind → function from a task of `tasks` to its adaptation of that kind; the task's own is the first.

    "Another task" is the next one in the list. Kinds without effect are left out: shuffled demonstrations if no task
    shows two different ones, other demonstrations if no task has any that are not shown, and parameters or memory alone
    if the model does not have both. Adaptations are not cached: a pass of the hypernetwork is cheap compared with
    answering, and the adaptations of all tasks would take much memory.

    Args:
        model: a model with a hypernetwork.
        seed: seed of the shuffling and of the draw of other demonstrations.
    """
    form = model.input_format
    following = {id(task): tasks[(index + 1) % len(tasks)] for index, task in enumerate(tasks)}

    def own(task: Task) -> Adaptation:
        return model.adapt(form.shown(task), cuts=Cuts())

    def other(task: Task) -> Adaptation:
        return own(following[id(task)])

    kinds: dict[str, Adapt] = {OWN: own, ANOTHER_TASK: other}
    if any(len(set(form.shown(task).demonstrations)) > 1 for task in tasks):
        kinds["shuffled_demonstrations"] = lambda task: model.adapt(_shuffled(form.shown(task), seed), cuts=Cuts())
    if any(_unshown(model, task) for task in tasks):
        kinds["other_demonstrations"] = lambda task: model.adapt(_with_others(model, task, seed), cuts=Cuts())
    if model.gives_memory and model.hypernetwork is not None and model.hypernetwork.scheme is not None:
        kinds |= {
            "parameters_only": lambda task: replace(own(task), memory=None, memory_mask=None, kept=None),
            "memory_only": lambda task: replace(own(task), blocks={}, peft=[]),
            "another_tasks_parameters": lambda task: replace(own(task), blocks=other(task).blocks),
            "another_tasks_memory": lambda task: replace(other(task), blocks=own(task).blocks),
        }
    return kinds


def _unshown(model: HartModel, task: Task) -> list[Demonstration]:
    return list(task.demonstrations[len(model.input_format.shown(task).demonstrations) :])


def _with_others(model: HartModel, task: Task, seed: int) -> Task:
    """The task with its shown demonstrations replaced by random ones that it does not show, as far as there are any."""
    shown, unshown = model.input_format.shown(task), _unshown(model, task)
    drawn = Random(f"{seed} {task.name}").sample(unshown, min(len(unshown), len(shown.demonstrations)))
    kept = len(shown.demonstrations) - len(drawn)
    return replace(shown, demonstrations=(*drawn, *shown.demonstrations[:kept]))


def _shuffled(task: Task, seed: int) -> Task:
    """The task with its demonstrations in another order, if they are not all equal."""
    order = list(task.demonstrations)
    draw = Random(f"{seed} {task.name}")
    while len(set(order)) > 1 and tuple(order) == task.demonstrations:
        draw.shuffle(order)
    return replace(task, demonstrations=tuple(order))


def scores_under(
    model: HartModel,
    tasks: Sequence[Task],
    kinds: Mapping[str, Adapt],
    own: Mapping[str, float] | None,
    bar: Bar | None,
    what: str,
    options: Mapping[str, Any],
) -> dict[str, dict[str, float]]:
    """Kind → mean scores over all tasks, whose queries are answered with adaptations of that kind.

    Args:
        kinds: kind → function from a task to its adaptation.
        own: scores under the tasks' own adaptations, if they are already known.
        what: description for the progress bar.
        options: options of `hart_system`.
    """
    found = {OWN: dict(own)} if own is not None else {}
    todo = [name for name in kinds if name not in found]
    with (bar or _no_bar)(what, len(todo) * len(tasks)) as advance:
        for name in todo:
            system = hart_system(model, name=name, adapt=kinds[name], **options)
            found[name] = evaluate(system, tasks, metric_of(tasks), on_task=lambda _: advance(1)).summary
    return found


def _no_bar(what: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
    return nullcontext(lambda done: None)
