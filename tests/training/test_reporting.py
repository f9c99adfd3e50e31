"""Reports of a running training: rows, losses of each step, a bar or lines, and collapsed states."""

import csv
import errno
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from accelerate.tracking import TensorBoardTracker

from hart.data.collections import load_tasks
from hart.errors import HartError
from hart.evaluation import states
from hart.training.config import RunConfig
from hart.training.run_folder import read_metrics
from hart.training.train import train

Build = Callable[..., RunConfig]

STEPS = 4  # of `run_config`
ALPHA = 3.0


def rows(run: Path) -> list[dict[str, Any]]:
    return read_metrics(run / "metrics.jsonl")


def test_losses_are_logged_apart_and_add_up(run_config: Build):
    config = run_config(alpha=ALPHA, log_every=2, micro_batch_size=4)
    logged = rows(train(config, quiet=True).parent)
    assert [row["step"] for row in logged] == [1, 2, 4]
    for row in logged:
        assert row["loss"] == pytest.approx(row["prediction_loss"] + ALPHA * row["consistency_loss"])
        assert row["seconds_per_step"] > 0
    assert logged[0]["consistency_loss"] == 0 < logged[1]["consistency_loss"]


def test_steps_csv_has_the_losses_of_each_step(run_config: Build):
    often = train(run_config("often", alpha=ALPHA, log_every=1, micro_batch_size=4), quiet=True).parent
    seldom = train(run_config("seldom", alpha=ALPHA, log_every=3, micro_batch_size=4, save_every=2), quiet=True).parent
    assert (seldom / "steps.csv").read_text() == (often / "steps.csv").read_text()
    with (often / "steps.csv").open(encoding="utf-8") as file:
        steps = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    names = ("step", "loss", "prediction_loss", "consistency_loss")
    assert steps == [{name: row[name] for name in names} for row in rows(often)]
    assert rows(seldom)[1]["loss"] == pytest.approx(fmean(row["loss"] for row in steps[1:3]))


def test_rows_of_longer_intervals_are_means_of_the_steps(run_config: Build):
    each = rows(train(run_config("each"), quiet=True).parent)
    pairs = rows(train(run_config("pairs", log_every=2), quiet=True).parent)
    for name in ("loss", "prediction_loss", "consistency_loss"):
        mean = (each[2][name] + each[3][name]) / 2
        assert pairs[-1][name] == pytest.approx(mean)


def test_a_tracker_that_cannot_write_is_one_line(run_config: Build, monkeypatch: pytest.MonkeyPatch):
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    config = run_config(trackers=["tensorboard"])
    with monkeypatch.context() as patch:
        patch.setattr(TensorBoardTracker, "log", full)
        patch.setattr(TensorBoardTracker, "finish", full)
        with pytest.raises(HartError, match="training.trackers: tensorboard cannot write .*No space left.*; fix this"):
            train(config, quiet=True)
    assert train(config, quiet=True).is_dir()


def test_progress_bar_shows_the_losses(run_config: Build, capsys: pytest.CaptureFixture[str], monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    train(run_config(), quiet=False)
    shown = capsys.readouterr().err
    assert "L_pred " in shown and "L_cst " in shown and f"{STEPS}/{STEPS}" in shown


def test_without_a_terminal_a_start_line_and_a_line_per_interval(run_config: Build, capsys: pytest.CaptureFixture[str]):
    config = run_config(log_every=2)
    train(config, quiet=False)
    start, *lines = capsys.readouterr().err.splitlines()
    assert start.startswith("training ") and f"for the base {config.model.base}: 4 steps of 8 queries, float32" in start
    assert "3 tasks" in start and start.endswith("1 × cpu (replicated)")
    assert [line.partition(":")[0] for line in lines] == ["step 1/4", "step 2/4", "step 4/4"]
    assert all("loss " in line and "L_pred " in line and "L_cst " in line for line in lines)


def test_rows_say_what_their_means_are_over(run_config: Build):
    each, pairs = (rows(train(run_config(f"in-{n}", log_every=n), quiet=True).parent) for n in (1, 2))
    assert [row["steps"] for row in each] == [1] * STEPS and [row["steps"] for row in pairs] == [1, 1, 2]
    assert pairs[-1]["tokens"] == each[-1]["tokens"] + each[-2]["tokens"] > 0


@pytest.mark.parametrize("name", ["wandb", "trackio", "mlflow"])
def test_a_tracker_that_is_missing_is_named(run_config: Build, tmp_path: Path, monkeypatch, name: str):
    monkeypatch.setattr("hart.training.reporting.importlib.util.find_spec", lambda _: None)
    with pytest.raises(HartError, match=f"^training.trackers: {name} is not installed; pip install {name}, or leave"):
        train(run_config(trackers=[name]), quiet=True)
    assert not (tmp_path / "run").exists()


def test_rows_say_whether_states_differ(run_config: Build):
    logged = rows(train(run_config(), quiet=True).parent)
    assert all(-1 <= row["layer_cosine"] <= 1 and 0 <= row["row_variance"] <= 1 for row in logged)
    shared = rows(train(run_config("shared", model={"scheme": {"name": "shared"}}), quiet=True).parent)
    assert all("layer_cosine" not in row and "row_variance" in row for row in shared)
    alone = rows(train(run_config("alone", model={"peft": []}), quiet=True).parent)
    assert not any("row_variance" in row for row in alone)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("COLLAPSED", -1.0, "the states of consecutive layers are almost equal"),
        ("ALIKE", 1.1, "hardly differ between tasks"),
    ],
)
def test_a_collapse_is_warned_of_once_at_the_end(
    run_config: Build,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    name: str,
    value: float,
    says: str,
):
    with caplog.at_level(logging.WARNING):
        sound = train(run_config("sound", model={"scheme": {"name": "causal"}}), quiet=True)
        monkeypatch.setattr(states, name, value)
        collapsed = train(run_config("collapsed", model={"scheme": {"name": "causal"}}), quiet=True)
    warned = [record.getMessage() for record in caplog.records if says in record.getMessage()]
    assert len(warned) == 1 and f"hart evaluate {collapsed} --diagnostics" in warned[0] and str(sound) not in warned[0]


def test_of_a_single_task_it_is_not_said_that_tasks_hardly_differ(
    run_config: Build, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """All rows are that task's; what is wrong is that there is one, which is said before the first step."""
    monkeypatch.setattr(states, "ALIKE", 1.1)
    config = run_config(model={"scheme": {"name": "causal"}})
    task = load_tasks(config.data, "train")[0]
    with caplog.at_level(logging.WARNING):
        train(config, tasks=[task], quiet=True)
    told = [record.getMessage() for record in caplog.records]
    assert [text for text in told if "hardly differ" in text] == []
    assert [text for text in told if text.startswith(f"{task.name} is the only training task")] == told[:1] != []
