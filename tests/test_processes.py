"""Several processes of one command: they train together, and fail together."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hart.config import RunConfig
from hart.errors import HartError
from hart.processes import cpu_cores, run_hart, sensible_processes
from hart.run_folder import read_metrics
from hart.training import train

Build = Callable[..., RunConfig]

needs_gloo = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo")


@needs_gloo
def test_two_processes_train_what_one_does(run_config: Build, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    settings = {"alpha": 1.0, "max_steps": 2, "model": {"dropout": 0.0}}
    one = train(run_config("one", **settings), quiet=True).parent
    run_config("two", **settings).save(tmp_path / "two.yaml")
    run_hart(["train", str(tmp_path / "two.yaml"), "--device", "cpu"], 2)
    expected, found = (read_metrics(run / "metrics.jsonl") for run in (one, tmp_path / "two"))
    assert [row["loss"] for row in found] == pytest.approx([row["loss"] for row in expected], rel=1e-4)
    assert capfd.readouterr().out.count("trained model:") == 1, "the first process alone speaks"


@needs_gloo
def test_a_failure_in_them_is_one_here(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    with pytest.raises(HartError, match="the reason stands above"):
        run_hart(["train", str(tmp_path / "none.yaml")], 2)
    assert "none.yaml: no such configuration file" in capfd.readouterr().err


def test_how_many_are_sensible(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("hart.processes.cpu_cores", lambda: 4)
    assert sensible_processes(8) == (2 if torch.distributed.is_gloo_available() else 1)
    assert sensible_processes(7) == 1, "a step cannot be shared out"
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert sensible_processes(8) == 1, "this is one of several already"
    assert cpu_cores() >= 1
