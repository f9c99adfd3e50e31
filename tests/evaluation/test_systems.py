"""Systems against the calls for which they stand."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from hart.data.input_format import InputFormat
from hart.data.prompts import render_in_context
from hart.data.tasks import Instance, Task
from hart.errors import HartError
from hart.evaluation.run import evaluate_model
from hart.evaluation.systems import base_system, hart_system, load_system
from hart.model import scoring
from hart.model.hart_model import HartModel
from hart.training.config import DataConfig, ModelConfig

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
    monkeypatch.setattr(system, "adapt", lambda task, **options: adapted.append(task) or adapt(task, **options))
    more = dataclasses.replace(task, demonstrations=[*task.demonstrations, ("a", "b")])
    assert hart_system(system, batch_size=3).answer(more) == expected
    assert adapted == [task]  # the two demonstrations that the format shows, so nothing is left out


@pytest.mark.parametrize("to", ["hypernetwork", "main", "nowhere"])
def test_queries_are_read_as_by_the_model_itself(system: HartModel, task: Task, to: str):
    system.input_format = dataclasses.replace(system.input_format, demonstrations_to=to)
    adaptation = system.adapt(task)
    queries = [instance.input for instance in task.instances]
    assert hart_system(system).answer(task) == system.generate(queries, adaptation)


def choosing(task: Task, choices: tuple[str, ...], queries: tuple[str, ...] = ("a b", "c d")) -> Task:
    instances = [Instance(query, choices[:1], choices=choices) for query in queries]
    return dataclasses.replace(task, instances=instances)


@pytest.mark.parametrize("kind", ["hart", "base", "base-in-context"])
@pytest.mark.parametrize(
    "choices",
    [
        ("one two", " one two ", "a"),  # the same without the white space around them
        ("one two three four five six", "one two three four five seven", "b"),  # equal once cut
    ],
)
def test_choices_of_equal_tokens_have_equal_scores(
    system: HartModel, task: Task, kind: str, choices: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
):
    real = scoring._score_batch

    def rounded(*args: Any, **options: Any) -> list[list[float]]:
        # As if a matrix product rounded a row by its place in the batch.
        return [[score - 1e-6 * place for place, score in enumerate(own)] for own in real(*args, **options)]

    monkeypatch.setattr(scoring, "_score_batch", rounded)
    form = system.input_format
    if kind == "hart":
        score = hart_system(system).score
    else:
        score = base_system(system.main, form, in_context=kind == "base-in-context").score
    cuts = [form.encode_target(system.main.tokenizer, choice) for choice in choices]
    assert cuts[0] == cuts[1] != cuts[2]
    for first, second, other in score(choosing(task, choices)):
        assert first == second != other


@pytest.mark.parametrize("in_context", [False, True])
def test_a_blank_query_is_read_without_a_word_of_input(
    system: HartModel, task: Task, in_context: bool, monkeypatch: pytest.MonkeyPatch
):
    blank = dataclasses.replace(task, instances=[Instance(" ", ("a",), "7"), Instance("one two", ("a",))])
    read: list[list[int]] = []
    tokenizer, generate = system.main.tokenizer, system.main.generate
    monkeypatch.setattr(system.main, "generate", lambda rows, *a, **k: read.extend(rows) or generate(rows, *a, **k))
    base = base_system(system.main, InputFormat(), in_context=in_context)
    assert len(base.answer(blank)) == 2 and base.cuts
    if in_context:  # Tk-Instruct ends what has no punctuation with a full stop, be it nothing
        other = render_in_context(blank, "one two").replace("Input: one two.\nOutput: ", "Input: .\nOutput: ")
        assert read[0] == tokenizer(other)["input_ids"]
    else:
        assert read[0] == [tokenizer.eos_token_id]


def test_what_a_model_cannot_read_is_refused_before_the_first_task(system: HartModel, task: Task, monkeypatch):
    monkeypatch.setattr(system, "adapt", lambda *_, **__: pytest.fail("adapted"))
    system.input_format = dataclasses.replace(system.input_format, num_demonstrations=0)
    nameless = dataclasses.replace(task, definition=" ", name="second")
    with pytest.raises(HartError, match="task second: the definition is empty"):
        evaluate_model(system, [task, nameless])


def test_what_does_not_fit_is_told_once(system: HartModel, task: Task, caplog: pytest.LogCaptureFixture):
    long = [Instance("word " * 40, ("a",)) for _ in range(3)]
    tasks = [dataclasses.replace(task, instances=long, name=f"task{number}") for number in range(5)]
    evaluate_model(system, tasks)
    cut = [record.getMessage() for record in caplog.records if "query" in record.getMessage()]
    assert len(cut) == 1
    assert cut[0].startswith("task task0: cut the end of the query") and "task1, task task2 and 2 more" in cut[0]


def test_base_reads_the_query_alone(system: HartModel, task: Task):
    base = base_system(system.main, system.input_format, in_context=False)
    queries = [instance.input for instance in task.instances]
    assert base.answer(task) == system.main.generate(queries, max_new_tokens=NEW_TOKENS, max_query_length=16)


def read_by_base(system: HartModel, task: Task, form: InputFormat, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The tokens that the base is given in context."""
    read: list[list[int]] = []

    def generate(rows: list[list[int]], _: None, *, max_new_tokens: int, **__: object) -> list[str]:
        assert max_new_tokens == form.max_target_length
        read.extend(rows)
        return [""] * len(rows)

    monkeypatch.setattr(system.main, "generate", generate)
    base_system(system.main, form, in_context=True).answer(task)
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


def test_a_plain_decoder_only_base_goes_on_behind_the_text() -> None:
    """The end of sequence, which models trained here read before an answer, says nothing of one to it."""
    for name in ("base", "base-in-context"):
        assert load_system(name, "mini-causal-base", base=None, form=InputFormat()).form.input_eos is False
