"""An evaluation: a system answers tasks, a metric judges the answers."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

from hart.data.tasks import Task
from hart.errors import HartError
from hart.evaluation.answers import ANSWERS
from hart.evaluation.base import Metric, R, Results, System
from hart.evaluation.choices import CHOICES
from hart.evaluation.systems import hart_system
from hart.model.hart_model import HartModel
from hart.runtime.ranks import shared_out

logger = logging.getLogger(__name__)


def metric_of(tasks: Sequence[Task]) -> Metric[Any]:
    """The metric of tasks: accuracy if all are multiple-choice, else the scores of free answers."""
    return CHOICES if tasks and all(task.multiple_choice for task in tasks) else ANSWERS


def evaluate(
    system: System,
    tasks: Sequence[Task],
    metric: Metric[R],
    *,
    details: dict[str, Any] | None = None,
    on_task: Callable[[Any], None] | None = None,
    beside: bool = False,
) -> R:
    """Have a system answer all instances of each task, and judge the answers.

    With several processes, each works on its share of the tasks, and all get all scores.

    Args:
        details: provenance to keep in the file, in addition to the system's own.
        on_task: called with each task's result, to advance a progress bar or a log.
        beside: evaluate the metric's baselines (`Metric.beside`), too.

    Raises:
        HartError: there are no tasks, or some that the system cannot read or answer or the metric cannot judge; raised
            before the first answer.
        ValueError: the number of the system's outputs differs from the number of instances.
    """
    if not tasks:
        raise HartError("there are no tasks to evaluate on")
    ask = metric.asked(system)
    if ask is None:
        raise HartError(f"{system.name}: {metric.refusal}; take {' or '.join(each.name for each in metric.baselines)}")
    for task in tasks:
        if not task.instances:
            raise HartError(f"{task.label}: has no Instances to evaluate on; add some")
        metric.check(task)
        if system.form is not None:
            system.form.check_readable(task)
    ask = shared_out(ask, tasks)
    judged = []
    for task in tasks:
        judged.append(metric.judge(task, ask(task)))
        if on_task is not None:
            on_task(judged[-1])
    others = tuple(evaluate(each, tasks, metric) for each in metric.beside) if beside else ()
    return metric.results(system.name, tuple(judged), {**(details or {}), **system.details}, others)


def evaluate_model(model: HartModel, tasks: Sequence[Task], *, quiet: bool = False) -> Results:
    """Evaluate the adapted model under the metric of the tasks.

    Args:
        quiet: suppress warnings about texts that were cut and scores that say little, as when the same tasks are
            evaluated again.

    Raises:
        HartError: as `evaluate`.
    """
    system = hart_system(model)
    results: Results = evaluate(system, tasks, metric_of(tasks))
    if not quiet:
        warn(system, results)
    return results


def warn(system: System, results: Results) -> None:
    """Log warnings about texts that were cut and about marked instances (`Results.MARK`), one per condition."""
    system.cuts.tell(logger)
    for remark in results.remarks:
        logger.warning("%s", remark)
