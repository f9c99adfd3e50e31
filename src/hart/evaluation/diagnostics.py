"""Diagnostics: what the hypernetwork's layer states depend on, and what its parts are worth.

Two failures leave the loss falling. States of consecutive layers can become one (a recursion in its fixed point), and
what is generated can hardly depend on the task. The measures are of `hart.evaluation.states`; the scores are of the
same tasks under other adaptations: another task's must score worse, or the task was not read.
docs/diagnostics.md says how to read them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from hart.data.prompts import Cuts
from hart.data.tasks import Demonstration, Task
from hart.errors import HartError
from hart.evaluation.base import Metric
from hart.evaluation.run import evaluate, metric_of
from hart.evaluation.states import (
    collapses,
    consecutive_cosines,
    effective_rank,
    one_state,
    pairwise_cosine,
    stack_cosines,
    upper_half,
    variance_shares,
)
from hart.evaluation.systems import hart_system
from hart.model.adaptation import Adaptation
from hart.model.hart_model import HartModel

SETS = 4
"""Demonstration sets per task whose states are compared."""

PASS = 8
"""Tasks that the hypernetwork reads together."""


@dataclass(frozen=True)
class Diagnostics:
    """What was found.

    Attributes:
        scheme: the generation scheme.
        one_state: whether one state serves all layers by construction (the shared scheme).
        layer_cosines: stack → cosine of the states of layers l and l + 1.
        layer_cosine: mean of them over the upper half of layers; None without two layers.
        stack_cosines: per layer, between the states of the two stacks.
        variance: share of the states' variance between layers, tasks and demonstration sets.
        effective_rank: of all states.
        parameter_cosines: block → mean cosine between what two tasks get; `all`: of everything generated.
        scores: adaptation → means over the tasks; the first is the task's own.
    """

    scheme: str
    one_state: bool
    layer_cosines: dict[str, list[float]]
    layer_cosine: float | None
    stack_cosines: list[float]
    variance: dict[str, float]
    effective_rank: float | None
    parameter_cosines: dict[str, float | None]
    scores: dict[str, dict[str, float]]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return dict(vars(self))

    @property
    def warning(self) -> str | None:
        """One line where something has collapsed; None where nothing has."""
        found = collapses(None if self.one_state else self.layer_cosine, self.variance.get("tasks"))
        own, other = self.scores.get(OWN), self.scores.get(OTHER)
        if own is not None and other is not None:
            name = next(iter(own))
            if other[name] >= own[name]:
                found.append(f"another task's adaptation scores as well as the own ({name} {other[name]:.1f})")
        return "; ".join(found) or None

    def tables(self) -> list[Table]:
        """Measures and scores."""
        measures = Table("measure", "value", title=f"layer states, scheme {self.scheme}", min_width=80)
        cosine = "–" if self.layer_cosine is None else f"{self.layer_cosine:.3f}"
        note = " (one state for all layers, by construction)" if self.one_state else ""
        measures.add_row("cosine of consecutive layers, upper half", cosine + note)
        for stack, values in self.layer_cosines.items():
            measures.add_row(f"  by layer, {stack}", " ".join(f"{value:.2f}" for value in values))
        if self.stack_cosines:
            measures.add_row("cosine of the two stacks, by layer", " ".join(f"{v:.2f}" for v in self.stack_cosines))
        for name, share in self.variance.items():
            measures.add_row(f"share of variance between {name}", f"{share:.3f}")
        if self.effective_rank is not None:
            measures.add_row("effective rank", f"{self.effective_rank:.1f}")
        for block, value in self.parameter_cosines.items():
            measures.add_row(f"cosine of {block} parameters over tasks", "–" if value is None else f"{value:.3f}")
        names = list(next(iter(self.scores.values()), {}))
        scores = Table("adaptation", *names, title="the same tasks under other adaptations")
        for name, means in self.scores.items():
            scores.add_row(name, *(f"{means[each]:.2f}" for each in names))
        return [measures, scores]


OWN, OTHER = "own", "another task's"


def diagnose(
    model: HartModel, tasks: Sequence[Task], *, sets: int = SETS, seed: int = 0, scores: bool = True, **options: Any
) -> Diagnostics:
    """Measure the layer states on some tasks, and score the tasks under other adaptations than their own.

    Args:
        model: with a hypernetwork.
        tasks: with instances; at least two.
        sets: demonstration sets per task. The first is the one that is shown; the others are drawn from further
            demonstrations and, where these are too few, instances.
        seed: of these draws.
        scores: whether to answer the tasks too, which takes most of the time.
        options: of the systems (`hart_system`), e.g. `batch_size`.

    Raises:
        HartError: a system without hypernetwork, or fewer than two tasks.
    """
    network = model.hypernetwork
    if network is None:
        raise HartError(f"{model.name or 'model'}: has no hypernetwork, so there are no layer states to diagnose")
    if len(tasks) < 2:
        raise HartError("diagnostics compare tasks with each other; give at least two")
    draws = [_sets(model, task, sets, seed) for task in tasks]
    states, blocks = _read(model, [each for of_task in draws for each in of_task])
    layers = model.main.shape.depths
    measured: dict[str, Any] = {
        "layer_cosines": {}, "layer_cosine": None, "stack_cosines": [], "variance": {}, "effective_rank": None,
    }  # fmt: skip
    if states.numel():
        cosines = consecutive_cosines(states, layers)
        measured = {
            "layer_cosines": dict(zip(model.main.shape.stacks, cosines, strict=True)),
            "layer_cosine": upper_half(cosines),
            "stack_cosines": stack_cosines(states, layers),
            "variance": variance_shares(states.unflatten(0, (len(tasks), sets)), layers),
            "effective_rank": effective_rank(states, layers),
        }
    shown = {name: values[::sets] for name, values in blocks.items() if values.numel()}
    parameters = {name: pairwise_cosine(values) for name, values in shown.items()}
    if shown:
        parameters["all"] = pairwise_cosine(torch.cat([values.flatten(1) for values in shown.values()], dim=1))
    return Diagnostics(
        scheme="none" if network.scheme is None else network.scheme.name,
        one_state=one_state(states),
        **measured,
        parameter_cosines=parameters,
        scores=_scores(model, tasks, seed, options) if scores else {},
    )


def _sets(model: HartModel, task: Task, sets: int, seed: int) -> list[Task]:
    """The task under several demonstration sets, the shown one first."""
    shown = model.input_format.shown(task)
    draw = Random(f"{seed} {task.name}")
    pool = [*task.demonstrations, *(Demonstration(i.input, i.references[0]) for i in task.instances if i.input.strip())]
    count = min(len(shown.demonstrations), len(pool))
    return [shown, *(replace(shown, demonstrations=tuple(draw.sample(pool, count))) for _ in range(sets - 1))]


@torch.no_grad()
def _read(model: HartModel, tasks: Sequence[Task]) -> tuple[Tensor, dict[str, Tensor]]:
    """Layer states and generated blocks of each task, on the CPU; a state that serves all layers stays a view."""
    made = [model.read(tasks[start : start + PASS], Cuts()) for start in range(0, len(tasks), PASS)]
    one = all(one_state(each.states) for each in made)
    states = torch.cat([each.states[:, :, :1] if one else each.states for each in made]).float().cpu()
    if one:
        states = states.expand(-1, -1, made[0].states.shape[2], -1, -1)
    return states, {name: torch.cat([each.blocks[name] for each in made]).float().cpu() for name in made[0].blocks}


def _scores(model: HartModel, tasks: Sequence[Task], seed: int, options: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The means of all tasks under each kind of adaptation that the model has."""
    form, metric = model.input_format, metric_of(tasks)
    number = {id(task): index for index, task in enumerate(tasks)}
    own = [model.adapt(form.shown(task), cuts=Cuts()) for task in tasks]

    def others(task: Task) -> Adaptation:
        return own[(number[id(task)] + 1) % len(own)]

    kinds: dict[str, Callable[[Task], Adaptation]] = {
        OWN: lambda task: own[number[id(task)]],
        OTHER: others,
        "own demonstrations, in another order": lambda task: model.adapt(
            _shuffled(form.shown(task), seed), cuts=Cuts()
        ),
    }
    if own[0].blocks and own[0].memory is not None:
        kinds |= {
            "parameters alone": lambda task: replace(kinds[OWN](task), memory=None, memory_mask=None, kept=None),
            "memory alone": lambda task: replace(kinds[OWN](task), blocks={}, peft=[]),
            "own memory, another task's parameters": lambda task: replace(kinds[OWN](task), blocks=others(task).blocks),
            "own parameters, another task's memory": lambda task: replace(others(task), blocks=kinds[OWN](task).blocks),
        }
    return {name: _means(model, tasks, metric, name, adapt, options) for name, adapt in kinds.items()}


def _means(
    model: HartModel,
    tasks: Sequence[Task],
    metric: Metric[Any],
    name: str,
    adapt: Callable[[Task], Adaptation],
    options: dict[str, Any],
) -> dict[str, float]:
    summary: dict[str, float] = evaluate(hart_system(model, name=name, adapt=adapt, **options), tasks, metric).summary
    return summary


def _shuffled(task: Task, seed: int) -> Task:
    """The task with its demonstrations in another order, if it has more than one."""
    order = list(task.demonstrations)
    draw = Random(f"{seed} {task.name}")
    while len(set(order)) > 1 and tuple(order) == task.demonstrations:
        draw.shuffle(order)
    return replace(task, demonstrations=tuple(order))
