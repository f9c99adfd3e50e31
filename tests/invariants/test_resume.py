"""A killed and resumed run equals an uninterrupted run, bit for bit."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hart.training import checkpoints, loop
from hart.training.checkpoints import CONSISTENCY_FILE
from hart.training.config import RunConfig
from hart.training.loop import Loop
from hart.training.run_folder import RunFolder, read_metrics
from hart.training.train import train

Build = Callable[..., RunConfig]

STEPS = 6
SAVED, KILLED = 2, 4
"""Step of the checkpoint to go on from, and a later step."""
TIMES = {"seconds_per_step"}

KILLED_AFTER_A_CHECKPOINT = f"""
import os, signal, sys
import torch
from hart.training.config import load
from hart.training import loop
from hart.training.train import train

save = loop.save_checkpoint
def save_and_die(running):
    save(running)
    if running.step == {SAVED}:
        os.kill(os.getpid(), signal.SIGKILL)
loop.save_checkpoint = save_and_die
train(load(sys.argv[1]), quiet=True)
"""


class Stopped(Exception):
    pass


# Dropout is what makes the random states matter; evaluation must not disturb them.
SETTINGS: dict[str, Any] = {
    "max_steps": STEPS,
    "save_every": SAVED,
    "alpha": 2.0,
    "micro_batch_size": 4,
    "num_threads": 1,
    "eval_every": 3,
    "eval_instances": 1,
    "data": {"validation_tasks": 1, "max_target_length": 8},
    "model": {"dropout": 0.2},
}


@pytest.fixture(scope="module")
def whole(build_config: Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing interrupted."""
    return train(build_config(tmp_path_factory.mktemp("whole") / "run", **SETTINGS), quiet=True).parent


def rows(run: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in TIMES} for row in read_metrics(run / "metrics.jsonl")]


def assert_same(run: Path, expected: Path) -> None:
    assert rows(run) == rows(expected)
    last = f"checkpoints/checkpoint-{STEPS}"
    for file in ("final/model.safetensors", "best/model.safetensors", f"{last}/{CONSISTENCY_FILE}"):
        found, wanted = load_file(run / file), load_file(expected / file)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], values) for name, values in wanted.items()), file
    found, wanted = (torch.load(path / last / "optimizer.pt", weights_only=True)["state"] for path in (run, expected))
    assert all(torch.equal(found[i][name], wanted[i][name]) for i in wanted for name in wanted[i])


def test_killed_after_a_checkpoint(run_config: Build, whole: Path, tmp_path: Path):
    config = run_config("killed", **SETTINGS)
    config.save(tmp_path / "config.yaml")
    command = [sys.executable, "-c", KILLED_AFTER_A_CHECKPOINT, str(tmp_path / "config.yaml")]
    killed = subprocess.run(command, env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    run = RunFolder(config)
    assert run.last_checkpoint() == run.checkpoints / f"checkpoint-{SAVED}" and not run.final.exists()
    train(config, quiet=True)
    assert_same(run.path, whole)


@pytest.mark.parametrize(
    ("owner", "name", "newest"),
    [(loop, "prediction_loss", KILLED), (checkpoints, "save_file", SAVED), (checkpoints.os, "replace", SAVED)],
    ids=["in a step", "while a checkpoint is written", "before it is moved to its place"],
)
def test_stopped_at_a_bad_moment(run_config: Build, whole: Path, monkeypatch, owner: Any, name: str, newest: int):
    original = getattr(owner, name)
    calls: list[Loop] = []
    begin = Loop.prepare

    def stop(*args: Any, **kwargs: Any) -> Any:
        # The step that is being computed, or has just been.
        if calls and calls[-1].step == KILLED:
            raise Stopped
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "prepare", lambda self, checkpoint: calls.append(self) or begin(self, checkpoint))
        patch.setattr(owner, name, stop)
        with pytest.raises(Stopped):
            train(run_config("stopped", **SETTINGS), quiet=True)
    run = RunFolder(run_config("stopped", **SETTINGS))
    assert run.last_checkpoint() == run.checkpoints / f"checkpoint-{newest}"
    train(run_config("stopped", **SETTINGS), quiet=True)
    assert_same(run.path, whole)


def test_killed_between_the_last_checkpoint_and_the_final_model(whole: Path, run_config: Build, tmp_path: Path):
    again = shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(again / "final")
    train(run_config(**SETTINGS), quiet=True)
    assert_same(again, whole)


def test_complete_run_is_left_as_it_is(run_config: Build):
    final = train(run_config(), quiet=True)
    times = {path: path.stat().st_mtime_ns for path in final.rglob("*")}
    metrics = (final.parent / "metrics.jsonl").read_text()
    assert train(run_config(), quiet=True) == final
    assert {path: path.stat().st_mtime_ns for path in final.rglob("*")} == times
    assert (final.parent / "metrics.jsonl").read_text() == metrics


def test_intervals_of_the_continued_command_count(run_config: Build, monkeypatch: pytest.MonkeyPatch):
    first = run_config(max_steps=STEPS, save_every=2, keep_checkpoints=9)
    with monkeypatch.context() as patch:
        loss = Loop.loss

        def stop(self: Loop, *args: Any) -> Any:
            if self.step == 2:
                raise Stopped
            return loss(self, *args)

        patch.setattr(Loop, "loss", stop)
        with pytest.raises(Stopped):
            train(first, quiet=True)
    final = train(run_config(max_steps=STEPS, save_every=3, log_every=2, keep_checkpoints=9), quiet=True)
    saved = sorted(path.name for path in (final.parent / "checkpoints").iterdir())
    assert saved == ["checkpoint-2", "checkpoint-3", "checkpoint-6"]
    assert [row["step"] for row in rows(final.parent)] == [1, 2, 4, 6]
