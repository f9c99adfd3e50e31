"""Answering the instances of a task, as functions from a task to its predictions (`hart.evaluation.Predictor`)."""

from hart.data.prompts import encode_in_context, encode_query
from hart.data.tasks import Task
from hart.evaluation import Predictor
from hart.input_format import InputFormat
from hart.main_model import MainModel
from hart.system import HartModel


def hart_predictor(model: HartModel, *, batch_size: int = 32) -> Predictor:
    """The adapted model: one adaptation per task, used for all its instances (§4.1, Inference)."""

    def predict(task: Task) -> list[str]:
        queries = [instance.input for instance in task.instances]
        return model.generate(queries, model.adapt(task), batch_size=batch_size)

    return predict


def base_predictor(main: MainModel, form: InputFormat, *, in_context: bool, batch_size: int = 32) -> Predictor:
    """The un-adapted main model, which reads the query alone, or behind definition and demonstrations.

    In context, the whole input has the limit that the hypernetwork's input has (Tk-Instruct's 1024 tokens).
    """

    def encode(task: Task, query: str) -> list[int]:
        if not in_context:
            return encode_query(main.tokenizer, query, form.lengths)
        return encode_in_context(
            main.tokenizer,
            task,
            query,
            form.max_demonstrations_length,
            num_demonstrations=form.num_demonstrations,
            explanations=form.explanations,
        )

    def predict(task: Task) -> list[str]:
        # Encoded here and not by `generate`, which would strip the white space that ends the in-context text.
        rows = [encode(task, instance.input) for instance in task.instances]
        return main.generate(rows, max_new_tokens=form.max_target_length, batch_size=batch_size)

    return predict
