"""Answering the instances of a task, as functions of the task.

Free answers (`hart.evaluation.answers.Predictor`) are generated, multiple-choice ones (`ChoiceScorer` of
`hart.evaluation.choices`) are scored. All instances are answered: official data has blank ones, which are read as the
protocol reads them, without a word of input. Of a task's demonstrations a model gets those that its format shows.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hart.data.input_format import InputFormat
from hart.data.prompts import Cuts, Lengths, encode_in_context, encode_query, encode_target
from hart.data.tasks import Task
from hart.errors import HartError
from hart.evaluation.answers import Predictor, Results, evaluate_tasks
from hart.evaluation.choices import ChoiceResults, ChoiceScorer, evaluate_choices
from hart.model.hart_model import HartModel
from hart.model.main_model import MainModel
from hart.model.scoring import Normalisation, score_choices
from hart.runtime.ranks import shared_out

logger = logging.getLogger(__name__)


def hart_predictor(model: HartModel, *, batch_size: int = 32, cuts: Cuts | None = None) -> Predictor:
    """The adapted model: one adaptation per task, used for all its instances (§4.1, Inference).

    `cuts` takes note of what did not fit, of all tasks; without it nothing is said.
    """
    noted = Cuts() if cuts is None else cuts

    def predict(task: Task) -> list[str]:
        adaptation = model.adapt(_shown(task, model.input_format), cuts=noted)
        rows = _encode(model.main, model.input_format, task, model.input_format.in_context, noted)
        return model.main.generate(rows, adaptation, batch_size=batch_size)

    return predict


def hart_scorer(
    model: HartModel, *, batch_size: int = 32, normalisation: Normalisation = "sum", cuts: Cuts | None = None
) -> ChoiceScorer:
    """The adapted model judges the choices: one adaptation per task, one encoder pass per query (§4.2)."""
    noted = Cuts() if cuts is None else cuts

    def score(task: Task) -> list[list[float]]:
        adaptation = model.adapt(_shown(task, model.input_format), cuts=noted)
        rows = _encode(model.main, model.input_format, task, model.input_format.in_context, noted)
        options: dict[str, Any] = {"normalisation": normalisation, "batch_size": batch_size}
        return _judge(model.main, task, rows, model.input_format.max_target_length, noted, adaptation, options)

    return score


def evaluate_model(model: HartModel, tasks: Sequence[Task], *, quiet: bool = False) -> Results | ChoiceResults:
    """The adapted model's scores: accuracy where all tasks are multiple-choice, else those of free answers.

    Of several processes, each works on its share of the tasks, and all get all scores. Warnings say what did not fit
    and which scores say little, each once.

    Args:
        quiet: no warnings, as for the same tasks again.

    Raises:
        HartError: no tasks, or tasks that cannot be judged or read.
    """
    check_readable(model.input_format, tasks)
    cuts = Cuts()
    results: Results | ChoiceResults
    if tasks and all(task.multiple_choice for task in tasks):
        results = evaluate_choices(shared_out(hart_scorer(model, cuts=cuts), tasks), tasks)
    else:
        results = evaluate_tasks(shared_out(hart_predictor(model, cuts=cuts), tasks), tasks)
    if not quiet:
        warn(results, cuts)
    return results


def warn(results: Results | ChoiceResults, cuts: Cuts) -> None:
    """Say what a reader of the scores should know, each condition once."""
    cuts.tell(logger)
    for remark in results.remarks:
        logger.warning("%s", remark)


def check_readable(form: InputFormat, tasks: Sequence[Task], *, in_context: bool = False) -> None:
    """Refuse a task without the definition that the model reads, before the first one is answered.

    Args:
        in_context: whether the base reads the task, whatever the format says.

    Raises:
        HartError: names the task.
    """
    if form.prompt_format != "instructions" or not (in_context or form.demonstrations_to != "nowhere"):
        return
    for task in tasks:
        if not task.definition.strip():
            raise HartError(f"task {task.label}: the definition is empty, and the model reads it; say what it asks for")


def base_predictor(
    main: MainModel, form: InputFormat, *, in_context: bool, batch_size: int = 32, cuts: Cuts | None = None
) -> Predictor:
    """The un-adapted main model, which reads the query alone, or behind definition and demonstrations.

    In context, the whole input has the limit that the hypernetwork's input has (Tk-Instruct's 1024 tokens).
    """
    noted = Cuts() if cuts is None else cuts

    def predict(task: Task) -> list[str]:
        rows = _encode(main, form, task, _read_by_base(form, in_context), noted)
        return main.generate(rows, max_new_tokens=form.max_target_length, batch_size=batch_size)

    return predict


def base_scorer(
    main: MainModel,
    form: InputFormat,
    *,
    in_context: bool,
    batch_size: int = 32,
    normalisation: Normalisation = "sum",
    cuts: Cuts | None = None,
) -> ChoiceScorer:
    """The un-adapted main model judges the choices; it reads as in `base_predictor`."""
    noted = Cuts() if cuts is None else cuts

    def score(task: Task) -> list[list[float]]:
        rows = _encode(main, form, task, _read_by_base(form, in_context), noted)
        options: dict[str, Any] = {"normalisation": normalisation, "batch_size": batch_size}
        options["max_target_length"] = form.max_target_length
        return _judge(main, task, rows, form.max_target_length, noted, None, options)

    return score


def _shown(task: Task, form: InputFormat) -> Task:
    """The task with the demonstrations that the format shows: the first ones, as the protocols have it."""
    return replace(task, demonstrations=task.demonstrations[: max(1, form.num_demonstrations)])


def _read_by_base(form: InputFormat, in_context: bool) -> dict[str, Any] | None:
    if not in_context:
        return None
    return {**form.shown, "max_length": form.max_demonstrations_length, "input_eos": form.input_eos}


def _encode(
    main: MainModel, form: InputFormat, task: Task, in_context: dict[str, Any] | None, cuts: Cuts
) -> list[list[int]]:
    """Tokens of each instance's query; of a blank one the end of sequence alone."""
    rows = []
    for number, instance in enumerate(task.instances):
        name = f"task {task.label}"
        if in_context is None:
            row = encode_query(
                main.tokenizer, instance.input, form.lengths, eos=form.input_eos, cuts=cuts, name=name, blank=True
            )
        else:
            row = encode_in_context(main.tokenizer, task, instance.input, **in_context, cuts=cuts, blank=True)
        if not instance.input.strip():
            cuts.note("read a blank instance as it is", f"{name}, instance {instance.id or number}")
        rows.append(row)
    return rows


def _judge(
    main: MainModel,
    task: Task,
    rows: list[list[int]],
    max_target_length: int,
    cuts: Cuts,
    adaptation: Any,
    options: dict[str, Any],
) -> list[list[float]]:
    """Scores of all choices; those that are the same tokens once cut have the same score, however it was rounded."""
    choices = [instance.choices for instance in task.instances]
    scores = score_choices(main, rows, choices, adaptation, **options, cuts=cuts)
    lengths = Lengths(target=max_target_length)
    texts = {text for own in choices for text in own}
    tokens = {text: tuple(encode_target(main.tokenizer, text, lengths)) for text in texts}
    return [
        [found[[tokens[text] for text in own].index(tokens[choice])] for choice in own]
        for own, found in zip(choices, scores, strict=True)
    ]
