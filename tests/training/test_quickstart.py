"""The quickstart end to end on the bundled base, with a few steps and tasks."""

import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from hart.data.procedural import Combination, combinations
from hart.data.tasks import Task
from hart.model.hart_model import HartModel
from hart.training import quickstart as module
from hart.training.config import DataConfig, load
from hart.training.quickstart import NEW_TASK, quickstart, quickstart_config

CONFIG = Path(__file__).parents[2] / "configs" / "mini" / "hart_procedural.yaml"
TASKS, INSTANCES = 2, 2


def test_the_yaml_file_is_the_quickstart() -> None:
    config = load(CONFIG)
    assert config == quickstart_config(config.training.output_dir)


def test_the_new_task_is_no_training_task() -> None:
    for combination in combinations("train"):
        answers = [_answer(combination, demonstration.input) for demonstration in NEW_TASK.demonstrations]
        assert answers != [demonstration.output for demonstration in NEW_TASK.demonstrations]


def _answer(combination: Combination, text: str) -> str | None:
    try:
        return combination.answer(text)
    except (ValueError, KeyError, IndexError, StopIteration):
        return None  # the combination is for inputs of another kind


def test_processes_of_a_folder_that_has_moved_train_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[str] = []

    def note(words: list[str], _: int) -> None:
        given.append(load(words[1]).training.output_dir)

    monkeypatch.setattr(module, "run_hart", note)
    for name in ("first", "moved"):
        module._train(quickstart_config(str(tmp_path / name)), 2)
        (tmp_path / "first").rename(tmp_path / "moved") if name == "first" else None
    assert given == [str(tmp_path / "first"), str(tmp_path / "moved")]


def test_it_trains_evaluates_plots_and_adapts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_all = module.load_tasks

    def load_few(data: DataConfig, split: str) -> list[Task]:
        return load_all(data, split)[:TASKS]

    monkeypatch.setattr(module, "load_tasks", load_few)
    config = quickstart_config(str(tmp_path / "run"))
    config = config.changed(training={"max_steps": 2, "batch_size": 8, "trackers": []})
    text = io.StringIO()
    chosen = torch.device("cpu", 0)
    monkeypatch.setattr(module, "select_device", lambda: chosen)
    devices: list[object] = []
    load = HartModel.from_pretrained
    monkeypatch.setattr(
        HartModel, "from_pretrained", lambda name, device=None: devices.append(device) or load(name, device=device)
    )

    result = quickstart(config, Console(file=text, width=120), instances=INSTANCES)

    assert [r.overall.instances for r in result.results] == [TASKS * INSTANCES] * len(result.results)
    written = json.loads((result.folder / "results.json").read_text())
    assert written["systems"]["HART"] == vars(result.results[-1].overall)
    assert len(written["tasks"]) == TASKS
    for name in ("losses.png", "tasks.png"):
        assert (result.folder / name).read_bytes().startswith(b"\x89PNG")
    assert NEW_TASK.definition in text.getvalue()
    assert "adapted in" in text.getvalue()
    assert devices == [chosen]
