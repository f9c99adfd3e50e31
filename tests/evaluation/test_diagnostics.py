"""Diagnostics of small real systems: measures, scores, and reports of a collapse."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig, T5Config, T5ForConditionalGeneration

from hart.cli import main
from hart.data.collections import load_tasks
from hart.data.config import DataConfig
from hart.data.tasks import Task
from hart.errors import HartError
from hart.evaluation.answers import ANSWERS
from hart.evaluation.choices import CHOICES
from hart.evaluation.diagnostics import Diagnostics, diagnose
from hart.evaluation.other_adaptations import other_adaptations
from hart.evaluation.run import evaluate
from hart.evaluation.systems import hart_system
from hart.evaluation.words import ANOTHER_TASK, IN_WORDS, OWN
from hart.hypernetwork.schemes.base import SCHEMES
from hart.model.adaptation import Adaptation
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
    assert found.effective_rank is not None and found.effective_rank > 1
    assert [*found.parameter_cosines] == [*(b.name for b in row_blocks(mini.kinds, mini.main.shape)), "all"]
    adapted = mini.adapt([mini.input_format.shown(task) for task in tasks])
    for name, rows in adapted.blocks.items():
        flat = rows.flatten(1)
        pairs = [torch.cosine_similarity(flat[i], flat[j], dim=0) for i, j in ((0, 1), (0, 2), (1, 2))]
        assert found.parameter_cosines[name] == pytest.approx(torch.stack(pairs).mean().item(), abs=1e-4)
    own = evaluate(hart_system(mini), tasks, ANSWERS).summary
    assert found.scores[OWN] == own, "the first row is the plain evaluation"
    assert found.scores[ANOTHER_TASK]["exact_match"] < own["exact_match"]
    assert [*found.scores] == [*IN_WORDS]
    assert json.loads(json.dumps(found.to_dict()))["layer_cosine"] == found.layer_cosine


def test_each_kind_of_adaptation_is_what_it_is_called(tasks: list[Task]):
    system = model()
    kinds = other_adaptations(system, tasks, seed=0)
    made = {name: adapt(tasks[2]) for name, adapt in kinds.items()}
    own, other = (system.adapt(system.input_format.shown(task)) for task in (tasks[2], tasks[0]))
    first = next(iter(own.blocks))

    def same(name: str, blocks: Adaptation | None, memory: Adaptation | None) -> bool:
        found = made[name]
        return (torch.equal(found.blocks[first], blocks.blocks[first]) if blocks else not found.blocks) and (
            torch.equal(found.memory, memory.memory) if memory else found.memory is None
        )

    assert same(OWN, own, own) and same(ANOTHER_TASK, other, other)
    assert same("parameters_only", own, None) and same("memory_only", None, own)
    assert same("another_tasks_parameters", other, own) and same("another_tasks_memory", own, other)
    shown, others = tasks[2].demonstrations[:2], tasks[2].demonstrations[2:]
    read = {
        name: [(each["input"], each["output"]) for each in made[name].tasks[0]["Positive Examples"]]
        for name in (OWN, "shuffled_demonstrations", "other_demonstrations")
    }
    as_texts = [(each.input, each.output) for each in shown]
    assert read[OWN] == as_texts and read["shuffled_demonstrations"] == as_texts[::-1]
    assert sorted(read["other_demonstrations"]) == sorted((each.input, each.output) for each in others)


def test_kinds_that_would_change_nothing_are_left_out(tasks: list[Task]):
    one = [replace(task, demonstrations=task.demonstrations[:1]) for task in tasks]
    assert [*other_adaptations(model(fusion=False), one, 0)] == [OWN, ANOTHER_TASK]
    one = [replace(task, instances=task.instances[:1]) for task in one]
    two = [*one[:2], replace(one[2], demonstrations=tasks[2].demonstrations[:3])]
    found = diagnose(model(fusion=False), two)
    assert [*found.scores] == [OWN, ANOTHER_TASK, "shuffled_demonstrations", "other_demonstrations"]
    assert "other demonstrations of the task (1 of 3 tasks have them)" in [*found.tables()[1].columns[0].cells]


def test_a_memory_alone_has_no_states(tasks: list[Task]):
    memory = diagnose(model(peft=[]), tasks, scores=False)
    assert memory.layer_cosine is None and memory.layer_cosines == {} and memory.parameter_cosines == {}
    assert memory.warning is None and len(memory.tables()) == 2


def test_one_state_for_all_layers_is_no_collapse(tasks: list[Task]):
    found = diagnose(model(scheme={"name": "shared"}), tasks, scores=False)
    assert found.one_state and found.layer_cosine == 1
    assert found.variance["layers"] == found.variance["tasks_by_layer"] == 0
    assert found.warning is None or "consecutive" not in found.warning
    assert "1.000 by construction: one state for all layers" in [*found.tables()[0].columns[1].cells]


@pytest.fixture(scope="module")
def uneven_base_dir(tiny_base_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with three encoder layers and two decoder layers."""
    folder = tmp_path_factory.mktemp("uneven")
    fields = T5Config.from_pretrained(tiny_base_dir).to_dict() | {"num_layers": 3, "num_decoder_layers": 2}
    base = T5ForConditionalGeneration(T5Config(**fields))
    base.generation_config = GenerationConfig.from_pretrained(tiny_base_dir)
    base.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_base_dir).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_on_stacks_of_unequal_depth(scheme: str, uneven_base_dir: Path, toy_data_dir: Path):
    data = DataConfig(dir=str(toy_data_dir), max_train_instances=1, max_target_length=4)
    peft = [{"kind": "prefix", "length": 2}]
    config = ModelConfig(base=str(uneven_base_dir), decoder_layers=1, scheme={"name": scheme}, peft=peft)
    found = diagnose(HartModel.from_config(config, data).eval(), load_tasks(data, "train")[:2], batch_size=1)
    assert sum(found.variance.values()) == pytest.approx(1)
    assert found.one_state == (scheme == "shared")
    if not found.one_state:
        assert [len(values) for values in found.layer_cosines.values()] == [2, 1] and len(found.stack_cosines) == 2


def test_multiple_choice_tasks_are_scored_by_accuracy(tasks: list[Task]):
    chosen = [
        replace(task, instances=[replace(i, choices=(i.references[0], "no", "yes")) for i in task.instances[:1]])
        for task in tasks[:2]
    ]
    system = model()
    found = diagnose(system, chosen)
    assert [*found.scores] == [*IN_WORDS]
    assert found.scores[OWN] == evaluate(hart_system(system), chosen, CHOICES).summary


def test_demonstration_sets_are_drawn_alike_every_time(tasks: list[Task]):
    system = model()
    one, again, other = (diagnose(system, tasks, scores=False, seed=seed) for seed in (0, 0, 1))
    assert one == again and one.variance["demonstrations"] > 0
    assert one.variance != other.variance


SOUND = Diagnostics(
    scheme="causal", one_state=False, layer_cosines={}, layer_cosine=0.5, stack_cosines=[],
    variance={"stacks": 0.1, "layers": 0.3, "tasks": 0.03, "tasks_by_layer": 0.47, "demonstrations": 0.1},
    effective_rank=9.0, parameter_cosines={}, other_sets=2, tasks=2,
    scores={OWN: {"rouge_l": 50.0}, ANOTHER_TASK: {"rouge_l": 10.0}},
)  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({}, None),
        ({"layer_cosine": 0.99}, "the states of consecutive layers are almost equal (cosine 0.990"),
        ({"layer_cosine": 1.0, "one_state": True}, None),
        ({"variance": {**SOUND.variance, "tasks_by_layer": 0.01}}, "hardly differ between tasks (0.040"),
        (
            {"scores": {OWN: {"rouge_l": 9.0}, ANOTHER_TASK: {"rouge_l": 9.0}}},
            "another task's adaptation scores as well as the task's own (rouge_l 9.0, 9.0)",
        ),
    ],
)
def test_what_is_said_of_a_collapse(changed: dict, says: str | None):
    warning = replace(SOUND, **changed).warning
    assert warning is None if says is None else says in (warning or "")


def test_a_system_without_hypernetwork_and_a_single_task_are_refused(tasks: list[Task], mini: HartModel):
    data = DATA.changed(demonstrations_to="nowhere")
    plain = ModelConfig(base="mini-base", weights="none", train_main=True, peft=[], fusion=False)
    with pytest.raises(HartError, match="has no hypernetwork, which diagnosis needs"):
        diagnose(HartModel.from_config(plain, data), tasks)
    with pytest.raises(HartError, match="give at least two"):
        diagnose(mini, tasks[:1])


def task_files(tasks: list[Task], folder: Path) -> list[str]:
    words = []
    for task in tasks:
        task.save(folder / f"{task.name}.json")
        words += ["--task", str(folder / f"{task.name}.json")]
    return words


def test_from_the_command_line(
    tasks: list[Task],
    mini: HartModel,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("hart.evaluation.states.COLLAPSED", -1.0)
    words = task_files(tasks[:2], tmp_path)
    output = tmp_path / "results.json"
    assert main(["evaluate", "mini", *words, "--diagnostics", "--output", str(output), "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert (
        "the same tasks under other adaptations" in printed and "warning: the states of consecutive layers" in printed
    )
    written = json.loads(output.read_text())
    assert mini.hypernetwork is not None and mini.hypernetwork.scheme is not None
    assert written["diagnostics"]["scheme"] == mini.hypernetwork.scheme.name and "diagnostics" not in written["details"]
    assert written["diagnostics"]["scores"][OWN].items() <= written["overall"].items()


def test_what_cannot_be_diagnosed_is_refused_before_the_work(
    tasks: list[Task], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words, output = task_files(tasks[:2], tmp_path), tmp_path / "results.json"

    def refusal(*arguments: str) -> str:
        assert main(["evaluate", *arguments, "--diagnostics", "--output", str(output), "--device", "cpu"]) == 2
        assert not output.exists()
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hart: error:")]
        return line

    assert "--diagnostics needs an adapted model" in refusal("mini-base", "--system", "base", *words)
    assert "give at least two" in refusal("mini", *words[:2])
    learned = model(weights="learned", fusion=False)
    learned.save_pretrained(tmp_path / "learned")
    assert "has no hypernetwork, which diagnosis needs" in refusal(str(tmp_path / "learned"), *words)
