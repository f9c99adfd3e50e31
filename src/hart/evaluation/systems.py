"""The systems under evaluation: adapted models, and their un-adapted base.

Free answers are generated, choices are scored. All instances are answered, including blank ones of official data,
whose input is empty, as in the benchmark's protocol.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from hart.data.input_format import InputFormat
from hart.data.prompts import Cuts
from hart.data.tasks import Task
from hart.errors import HartError
from hart.evaluation.answers import ANSWERS
from hart.evaluation.base import System
from hart.evaluation.choices import CHOICES
from hart.model.adaptation import Adaptation
from hart.model.folder import MODEL_TYPES, model_type_of
from hart.model.hart_model import HartModel
from hart.model.main_model import MainModel
from hart.model.scoring import Normalisation, score_choices

BASELINES = {each.name: each for metric in (ANSWERS, CHOICES) for each in metric.baselines}
"""Name → baseline without a model."""


def hart_system(
    model: HartModel, *, name: str = "hart", adapt: Callable[[Task], Adaptation] | None = None, **options: Any
) -> System:
    """The adapted model: one adaptation per task, used for all its instances (§4.1, Inference; §4.2).

    Args:
        adapt: returns the adaptation to a task; None: the model reads the task with the demonstrations that its format
            shows.
        options: `batch_size` and `normalisation` of the scores (`hart.model.scoring`).
    """
    form, cuts = model.input_format, Cuts()
    own = adapt or (lambda task: model.adapt(form.shown(task), cuts=cuts))
    return replace(_system(name, model.main, form, cuts, own, **options), model=model)


def base_system(main: MainModel, form: InputFormat, *, in_context: bool, name: str = "base", **options: Any) -> System:
    """The un-adapted main model, which reads the query alone, or after definition and demonstrations (`in_context`).

    In context, the limit of the hypernetwork's input applies to the whole input (Tk-Instruct: 1024 tokens).
    """
    form = replace(form, demonstrations_to="main" if in_context else "nowhere")
    return _system(name, main, form, Cuts(), lambda task: None, **options)


def load_system(
    name: str,
    model: str,
    *,
    base: str | None,
    form: InputFormat,
    device: torch.device | None = None,
    dtype: str = "float32",
    demonstration_groups: int | None = None,
    **options: Any,
) -> System:
    """Load the system `hart`, `base` or `base-in-context` of a HART model, or one of the latter two of a plain base.

    Args:
        name: "hart", "base" or "base-in-context".
        model: folder or hub name of a HART model, or of a plain base.
        base: location of a HART model's base, if it is not the one that the model names.
        form: input format of a plain base; a HART model has its own. For a plain decoder-only base `input_eos` is set
            to False, since it would take an end of sequence as the start of an unrelated text.
        demonstration_groups: for `hart`, as in `HartModel.adapt`.

    Raises:
        HartError: the model cannot be loaded, it reads no groups of demonstrations, or `base` is given for a plain
            base.
    """
    if name == "hart" or model_type_of(model) in MODEL_TYPES:
        loaded = HartModel.from_pretrained(model, base=base, dtype=dtype, device=device)
        if name == "hart":
            loaded.input_format = loaded.format_with_groups(demonstration_groups)
            return hart_system(loaded, **options)
        main, form = loaded.main, loaded.input_format
    elif base is not None:
        raise HartError(f"--base: {model} is not a HART model; give the base itself as MODEL, and leave --base out")
    else:
        main = MainModel.from_pretrained(model, dtype=dtype, device=device)
        form = form if main.shape.has_encoder else replace(form, input_eos=False)
        main.plain_format = form
    return base_system(main, form, in_context=name == "base-in-context", name=name, **options)


def _system(
    name: str,
    main: MainModel,
    form: InputFormat,
    cuts: Cuts,
    adapt: Callable[[Task], Adaptation | None],
    *,
    batch_size: int = 32,
    normalisation: Normalisation = "sum",
) -> System:
    def answer(task: Task) -> list[str]:
        adaptation = adapt(task)
        queries = _encode(main, form, task, cuts)
        return main.generate(queries, adaptation, max_new_tokens=form.max_target_length, batch_size=batch_size)

    def score(task: Task) -> list[list[float]]:
        adaptation = adapt(task)
        choices, queries = [instance.choices for instance in task.instances], _encode(main, form, task, cuts)
        limits: dict[str, Any] = {"batch_size": batch_size, "max_target_length": form.max_target_length, "cuts": cuts}
        return score_choices(main, queries, choices, adaptation, normalisation=normalisation, **limits)

    return System(name, answer, score, form, main.identity, cuts)


def _encode(main: MainModel, form: InputFormat, task: Task, cuts: Cuts) -> list[list[int]]:
    """Tokens of each instance's query; records blank instances in `cuts`."""
    queries, name = [], f"task {task.label}"
    for number, instance in enumerate(task.instances):
        queries.append(form.encode_input(main.tokenizer, task, instance.input, cuts, name=name, blank=True))
        if not instance.input.strip():
            cuts.note("read a blank instance as it is", f"{name}, instance {instance.id or number}")
    return queries
