"""Runs with distractors: their targets are the base's answers, generated once per run."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import debug_launcher

from hart.errors import HartError
from hart.model.hart_model import HartModel
from hart.training.config import RunConfig
from hart.training.distractors import FILE, base_answers, encoded
from hart.training.run_folder import read_metrics
from hart.training.train import train

Build = Callable[..., RunConfig]
QUERIES = [f"number {number} of the queries" for number in range(20)]


@pytest.fixture
def distracted(run_config: Build, tmp_path: Path) -> Build:
    """As `run_config`, with distractors in half of the queries."""
    path = tmp_path / "distractors.txt"
    path.write_text("\n".join(QUERIES))

    def build(name: str = "run", **settings: Any) -> RunConfig:
        return run_config(name, **settings, data={"distractors": str(path), "distractor_share": 0.5})

    return build


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(run / "metrics.jsonl")]


def without_last_step(run: Path) -> None:
    shutil.rmtree(run / "final")
    shutil.rmtree(max((run / "checkpoints").iterdir(), key=lambda each: int(each.name[11:])))


def test_the_targets_are_what_the_base_answers(distracted: Build):
    config = distracted()
    run = train(config, quiet=True).parent
    answers = json.loads((run / FILE).read_text())
    assert list(answers) == [query for at, query in enumerate(QUERIES, 1) if at % 10]
    main = HartModel.from_config(config.model, config.data).main
    said = main.generate(list(answers), max_new_tokens=config.data.max_target_length)
    assert list(answers.values()) == said
    pairs = encoded(main, config.data, answers)
    assert [main.tokenizer.decode(query, skip_special_tokens=True) for query, _ in pairs] == list(answers)
    assert all(target[-1] == main.tokenizer.eos_token_id for _, target in pairs)


def test_they_change_the_run_and_a_run_that_goes_on_repeats_it(
    distracted: Build, run_config: Build, monkeypatch: pytest.MonkeyPatch
):
    run = train(distracted(), quiet=True).parent
    whole = losses(run)
    assert whole != losses(train(run_config("without"), quiet=True).parent)
    without_last_step(run)
    monkeypatch.setattr("hart.model.main_model.MainModel.generate", None)  # the base is not asked again
    assert losses(train(distracted(), quiet=True).parent) == whole


@pytest.mark.parametrize("complete", [True, False])
def test_other_distractors_than_the_run_began_with_are_refused(distracted: Build, tmp_path: Path, complete: bool):
    run = train(distracted(), quiet=True).parent
    if not complete:
        without_last_step(run)
    (tmp_path / "distractors.txt").write_text("\n".join(QUERIES[::-1]))
    with pytest.raises(HartError, match=r"run: the file of data\.distractors has changed since the run began"):
        train(distracted(), quiet=True)
    if complete:
        (tmp_path / "distractors.txt").unlink()
        assert train(distracted(), quiet=True) == run / "final", "a complete run does without the file"


@pytest.mark.parametrize("share", [0.5, 0.0])
def test_a_file_that_cannot_be_used_is_refused_before_anything_is_loaded(
    run_config: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float
):
    path = tmp_path / "distractors.txt"
    path.write_text("one\n")
    monkeypatch.setattr("hart.training.train.HartModel", None)
    with pytest.raises(HartError, match="holds 1 different distractors"):
        train(run_config(data={"distractors": str(path), "distractor_share": share}), quiet=True)
    assert not (tmp_path / "run").exists() or not any((tmp_path / "run").glob("[!.]*"))


def test_the_base_answers_on_the_device_of_the_run_and_goes_back(
    distracted: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config, moved = distracted(), []
    main = HartModel.from_config(config.model, config.data).main
    monkeypatch.setattr(main, "to", moved.append)
    answers = base_answers(main, config.data, tmp_path, torch.device("meta"))
    assert moved == [torch.device("meta"), torch.device("cpu")] and len(answers) == 18


def in_this_process(config: RunConfig) -> None:
    train(config, quiet=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a forked process cannot use a GPU that its parent may use")
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo")
def test_two_processes_equal_one(distracted: Build, tmp_path: Path):
    settings = {"batch_size": 8, "num_threads": 1, "model": {"dropout": 0.0}}
    one = train(distracted("one", **settings), quiet=True).parent
    debug_launcher(in_this_process, (distracted("two", **settings),), num_processes=2)
    assert losses(tmp_path / "two") == pytest.approx(losses(one), rel=1e-4)
