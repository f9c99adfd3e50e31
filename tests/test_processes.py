"""Several processes of one command: they train together, and fail together."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hart.config import RunConfig
from hart.errors import HartError
from hart.processes import cpu_cores, free_port, run_hart, sensible_processes
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


ENDING = """
import atexit, sys
from hart.processes import end_with

class Taken:
    def __del__(self):
        print("taken apart")

def command():
    import builtins
    builtins.held = Taken()  # lives until the interpreter takes itself apart
    atexit.register(print, "handlers run")
    {end}

end_with(command)
"""


@pytest.mark.parametrize(
    ("end", "status"),
    [
        ("return 0", 0),
        ("return", 0),
        ("return 2", 2),
        ("sys.exit(143)", 143),
        ("sys.exit()", 0),
        ("sys.exit('x')", 1),
        ("1 / 0", 1),
    ],
)
@pytest.mark.parametrize("launched", [True, False])
def test_a_launched_process_ends_after_pythons_handlers(
    end: str, status: int, launched: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if launched:
        monkeypatch.setenv("WORLD_SIZE", "2")
    ended = subprocess.run([sys.executable, "-c", ENDING.format(end=end)], capture_output=True, text=True)
    assert ended.returncode == status
    assert ended.stdout.split("\n")[:-1] == ["handlers run"] + ["taken apart"] * (not launched)
    assert ("ZeroDivisionError" in ended.stderr) == (end == "1 / 0")


COLLECTIVES = """
import sys, torch
from hart.processes import end_with

def command():
    torch.distributed.init_process_group("gloo")
    torch._held = torch.distributed.group.WORLD  # as the gradients' reducer holds it
    sys.setswitchinterval(100)  # whoever waits for the interpreter waits longer: the collision is more frequent
    for _ in range(20):
        torch.distributed.all_gather_into_tensor(torch.empty(128), torch.ones(64), async_op=True).wait()
    return 0

end_with(command)
"""


@needs_gloo
def test_a_collective_just_before_the_end_aborts_nobody():
    """Where the interpreter takes itself apart, about one such process in five dies with all its work done."""
    for _ in range(3):
        port = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
        members = [
            subprocess.Popen(
                [sys.executable, "-W", "ignore", "-c", COLLECTIVES],
                env={**os.environ, **port, "WORLD_SIZE": "2", "RANK": str(rank)},
            )
            for rank in range(2)
        ]
        assert [member.wait(timeout=120) for member in members] == [0, 0]
