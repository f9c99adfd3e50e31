"""Robustness of small real systems: every variant of a task, and the scores."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hart.cli import main
from hart.data.collections import COLLECTIONS, load_tasks
from hart.data.config import DataConfig
from hart.data.tasks import Task
from hart.errors import HartError
from hart.evaluation.answers import ANSWERS
from hart.evaluation.robustness import QUERIES, measure_robustness, told_in_other_ways
from hart.evaluation.run import evaluate
from hart.evaluation.systems import base_system, hart_system
from hart.evaluation.words import OWN, TOLD
from hart.model.config import ModelConfig
from hart.model.hart_model import HartModel

DATA = DataConfig(collection="procedural", max_test_instances=2, max_target_length=8)
IN_OTHER_WORDS = COLLECTIONS["procedural"].other_definition


@pytest.fixture(scope="module")
def tasks() -> list[Task]:
    return load_tasks(DATA, "test")[:3]


@pytest.fixture(scope="module")
def mini() -> HartModel:
    return HartModel.from_pretrained("mini")


def read_of(model: HartModel, task: Task, monkeypatch: pytest.MonkeyPatch) -> dict[str, Task]:
    """Way → the task that the model reads in place of `task`."""
    tasks = load_tasks(DATA, "test")[:3]
    found: list[Task] = []
    monkeypatch.setattr(model, "adapt", lambda told, **_: found.append(told))
    ways = told_in_other_ways(model, tasks, 0, IN_OTHER_WORDS)
    for adapt in ways.values():
        adapt(tasks[0])
    return dict(zip(ways, found, strict=True))


def test_each_way_is_what_it_is_called(mini: HartModel, tasks: list[Task], monkeypatch: pytest.MonkeyPatch):
    task, other = tasks[0], mini.input_format.shown(tasks[1])
    own = mini.input_format.shown(task)
    read = read_of(mini, task, monkeypatch)
    assert list(read) == list(TOLD)
    assert read[OWN] == own
    assert (
        read["other_words"] == replace(own, definition=IN_OTHER_WORDS(task)) and IN_OTHER_WORDS(task) != own.definition
    )
    assert read["no_definition"] == replace(own, definition="")
    assert read["no_demonstrations"].definition == own.definition and not read["no_demonstrations"].demonstrations
    first, last = own.demonstrations
    one, both = (read[way].demonstrations for way in ("one_wrong_output", "all_wrong_outputs"))
    outputs = {each.output for each in task.demonstrations} | {each.references[0] for each in task.instances}
    assert one[0] == first and (one[1].input, both[0].input, both[1].input) == (last.input, first.input, last.input)
    assert one[1].output != last.output and both[0].output != first.output and both[1].output != last.output
    assert {one[1].output, both[0].output, both[1].output} <= outputs
    assert read["foreign_demonstration"].demonstrations == (first, other.demonstrations[0])
    assert all(
        each.definition == own.definition for way, each in read.items() if way not in ("other_words", "no_definition")
    )
    assert read == read_of(mini, task, monkeypatch), "drawn alike every time"


def test_scores_are_those_of_the_tasks_told_so(mini: HartModel, tasks: list[Task]):
    found = measure_robustness(mini, tasks, other_definition=IN_OTHER_WORDS, batch_size=4)
    told = [replace(task, definition=str(IN_OTHER_WORDS(task))) for task in tasks]
    assert found.scores["other_words"] == evaluate(hart_system(mini), told, ANSWERS).summary
    assert found.scores[OWN] == evaluate(hart_system(mini), tasks, ANSWERS).summary
    asked = [
        replace(task, instances=following.instances)
        for task, following in zip(tasks, tasks[1:] + tasks[:1], strict=True)
    ]
    adapted, base = (
        [each.prediction for task in evaluate(system, asked, ANSWERS).tasks for each in task.instances]
        for system in (hart_system(mini), base_system(mini.main, mini.input_format, in_context=False))
    )
    assert found.queries == len(adapted) == 6 <= 3 * QUERIES
    assert found.like_the_base == sum(a == b for a, b in zip(adapted, base, strict=True)) / 6


def test_what_is_adapted_to_nothing_answers_as_its_base(tasks: list[Task]):
    """LoRA starts as the identity: no way matters, and all queries are answered as the base does."""
    lora = [{"kind": "lora", "rank": 2, "alpha": 2, "targets": ["q", "v"]}]
    model = HartModel.from_config(ModelConfig(base="mini-base", decoder_layers=1, peft=lora, fusion=False), DATA).eval()
    found = measure_robustness(model, tasks, batch_size=4, own={"rouge_l": 5.0})
    assert found.like_the_base == 1.0 and found.scores[OWN] == {"rouge_l": 5.0}
    assert "other_words" not in found.scores, "no other definition is known"
    others = [means for way, means in found.scores.items() if way != OWN]
    assert len(others) == 5 and all(means == others[0] for means in others)


def test_distractors_are_dealt_out_and_compared_with_the_base(mini: HartModel, tasks: list[Task]):
    queries = [f"only numbers and then count of all : one pear {word}" for word in ("two", "dog", "six", "nine")]
    found = measure_robustness(mini, tasks, distractors=queries, own={})
    asked = [queries[at % len(queries)] for at in range(3 * QUERIES)]
    adapted = [
        answer
        for at, task in enumerate(tasks)
        for answer in mini.generate(asked[QUERIES * at : QUERIES * (at + 1)], mini.adapt(task), max_new_tokens=8)
    ]
    base = mini.main.generate(asked, max_new_tokens=8)
    alike = [one == other for one, other in zip(adapted, base, strict=True)]
    assert found.distractors == len(alike) and found.distractors_like_the_base == sum(alike) / len(alike)
    assert f"{sum(alike) / len(alike):.0%} of 15 distractors" in str(found.tables()[0].caption)
    without = measure_robustness(mini, tasks, own={})
    assert (without.distractors_like_the_base, without.distractors) == (None, 0)
    assert without.like_the_base == found.like_the_base


def test_tasks_of_one_part_stay_as_they_are_where_nothing_would_be_left(mini: HartModel, tasks: list[Task]):
    defined, shown = replace(tasks[0], demonstrations=()), replace(tasks[1], definition="")
    found = measure_robustness(mini, [defined, shown], other_definition=IN_OTHER_WORDS)
    assert list(found.scores) == list(TOLD)
    assert found.scores["no_demonstrations"] == found.scores["no_definition"] == found.scores[OWN]
    alone = measure_robustness(mini, [replace(task, demonstrations=()) for task in tasks[:2]])
    assert list(alone.scores) == [OWN]


def test_multiple_choice_tasks_are_scored_without_interference(tasks: list[Task], mini: HartModel):
    choices = [
        replace(task, instances=[replace(each, choices=(each.references[0], "no")) for each in task.instances])
        for task in tasks
    ]
    found = measure_robustness(mini, choices, distractors=["count of all : one two"])
    assert found.like_the_base is None and list(found.scores[OWN]) == ["accuracy"]
    assert found.distractors == 3 * QUERIES and found.distractors_like_the_base is not None


def test_a_system_without_hypernetwork_and_a_single_task_are_refused(tasks: list[Task], mini: HartModel):
    plain = HartModel(mini.main, None, fusion=False, input_format=replace(mini.input_format, demonstrations_to="main"))
    with pytest.raises(HartError, match="has no hypernetwork, which robustness needs"):
        measure_robustness(plain, tasks)
    with pytest.raises(HartError, match="give at least two"):
        measure_robustness(mini, tasks[:1])


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], tasks: list[Task]):
    files: list[Any] = []
    for task in tasks[:2]:
        files += ["--task", str(tmp_path / f"{task.name}.json")]
        task.save(files[-1])
    output = tmp_path / "results.json"
    assert main(["evaluate", "mini", *files, "--robustness", "--output", str(output)]) == 0
    said = capsys.readouterr().out
    assert "told in other ways" in said and "queries of another task are answered as the base does" in said
    found = json.loads(output.read_text())
    assert set(found["robustness"]["scores"]) == set(TOLD) - {"other_words"}
    assert "distractors" not in said and found["robustness"]["distractors_like_the_base"] is None
    distractors = tmp_path / "distractors.txt"
    distractors.write_text("\n".join(f"count of all : {word}" for word in "abcdefghij"))
    asked = ["evaluate", "mini", *files, "--distractors", str(distractors)]
    assert main([*asked, "--robustness"]) == 0
    assert "10 distractors are answered as the base does" in " ".join(capsys.readouterr().out.split())
    assert main(asked) == 2
    assert "--distractors needs --robustness" in capsys.readouterr().err
    assert main(["evaluate", "mini", *files, "--robustness", "--system", "base"]) == 2
    assert "--robustness needs an adapted model" in capsys.readouterr().err
