"""P3 end to end: every kind of system trains on it and is scored by rank classification."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hart import HartModel
from hart.data.collections import load_tasks
from hart.data.p3.subsets import load_p3
from hart.evaluation.choices import CHOICES
from hart.evaluation.run import evaluate
from hart.evaluation.systems import base_system, hart_system
from hart.runtime.sections import FieldError
from hart.training.config import DataConfig, RunConfig
from hart.training.run_folder import read_metrics
from hart.training.sweep_run import run_one
from hart.training.train import train, training_examples

Build = Callable[..., RunConfig]

SYSTEMS: dict[str, tuple[dict[str, Any], str]] = {
    "hart": ({}, "hypernetwork"),
    "hypertuning-pt": ({"scheme": {"name": "shared"}, "fusion": False}, "hypernetwork"),
    "ft-few-shot": ({"weights": "none", "train_main": True, "fusion": False, "peft": []}, "main"),
    "ft-zero-shot": ({"weights": "none", "train_main": True, "fusion": False, "peft": []}, "nowhere"),
    "lora": ({"weights": "learned", "fusion": False, "peft": [{"kind": "lora", "rank": 2}]}, "main"),
}


@pytest.fixture
def p3_config(run_config: Build, toy_p3_dir: Path) -> Build:
    def build(name: str = "hart", data: dict[str, Any] | None = None, **training: Any) -> RunConfig:
        model, to = SYSTEMS[name]
        own = {
            "collection": "p3",
            "dir": str(toy_p3_dir),
            "demonstrations": "sampled",
            "num_demonstrations": 3,
            "demonstrations_to": to,
            "max_train_instances": None,
            "max_test_instances": None,
        }
        generated = to == "hypernetwork"
        return run_config(name, model=model, data={**own, **(data or {})}, **{"alpha": float(generated), **training})

    return build


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_system_trains_and_chooses(name: str, p3_config: Build):
    config = p3_config(name, max_steps=2)
    model = HartModel.from_pretrained(train(config, quiet=True))
    assert not model.input_format.input_eos and model.input_format.prompt_format == "prompts"
    tasks = load_tasks(config.data, "test")
    results = evaluate(hart_system(model, batch_size=4), tasks, CHOICES)
    assert list(results.columns()) == ["CB", "COPA"]
    # What `model.score` says of one query is what the evaluation compares.
    adaptation = model.adapt(tasks[0])
    query = tasks[0].instances[2]
    scores = model.score(query.input, query.choices, adaptation)
    assert results.tasks[0].instances[2].scores == pytest.approx(scores, abs=1e-4)
    # A saved adaptation reads queries in the same way.
    folder = Path(config.training.output_dir) / "adaptation"
    adaptation.save_pretrained(folder)
    again = type(adaptation).from_pretrained(folder)
    assert model.score(query.input, query.choices, again) == pytest.approx(scores, abs=1e-5)
    other = type(adaptation).stack([again, model.adapt(tasks[1])])
    assert len(other) == 2


def test_examples_are_prompts_without_definition(p3_config: Build, tiny_tokenizer):
    config = p3_config(max_steps=1)
    tasks = load_tasks(config.data, "train")
    dataset = training_examples(config, tasks, tiny_tokenizer)
    example = dataset[0]
    eos = tiny_tokenizer.eos_token_id
    assert example["query_ids"][-1] != eos and example["labels"][-1] == eos
    assert example["demo_ids"][0].count(eos) == 3
    assert "Definition" not in tiny_tokenizer.decode(example["demo_ids"][0])


def test_long_subsets_are_left_out_and_listed(p3_config: Build, toy_p3_dir: Path, caplog: pytest.LogCaptureFixture):
    config = p3_config(max_steps=1, data={"max_average_length": 22})
    final = train(config, quiet=True)
    listed = json.loads((final.parent / "excluded.json").read_text())
    assert listed["max_average_length"] == 22
    excluded = set(listed["tasks"])
    assert excluded and all(average > 22 for average in listed["tasks"].values())
    everything = {task.name for task in load_p3(toy_p3_dir, "train")}
    assert excluded < everything
    assert any("of more than 22 tokens on average are left out" in message for message in caplog.messages)


def test_validation_is_by_accuracy(p3_config: Build):
    config = p3_config(max_steps=2, eval_every=1, eval_instances=4, data={"validation_tasks": 1})
    final = train(config, quiet=True)
    found = [row["eval_accuracy"] for row in read_metrics(final.parent / "metrics.jsonl") if "eval_accuracy" in row]
    assert len(found) == 2 and all(0 <= value <= 100 for value in found)
    assert (final.parent / "best" / "config.json").is_file()


def test_sweep_compares_accuracies(p3_config: Build, tmp_path: Path):
    config = p3_config(max_steps=1)
    config.save(tmp_path / "config.yaml")
    assert run_one(str(tmp_path / "config.yaml"), str(tmp_path / "results.json")) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert 0 <= results["accuracy"] <= 100
    assert set(results["tasks"]["super_glue_copa_best_option"]) == {"accuracy", "instances"}


def test_base_scores_in_and_out_of_context(p3_config: Build):
    config = p3_config(max_steps=1)
    model = HartModel.from_config(config.model, config.data).eval()
    (task,) = [t for t in load_tasks(config.data, "test") if "cause" in t.name]
    alone, shown = (base_system(model.main, model.input_format, in_context=c).score(task) for c in (False, True))
    assert alone != shown and [len(own) for own in alone] == [2] * 6
    mean = base_system(model.main, model.input_format, in_context=False, normalisation="mean").score(task)
    tokens = [len(model.main.tokenizer(choice).input_ids) for choice in task.instances[0].choices]
    assert [m * n for m, n in zip(mean[0], tokens, strict=True)] == pytest.approx(alone[0], rel=1e-4)


def test_a_model_of_definitions_says_that_a_task_has_none(
    build_config: Build, toy_p3_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    config = build_config(tmp_path)
    model = HartModel.from_config(config.model, config.data)
    model.adapt(load_p3(toy_p3_dir, "test")[0])
    assert "super_glue_cb_can_we_infer: has no definition, which every training task of the model had" in caplog.text


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "data.demonstrations: must be sampled with p3"),
        ({"demonstrations": "sampled", "num_demonstrations": 0}, "data.num_demonstrations: is 0, and p3 has no"),
        ({"demonstrations": "sampled", "explanations": True}, "data.explanations: must be false with p3"),
        (
            {"collection": "sni", "train_subsets": ["x"]},
            "data.train_subsets: has no effect where data.collection is sni",
        ),
    ],
)
def test_configurations_that_p3_cannot_serve(values: dict, message: str):
    with pytest.raises(FieldError, match=message):
        DataConfig(**{"collection": "p3", **values})
    assert DataConfig(collection="p3", demonstrations_to="nowhere").prompt_format == "prompts"
    assert DataConfig().changed(input_eos=False).input_eos is False
