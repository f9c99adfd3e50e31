"""Robustness: scores of tasks that are described differently, and answers to queries that do not belong to the task.

Users describe tasks less carefully than benchmarks do: the definition is worded differently or missing, a demonstration
is wrong or of another task. Each such variant is scored on the tasks' own queries and compared with the original task.
Interference is the effect of an adaptation on other queries, those of another task and distractors
(`hart.data.distractors`): the share of them that the adapted model answers as its base does.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from random import Random
from typing import Any

from rich.table import Table

from hart.data.prompts import Cuts
from hart.data.tasks import Demonstration, Instance, Task
from hart.evaluation.answers import ANSWERS
from hart.evaluation.other_adaptations import Adapt, Bar, check_comparable, scores_under
from hart.evaluation.run import evaluate, metric_of
from hart.evaluation.systems import base_system, hart_system
from hart.evaluation.words import OWN, TOLD
from hart.model.hart_model import HartModel

OtherDefinition = Callable[[Task], str | None]
"""Task → its definition in other words; None if there is none."""

QUERIES = 5
"""Number of queries of another task, and of distractors, that each task's adapted model answers."""


@dataclass(frozen=True)
class Robustness:
    """The results of `measure_robustness`.

    Attributes:
        scores: variant → means over the tasks; the first is the original task.
        like_the_base: share of another task's queries that the adapted model answers word for word as its base does;
            None for multiple-choice tasks.
        queries: number of these queries.
        distractors_like_the_base: share of distractors that it answers as its base does; None without distractors.
        distractors: number of distractors that were asked.
    """

    scores: dict[str, dict[str, float]]
    like_the_base: float | None
    queries: int
    distractors_like_the_base: float | None = None
    distractors: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The results in plain JSON types."""
        return dict(vars(self))

    def tables(self) -> list[Table]:
        names = list(self.scores[OWN])
        table = Table("told", *names, title="the same tasks told in other ways")
        for way, means in self.scores.items():
            table.add_row(TOLD[way], *(f"{means[name]:.2f}" for name in names))
        shares = (
            (self.like_the_base, self.queries, "queries of another task"),
            (self.distractors_like_the_base, self.distractors, "distractors"),
        )
        told = [f"{share:.0%} of {count} {what}" for share, count, what in shares if share is not None]
        if told:
            table.caption = f"{' and '.join(told)} are answered as the base does"
        return [table]


def measure_robustness(
    model: HartModel,
    tasks: Sequence[Task],
    *,
    other_definition: OtherDefinition | None = None,
    distractors: Sequence[str] = (),
    seed: int = 0,
    own: Mapping[str, float] | None = None,
    bar: Bar | None = None,
    **options: Any,
) -> Robustness:
    """Score variants of tasks, and ask each adapted model queries of another task and distractors.

    With several processes, all must call this function; each answers its share of the tasks.

    Args:
        model: a model with a hypernetwork.
        tasks: at least two tasks, with instances. "Another task" is the next one in the list.
        other_definition: gives definitions in other words; None leaves out that variant.
        distractors: queries unrelated to any task; each task's model is asked the next `QUERIES` of them.
        seed: seed of the draws of wrong outputs.
        own: scores of the original tasks, if they are already known.
        bar: progress over the answered tasks, e.g. `hart.cli.options.progress_bar`.
        options: options of `hart_system` and `base_system`, e.g. `batch_size`.

    Raises:
        HartError: the model has no hypernetwork, or there are fewer than two tasks.
    """
    check_comparable(model, tasks, "robustness")
    ways = told_in_other_ways(model, tasks, seed, other_definition)
    scores = scores_under(model, tasks, ways, own, bar, "tasks told in other ways", options)

    def like_the_base(asked: Sequence[Task]) -> tuple[float, int]:
        base = base_system(model.main, model.input_format, in_context=False, **options)
        said = [
            [each.prediction for task in evaluate(system, asked, ANSWERS).tasks for each in task.instances]
            for system in (hart_system(model, **options), base)
        ]
        alike = [one == other for one, other in zip(*said, strict=True)]
        return sum(alike) / len(alike), len(alike)

    found = Robustness(scores, None, 0)
    if metric_of(tasks) is ANSWERS:  # multiple-choice tasks have no free answers to compare
        others = [following.instances[:QUERIES] for following in [*tasks[1:], tasks[0]]]
        share, count = like_the_base(_asked(tasks, others))
        found = replace(found, like_the_base=share, queries=count)
    if distractors:
        endless = cycle(distractors)
        drawn = [[Instance(query, ("",)) for query in islice(endless, QUERIES)] for _ in tasks]
        share, count = like_the_base(_asked(tasks, drawn))
        found = replace(found, distractors_like_the_base=share, distractors=count)
    return found


def _asked(tasks: Sequence[Task], queries: Sequence[Sequence[Instance]]) -> list[Task]:
    return [replace(task, instances=tuple(own)) for task, own in zip(tasks, queries, strict=True)]


def told_in_other_ways(
    model: HartModel, tasks: Sequence[Task], seed: int, other_definition: OtherDefinition | None = None
) -> dict[str, Adapt]:
    """Variant → function from a task of `tasks` to the adaptation to this variant; the original task is the first.

    Variants without effect are left out: those of a part that the model does not read, and a definition in other words
    if none is known for any task.
    """
    form = model.input_format
    following = {id(task): tasks[(index + 1) % len(tasks)] for index, task in enumerate(tasks)}

    def told(change: Callable[[Task], Task]) -> Adapt:
        return lambda task: model.adapt(change(task), cuts=Cuts())

    def in_other_words(task: Task) -> Task:
        words = other_definition(task) if other_definition else None
        return form.shown(task) if words is None else replace(form.shown(task), definition=words)

    # A task with only one part keeps it, as nothing would be left.

    def without_definition(task: Task) -> Task:
        shown = form.shown(task)
        return replace(shown, definition="") if shown.demonstrations else shown

    def without_demonstrations(task: Task) -> Task:
        return replace(task, demonstrations=(), instances=()) if task.definition.strip() else form.shown(task)

    def wrong(task: Task, count: int | None) -> Task:
        shown = form.shown(task).demonstrations
        draw, pool = Random(f"{seed} {task.name}"), [each.output for each in task.demonstrations]
        pool += [instance.references[0] for instance in task.instances]
        changed = list(shown)
        for index in range(len(shown))[-(count or len(shown)) :]:
            others = [output for output in pool if output.strip() and output != shown[index].output]
            changed[index] = Demonstration(shown[index].input, draw.choice(others or [shown[index].output]))
        return replace(form.shown(task), demonstrations=tuple(changed))

    def foreign(task: Task) -> Task:
        shown, other = form.shown(task), form.shown(following[id(task)])
        if not (shown.demonstrations and other.demonstrations):
            return shown
        return replace(shown, demonstrations=(*shown.demonstrations[:-1], other.demonstrations[0]))

    ways: dict[str, Adapt] = {OWN: told(form.shown)}
    has_definition = form.reads_definition and any(task.definition.strip() for task in tasks)
    shows = form.num_demonstrations and any(form.shown(task).demonstrations for task in tasks)
    if has_definition:
        if other_definition and any(other_definition(task) is not None for task in tasks):
            ways["other_words"] = told(in_other_words)
        if shows:
            ways["no_definition"] = told(without_definition)
            ways["no_demonstrations"] = told(without_demonstrations)
    if shows:
        ways["one_wrong_output"] = told(lambda task: wrong(task, 1))
        if form.most_demonstrations > 1:
            ways["all_wrong_outputs"] = told(lambda task: wrong(task, None))
        ways["foreign_demonstration"] = told(foreign)
    return ways
