"""Diagnostics of real systems, small: what is measured, what is scored, and what is said of a collapse."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hart.cli import main
from hart.data.collections import load_tasks
from hart.data.config import DataConfig
from hart.data.tasks import Task
from hart.errors import HartError
from hart.evaluation.answers import ANSWERS
from hart.evaluation.diagnostics import OTHER, OWN, Diagnostics, diagnose
from hart.evaluation.run import evaluate
from hart.evaluation.systems import hart_system
from hart.model.config import ModelConfig
from hart.model.hart_model import HartModel
from hart.peft.base import row_blocks

DATA = DataConfig(collection="procedural", max_test_instances=2, max_target_length=8)


@pytest.fixture(scope="module")
def tasks() -> list[Task]:
    return load_tasks(DATA, "test")[:3]


def model(**fields: Any) -> HartModel:
    peft = [{"kind": "prefix", "length": 2}]
    return HartModel.from_config(
        ModelConfig(base="mini-base", decoder_layers=1, **{"peft": peft, **fields}), DATA
    ).eval()


@pytest.fixture(scope="module")
def mini() -> HartModel:
    return HartModel.from_pretrained("mini")


def test_of_the_bundled_model(mini: HartModel, tasks: list[Task]):
    found = diagnose(mini, tasks, batch_size=4)
    assert [len(values) for values in found.layer_cosines.values()] == [7, 7] and len(found.stack_cosines) == 8
    assert sum(found.variance.values()) == pytest.approx(1)
    assert found.effective_rank is not None and 1 < found.effective_rank < 128
    assert [*found.parameter_cosines] == [*(b.name for b in row_blocks(mini.kinds, mini.main.shape)), "all"]
    own = evaluate(hart_system(mini), tasks, ANSWERS).summary
    assert found.scores[OWN] == own, "the first row is the plain evaluation"
    assert found.scores[OTHER]["exact_match"] < own["exact_match"]
    assert len(found.scores) == 7
    assert json.loads(json.dumps(found.to_dict()))["layer_cosine"] == found.layer_cosine


def test_one_of_two_parts_has_no_parts(tasks: list[Task]):
    alone = diagnose(model(fusion=False), tasks)
    assert [*alone.scores] == [OWN, OTHER, "own demonstrations, in another order"]
    memory = diagnose(model(peft=[]), tasks, scores=False)
    assert memory.layer_cosine is None and memory.layer_cosines == {} and memory.parameter_cosines == {}
    assert memory.warning is None and len(memory.tables()) == 2


def test_one_state_for_all_layers_is_no_collapse(tasks: list[Task]):
    found = diagnose(model(scheme={"name": "shared"}), tasks, scores=False)
    assert found.one_state and found.layer_cosine == pytest.approx(1)
    assert found.warning is None or "consecutive" not in found.warning


def test_demonstration_sets_are_drawn_alike_every_time(tasks: list[Task]):
    system = model()
    one, again, other = (diagnose(system, tasks, scores=False, seed=seed) for seed in (0, 0, 1))
    assert one == again and one.variance["demonstrations"] > 0
    assert one.variance != other.variance


SOUND = Diagnostics(
    scheme="causal", one_state=False, layer_cosines={}, layer_cosine=0.5, stack_cosines=[],
    variance={"layers": 0.4, "tasks": 0.5, "demonstrations": 0.1}, effective_rank=9.0, parameter_cosines={},
    scores={OWN: {"rouge_l": 50.0}, OTHER: {"rouge_l": 10.0}},
)  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({}, None),
        ({"layer_cosine": 0.99}, "the states of consecutive layers are one (cosine 0.990"),
        ({"layer_cosine": 1.0, "one_state": True}, None),
        ({"variance": {"layers": 0.9, "tasks": 0.01, "demonstrations": 0.09}}, "hardly differ between tasks (0.010"),
        ({"scores": {OWN: {"rouge_l": 10.0}, OTHER: {"rouge_l": 10.0}}}, "another task's adaptation scores as well"),
    ],
)
def test_what_is_said_of_a_collapse(changed: dict, says: str | None):
    warning = replace(SOUND, **changed).warning
    assert warning is None if says is None else says in (warning or "")


def test_a_system_without_hypernetwork_and_a_single_task_are_refused(tasks: list[Task], mini: HartModel):
    data = DATA.changed(demonstrations_to="nowhere")
    plain = ModelConfig(base="mini-base", weights="none", train_main=True, peft=[], fusion=False)
    with pytest.raises(HartError, match="has no hypernetwork, so there are no layer states"):
        diagnose(HartModel.from_config(plain, data), tasks)
    with pytest.raises(HartError, match="give at least two"):
        diagnose(mini, tasks[:1])


def test_from_the_command_line(tasks: list[Task], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = []
    for task in tasks[:2]:
        task.save(tmp_path / f"{task.name}.json")
        words += ["--task", str(tmp_path / f"{task.name}.json")]
    output = tmp_path / "results.json"
    assert main(["evaluate", "mini", *words, "--diagnostics", "--output", str(output), "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert (
        "the same tasks under other adaptations" in printed and "warning: the states of consecutive layers" in printed
    )
    assert json.loads(output.read_text())["details"]["diagnostics"]["scheme"] == "autoregressive"
    assert main(["evaluate", "mini-base", "--system", "base", *words, "--diagnostics"]) == 2
    assert "--diagnostics looks into an adapted model" in capsys.readouterr().err
