"""Diagnostics of a hypernetwork: on what its layer states depend, and how much each of its parts contributes.

Two failures do not show in the loss: the states of consecutive layers become equal (the recursion reaches a fixed
point), or the generated parameters hardly depend on the task. The measures of layer states are those of
`hart.evaluation.states`. The scores are those of the same tasks under other adaptations
(`hart.evaluation.other_adaptations`): if another task's adaptation scores as well as a task's own, the task was not
read. docs/diagnostics.md explains how to interpret them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from hart.data.prompts import Cuts
from hart.data.tasks import Demonstration, Task
from hart.evaluation.other_adaptations import Bar, check_comparable, other_adaptations, scores_under
from hart.evaluation.states import (
    collapses,
    consecutive_cosines,
    effective_rank,
    pairwise_cosine,
    stack_cosines,
    upper_half,
    variance_shares,
)
from hart.evaluation.words import ANOTHER_TASK, CAUSES, IN_WORDS, OWN
from hart.hypernetwork.network import HyperNetwork
from hart.model.hart_model import HartModel
from hart.peft.base import MainShape

SETS = 4
"""Demonstration sets per task whose states are compared."""

PASS = 8
"""Tasks per pass of the hypernetwork."""


@dataclass(frozen=True)
class Diagnostics:
    """The results of `diagnose`.

    Attributes:
        scheme: name of the generation scheme.
        one_state: whether all layers share one state by construction (the shared scheme).
        layer_cosines: stack → cosines between the states of layers l and l + 1.
        layer_cosine: mean of `layer_cosines` over the upper half of layers; None with fewer than two layers.
        stack_cosines: cosine between the states of the two stacks, per layer; a single number if layers share a state.
        variance: cause → share of the variance of states (`variance_shares`).
        effective_rank: effective rank of all states.
        parameter_cosines: block → mean cosine between the parameters of two tasks; `all`: over all blocks together.
        scores: kind of adaptation → means over the tasks; the first is the tasks' own adaptation.
        other_sets: number of tasks with demonstrations that are not shown, on which the score of other demonstrations
            is based.
        tasks: number of tasks.
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
    other_sets: int
    tasks: int

    def to_dict(self) -> dict[str, Any]:
        """The results in plain JSON types."""
        return dict(vars(self))

    @property
    def warning(self) -> str | None:
        """One line if states have collapsed or another task's adaptation scores as well as the own; else None."""
        between = self.variance["tasks"] + self.variance["tasks_by_layer"] if self.variance else None
        found = collapses(None if self.one_state else self.layer_cosine, between)
        own, other = self.scores.get(OWN), self.scores.get(ANOTHER_TASK)
        if own is not None and other is not None:
            name = next(iter(own))
            if other[name] >= own[name]:
                found.append(
                    f"another task's adaptation scores as well as the task's own ({name} {other[name]:.1f}, "
                    f"{own[name]:.1f})"
                )
        return "; ".join(found) or None

    def tables(self) -> list[Table]:
        """A table of measures, and one of scores."""
        measures = Table("measure", "value", title=f"layer states, scheme {self.scheme}", min_width=80)
        cosine = "–" if self.layer_cosine is None else f"{self.layer_cosine:.3f}"
        note = " by construction: one state for all layers" if self.one_state else ""
        measures.add_row("cosine of layers, upper half", cosine + note)
        for stack, values in self.layer_cosines.items():
            measures.add_row(f"  {stack}, by layer", " ".join(f"{value:.2f}" for value in values))
        if self.stack_cosines:
            measures.add_row("cosine of stacks, by layer", " ".join(f"{v:.2f}" for v in self.stack_cosines))
        if self.variance:
            measures.add_row("share of variance between", "")
        for name, share in self.variance.items():
            measures.add_row(f"  {CAUSES[name]}", f"{share:.3f}")
        if self.effective_rank is not None:
            measures.add_row("effective rank", f"{self.effective_rank:.1f}")
        if self.parameter_cosines:
            measures.add_row("cosine of parameters over tasks", "")
        for block, value in self.parameter_cosines.items():
            measures.add_row(f"  {block}", "–" if value is None else f"{value:.3f}")
        names = list(next(iter(self.scores.values()), {}))
        scores = Table("adaptation", *names, title="the same tasks under other adaptations")
        for name, means in self.scores.items():
            scores.add_row(self._in_words(name), *(f"{means[each]:.2f}" for each in names))
        return [measures, scores]

    def _in_words(self, name: str) -> str:
        some = name == "other_demonstrations" and self.other_sets < self.tasks
        return IN_WORDS[name] + (f" ({self.other_sets} of {self.tasks} tasks have them)" if some else "")


def diagnose(
    model: HartModel,
    tasks: Sequence[Task],
    *,
    seed: int = 0,
    scores: bool = True,
    own: Mapping[str, float] | None = None,
    bar: Bar | None = None,
    **options: Any,
) -> Diagnostics:
    """Measure the layer states on some tasks, and score the tasks under adaptations other than their own.

    With several processes, all must call this function; each answers its share of the tasks.

    Args:
        model: a model with a hypernetwork.
        tasks: at least two tasks, with instances.
        seed: seed of the random demonstration sets, and of the random choices of `other_adaptations`.
        scores: whether to answer and score the tasks, too, which takes most of the time.
        own: the scores under the tasks' own adaptations, if they are already known.
        bar: progress over the answered tasks, e.g. `hart.cli.options.progress_bar`.
        options: options of `hart_system`, e.g. `batch_size`.

    Raises:
        HartError: the model has no hypernetwork, or there are fewer than two tasks.
    """
    check_comparable(model, tasks, "diagnosis")
    network = model.hypernetwork
    assert network is not None
    draws = [_sets(model, task, seed) for task in tasks]
    states, blocks = _read(model, network, [each for of_task in draws for each in of_task])
    form = model.input_format
    return Diagnostics(
        scheme="none" if network.scheme is None else network.scheme.name,
        **_measures(states, model.main.shape, network.one_state),
        parameter_cosines=_parameter_cosines(blocks),
        scores=scores_under(
            model, tasks, other_adaptations(model, tasks, seed), own, bar, "tasks under other adaptations", options
        )
        if scores
        else {},
        other_sets=sum(len(task.demonstrations) > len(form.shown(task).demonstrations) for task in tasks),
        tasks=len(tasks),
    )


def _measures(states: Tensor, shape: MainShape, one_state: bool) -> dict[str, Any]:
    """The measures of states (with L = 1 if all layers share one state), by their names in `Diagnostics`."""
    layers: Sequence[int] = shape.depths
    found: dict[str, Any] = {
        "one_state": one_state, "layer_cosines": {}, "layer_cosine": None, "stack_cosines": [], "variance": {},
        "effective_rank": None,
    }  # fmt: skip
    if not states.numel():
        return found
    if one_state:
        found["layer_cosine"] = 1.0
        layers = [1 for _ in layers]
    else:
        cosines = consecutive_cosines(states, layers)
        found |= {"layer_cosines": dict(zip(shape.stacks, cosines, strict=True)), "layer_cosine": upper_half(cosines)}
    return found | {
        "stack_cosines": stack_cosines(states, layers),
        "variance": variance_shares(states.unflatten(0, (-1, SETS)), layers),
        "effective_rank": effective_rank(states, layers),
    }


def _parameter_cosines(blocks: dict[str, Tensor]) -> dict[str, float | None]:
    found = {name: pairwise_cosine(values) for name, values in blocks.items()}
    return {**found, "all": pairwise_cosine(*blocks.values())} if blocks else {}


def _sets(model: HartModel, task: Task, seed: int) -> list[Task]:
    """The task with `SETS` demonstration sets: the one that is shown, and random ones of demonstrations and instances.

    These tasks serve to measure states only, so drawing from instances affects no score.
    """
    shown = model.input_format.shown(task)
    draw = Random(f"{seed} {task.name}")
    pool = [*task.demonstrations, *(Demonstration(i.input, i.references[0]) for i in task.instances if i.input.strip())]
    count = min(len(shown.demonstrations), len(pool))
    return [shown, *(replace(shown, demonstrations=tuple(draw.sample(pool, count))) for _ in range(SETS - 1))]


@torch.no_grad()
def _read(model: HartModel, network: HyperNetwork, draws: Sequence[Task]) -> tuple[Tensor, dict[str, Tensor]]:
    """Layer states of all demonstration sets, and blocks of the first set of each task, on the CPU.

    A state that all layers share is returned once (L = 1). Empty blocks are left out.
    """
    states, blocks = [], []
    for start in range(0, len(draws), PASS):
        made = model.read(draws[start : start + PASS], Cuts())
        states.append((made.states[:, :, :1] if network.one_state else made.states).float().cpu())
        first = -start % SETS
        blocks.append({name: rows[first::SETS].float().cpu() for name, rows in made.blocks.items() if rows.numel()})
    return torch.cat(states), {name: torch.cat([each[name] for each in blocks]) for name in blocks[0]}
