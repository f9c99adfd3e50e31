"""Predictors against the calls that they stand for."""

from pathlib import Path

import pytest

from hart.config import DataConfig, ModelConfig
from hart.data.prompts import render_in_context
from hart.data.tasks import Task
from hart.input_format import InputFormat
from hart.prediction import base_predictor, hart_predictor
from hart.system import HartModel

NEW_TOKENS = 5


@pytest.fixture
def system(tiny_base_dir: Path) -> HartModel:
    data = DataConfig(max_demonstrations_length=128, max_query_length=16, max_target_length=NEW_TOKENS)
    return HartModel.from_config(ModelConfig(base=str(tiny_base_dir), decoder_layers=1), data).eval()


@pytest.fixture
def task(toy_data_dir: Path) -> Task:
    return Task.from_file(toy_data_dir / "tasks" / "reverse.json")


def test_adapted_model_answers_each_query_with_one_adaptation(system: HartModel, task: Task, monkeypatch):
    adaptation = system.adapt(task)
    expected = [system.generate(instance.input, adaptation)[0] for instance in task.instances]
    adapted: list[Task] = []
    adapt = system.adapt
    monkeypatch.setattr(system, "adapt", lambda task: adapted.append(task) or adapt(task))
    assert hart_predictor(system, batch_size=3)(task) == expected
    assert adapted == [task]


def test_base_reads_the_query_alone(system: HartModel, task: Task):
    predict = base_predictor(system.main, system.input_format, in_context=False)
    queries = [instance.input for instance in task.instances]
    assert predict(task) == system.main.generate(queries, max_new_tokens=NEW_TOKENS, max_query_length=16)


def read_by_base(system: HartModel, task: Task, form: InputFormat, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The tokens that the base is given in context."""
    read: list[list[int]] = []

    def generate(rows: list[list[int]], *, max_new_tokens: int, **_: object) -> list[str]:
        assert max_new_tokens == form.max_target_length
        read.extend(rows)
        return [""] * len(rows)

    monkeypatch.setattr(system.main, "generate", generate)
    base_predictor(system.main, form, in_context=True)(task)
    return read


def test_base_in_context_reads_definition_demonstrations_and_query(system: HartModel, task: Task, monkeypatch):
    form = InputFormat(num_demonstrations=1)
    texts = [render_in_context(task, instance.input, num_demonstrations=1) for instance in task.instances]
    assert read_by_base(system, task, form, monkeypatch) == [system.main.tokenizer(text)["input_ids"] for text in texts]


def test_demonstrations_give_way_to_the_query(system: HartModel, task: Task, monkeypatch):
    tokens = [
        system.main.tokenizer(render_in_context(task, task.instances[0].input, num_demonstrations=shown))["input_ids"]
        for shown in (1, 2)
    ]
    form = InputFormat(max_demonstrations_length=len(tokens[1]) - 1)
    assert read_by_base(system, task, form, monkeypatch)[0] == tokens[0]
