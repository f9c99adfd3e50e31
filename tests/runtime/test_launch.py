"""Several processes of one command train together and fail together."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import Forked

from hart.errors import HartError
from hart.runtime.launch import cpu_cores, free_port, on_sigterm, run_hart, sensible_processes
from hart.training.config import RunConfig
from hart.training.run_folder import read_metrics
from hart.training.train import train

Build = Callable[..., RunConfig]

needs_gloo = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo")


def test_sigterm_is_handled_within_and_ends_the_process_again_after():
    before, calls = signal.getsignal(signal.SIGTERM), []
    with on_sigterm(lambda: calls.append("handled")) as told:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
    assert calls == ["handled"] * 2 and told == [signal.SIGTERM] * 2
    assert signal.getsignal(signal.SIGTERM) is before


def test_other_threads_leave_signals_alone():
    before, found = signal.getsignal(signal.SIGTERM), []

    def run() -> None:
        with on_sigterm() as told:
            found.append((told, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [([], before)]


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
    with pytest.raises(HartError, match="see the reason above"):
        run_hart(["train", str(tmp_path / "none.yaml")], 2)
    assert "none.yaml: no such configuration file" in capfd.readouterr().err


@pytest.mark.parametrize(("said", "each"), [(None, "8"), ("6", "3"), ("1", "1"), ("4,2", "2"), ("many", "8")])
def test_they_share_the_threads_of_this_one(monkeypatch: pytest.MonkeyPatch, said: str | None, each: str):
    """A job of a sweep has a share of the cores already."""
    given: list[str] = []

    class Started:
        returncode = 0

        def __init__(self, _: object, env: dict[str, str]) -> None:
            given.append(env["OMP_NUM_THREADS"])

        def poll(self) -> int:
            return 0

        def wait(self) -> None: ...

    monkeypatch.setattr("hart.runtime.launch.cpu_cores", lambda: 16)
    monkeypatch.setattr("hart.runtime.launch.subprocess.Popen", Started)
    if said is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", said)
    run_hart(["train"], 2)
    assert given == [each, each]


@pytest.mark.parametrize("other", [2, -9])
def test_after_an_interruption_no_process_waits_for_one_that_has_failed(monkeypatch: pytest.MonkeyPatch, other: int):
    """The first is interrupted and cannot save, as memory is short; the second would wait for it for ever."""
    killed: list[int] = []

    class Member:
        started = 0

        def __init__(self, *_: object, **__: object) -> None:
            self.rank, self.polls, self.returncode = Member.started, 0, None
            Member.started += 1

        def poll(self) -> int | None:
            self.polls += 1
            if self.rank == 0 and self.polls == 1:
                raise KeyboardInterrupt
            return other if self.rank == 0 else self.returncode

        def terminate(self) -> None: ...

        def kill(self) -> None:
            killed.append(self.rank)
            self.returncode = -9

        def wait(self) -> None: ...

    monkeypatch.setattr("hart.runtime.launch.subprocess.Popen", Member)
    with pytest.raises(KeyboardInterrupt):
        run_hart(["train"], 2)
    assert killed == [1]


def test_how_many_are_sensible(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("hart.runtime.launch.cpu_cores", lambda: 4)
    assert sensible_processes(8) == (2 if torch.distributed.is_gloo_available() else 1)
    assert sensible_processes(7) == 1, "a step cannot be shared out"
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert sensible_processes(8) == 1, "this is one of several already"
    assert cpu_cores() >= 1


ENDING = """
import atexit, sys
from hart.runtime.launch import end_with

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
from hart.runtime.launch import end_with

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


FAILING = """
import dataclasses, sys
from pathlib import Path
import torch
from hart.training import checkpoints, loop
from hart.cli import main
from hart.data.sampling import TrainingDataset
from hart.errors import HartError
from hart.runtime.launch import end_with
import hart.training.train as training

where, who, config = sys.argv[1], int(sys.argv[2]), sys.argv[3]
import os
failing = int(os.environ["RANK"]) == who

def setup(*args, **kwargs):
    raise HartError("tasks/twice.json: cannot be read")

make = TrainingDataset.__getitem__
def data(self, index):
    if index >= 16:  # step 3
        raise HartError("task twice: row 7 is wrong")
    return make(self, index)

loss = loop.prediction_loss
calls = 0
def not_finite(logits, labels):
    global calls
    calls += 1
    total, count = loss(logits, labels)
    return (total * float("nan") if calls == 3 else total), count

def memory(logits, labels):
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

def disk(*args, **kwargs):
    raise OSError(28, "No space left on device")

def answers(*args, **kwargs):
    raise HartError("task first: cannot be answered")

if failing:
    if where == "setup": training.load_tasks = setup
    if where == "data": TrainingDataset.__getitem__ = data
    if where == "loss": loop.prediction_loss = not_finite
    if where == "memory": loop.prediction_loss = memory
    if where == "disk": checkpoints.save_file = disk
    if where == "evaluation":
        import hart.evaluation.run
        from hart.evaluation.base import System
        hart.evaluation.run.hart_system = lambda *_, **__: System("hart", answers, answers)
end_with(lambda: main(["train", config, "--device", "cpu"]))
"""

FAILURES = {
    "setup": "hart: error: tasks/twice.json: cannot be read",
    "folder": "hart: error: .*two: exists with other content; choose another training.output_dir",
    "data": "hart: error: task twice: row 7 is wrong",
    "loss": "hart: error: step 3: the loss is nan on a batch of the tasks ",
    "memory": "hart: error: .*(out of memory in training|can't allocate memory)",
    "disk": "hart: error: .*checkpoint-2: cannot be written .*No space left on device.*free some space",
    "evaluation": "hart: error: task first: cannot be answered",
}


@needs_gloo
@pytest.mark.parametrize(
    ("where", "who"),
    [("setup", 1), ("folder", 0), ("data", 1), ("loss", 1), ("memory", 1), ("disk", 0), ("disk", 1), ("evaluation", 1)],
)
def test_a_failure_of_one_process_ends_all_with_its_message(run_config: Build, tmp_path: Path, where: str, who: int):
    """Nobody kills the others, as under `srun` without --kill-on-bad-exit: they end by themselves."""
    settings: dict[str, Any] = {"eval_every": 1, "eval_instances": 2} if where == "evaluation" else {}
    data = {"validation_tasks": 2} if where == "evaluation" else {}
    run_config("two", num_threads=1, data=data, **settings).save(tmp_path / "two.yaml")
    if where == "folder":
        (tmp_path / "two").mkdir()
        (tmp_path / "two" / "thesis.tex").touch()
    port = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    errors = [tmp_path / f"errors-{rank}" for rank in range(2)]
    members = [
        Forked(
            [sys.executable, "-c", FAILING, where, str(who), str(tmp_path / "two.yaml")],
            {**os.environ, **port, "WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)},
            errors[rank],
        )
        for rank in range(2)
    ]
    try:
        for member in members:
            member.wait(timeout=120)
    finally:
        for member in members:
            member.kill()
    ended = [path.read_text(encoding="utf-8") for path in errors]
    assert [member.returncode for member in members] == [2, 2], ended
    for text in ended:
        assert "Traceback" not in text
        (line,) = [line for line in text.splitlines() if line.startswith("hart: error")]
        assert re.match(FAILURES[where], line), line
    if where in ("setup", "folder"):
        left = [path.name for path in (tmp_path / "two").iterdir()] if (tmp_path / "two").exists() else []
        assert left == ["thesis.tex"] * (where == "folder")
