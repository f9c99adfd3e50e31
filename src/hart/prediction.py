"""Answering the instances of a task, as functions of the task.

Free answers (`hart.evaluation.Predictor`) are generated, multiple-choice ones (`ChoiceScorer` of
`hart.rank_classification`) are scored.
"""

from collections.abc import Sequence

from hart.data.prompts import encode_in_context, encode_query
from hart.data.tasks import Task
from hart.evaluation import Predictor, Results, evaluate_tasks
from hart.input_format import InputFormat
from hart.main_model import MainModel
from hart.rank_classification import ChoiceResults, ChoiceScorer, evaluate_choices
from hart.scoring import Normalisation, score_choices
from hart.sharing import shared_out
from hart.system import HartModel


def hart_predictor(model: HartModel, *, batch_size: int = 32) -> Predictor:
    """The adapted model: one adaptation per task, used for all its instances (§4.1, Inference)."""

    def predict(task: Task) -> list[str]:
        queries = [instance.input for instance in task.instances]
        return model.generate(queries, model.adapt(task), batch_size=batch_size)

    return predict


def hart_scorer(model: HartModel, *, batch_size: int = 32, normalisation: Normalisation = "sum") -> ChoiceScorer:
    """The adapted model judges the choices: one adaptation per task, one encoder pass per query (§4.2)."""

    def score(task: Task) -> list[list[float]]:
        queries = [instance.input for instance in task.instances]
        return score_choices(
            model.main,
            queries,
            _choices(task),
            model.adapt(task),
            normalisation=normalisation,
            batch_size=batch_size,
        )

    return score


def evaluate_model(model: HartModel, tasks: Sequence[Task]) -> Results | ChoiceResults:
    """The adapted model's scores: accuracy where all tasks are multiple-choice, else those of free answers.

    Of several processes, each works on its share of the tasks, and all get all scores.

    Raises:
        HartError: no tasks, or tasks that cannot be judged.
    """
    if tasks and all(task.multiple_choice for task in tasks):
        return evaluate_choices(shared_out(hart_scorer(model), tasks), tasks)
    return evaluate_tasks(shared_out(hart_predictor(model), tasks), tasks)


def base_predictor(main: MainModel, form: InputFormat, *, in_context: bool, batch_size: int = 32) -> Predictor:
    """The un-adapted main model, which reads the query alone, or behind definition and demonstrations.

    In context, the whole input has the limit that the hypernetwork's input has (Tk-Instruct's 1024 tokens).
    """

    def predict(task: Task) -> list[str]:
        # Encoded here and not by `generate`, which would strip the white space that ends the in-context text.
        rows = _encode(main, form, task, in_context)
        return main.generate(rows, max_new_tokens=form.max_target_length, batch_size=batch_size)

    return predict


def base_scorer(
    main: MainModel,
    form: InputFormat,
    *,
    in_context: bool,
    batch_size: int = 32,
    normalisation: Normalisation = "sum",
) -> ChoiceScorer:
    """The un-adapted main model judges the choices; it reads as in `base_predictor`."""

    def score(task: Task) -> list[list[float]]:
        return score_choices(
            main,
            _encode(main, form, task, in_context),
            _choices(task),
            normalisation=normalisation,
            batch_size=batch_size,
            max_target_length=form.max_target_length,
        )

    return score


def _encode(main: MainModel, form: InputFormat, task: Task, in_context: bool) -> list[list[int]]:
    def encode(query: str) -> list[int]:
        if not in_context:
            return encode_query(main.tokenizer, query, form.lengths, eos=form.input_eos)
        limit = form.max_demonstrations_length
        return encode_in_context(main.tokenizer, task, query, limit, input_eos=form.input_eos, **form.shown)

    return [encode(instance.input) for instance in task.instances]


def _choices(task: Task) -> Sequence[tuple[str, ...]]:
    return [instance.choices for instance in task.instances]
