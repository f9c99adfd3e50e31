"""Runs that are stopped from outside: saved, reported, and resumed with equal results."""

import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hart.cli import main
from hart.errors import HartError
from hart.runtime.files import damage
from hart.training import loop
from hart.training.checkpoints import _rotate
from hart.training.config import RunConfig
from hart.training.loop import Loop
from hart.training.run_folder import RunFolder, read_metrics
from hart.training.stopping import Stopped, memory_error
from hart.training.train import train

Build = Callable[..., RunConfig]
SETTINGS: dict[str, Any] = {"max_steps": 5, "save_every": 4, "alpha": 1.0, "num_threads": 1}


@pytest.fixture(autouse=True)
def in_the_foreground() -> Iterator[None]:
    """Of a job in the background Ctrl-C is ignored, and so is it of the tests in one."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(params=[signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def terminated_in_step_2(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> signal.Signals:
    compute = Loop.loss

    def terminate(self: Loop, *args: Any) -> Any:
        if self.step == 1:
            os.kill(os.getpid(), request.param)
        return compute(self, *args)

    monkeypatch.setattr(Loop, "loss", terminate)
    return request.param


def test_a_signal_saves_and_the_run_goes_on_bit_for_bit(
    run_config: Build, tmp_path: Path, terminated_in_step_2: signal.Signals, monkeypatch: pytest.MonkeyPatch
):
    handler = signal.getsignal(terminated_in_step_2)
    config = run_config("cut", **SETTINGS)
    with pytest.raises(Stopped, match="after step 2"):
        train(config, quiet=True)
    assert signal.getsignal(terminated_in_step_2) is handler
    assert (tmp_path / "cut" / "checkpoints" / "checkpoint-2").is_dir() and not (tmp_path / "cut" / "final").exists()
    monkeypatch.undo()
    resumed, whole = train(config, quiet=True), train(run_config("whole", **SETTINGS), quiet=True)
    one, other = (load_file(folder / "model.safetensors") for folder in (resumed, whole))
    assert all(torch.equal(one[name], other[name]) for name in other)
    losses = [
        [row["loss"] for row in read_metrics(f.parent / "metrics.jsonl") if "loss" in row] for f in (resumed, whole)
    ]
    assert losses[0] == losses[1]


def test_a_second_interruption_ends_at_once(run_config: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupt(*_: Any) -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)

    monkeypatch.setattr(Loop, "loss", interrupt)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(run_config("cut", **SETTINGS), quiet=True)
    assert signal.getsignal(signal.SIGINT) is handler and not list((tmp_path / "cut").glob("checkpoints/*"))


def test_a_signal_to_the_whole_group_leaves_data_workers_at_work(
    run_config: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As Slurm sends it, or a terminal: to each process, and not by the run itself."""
    compute = Loop.loss

    def terminate(self: Loop, *args: Any) -> Any:
        if self.step == 1:
            workers = [str(child.pid) for child in multiprocessing.active_children()]
            assert len(workers) == 2
            subprocess.run(["kill", "-TERM", *workers, str(os.getpid())], check=True)
            time.sleep(1)  # for a worker to die, and torch to tell
        return compute(self, *args)

    monkeypatch.setattr(Loop, "loss", terminate)
    with pytest.raises(Stopped, match="after step 2"):
        train(run_config("cut", **SETTINGS, num_workers=2), quiet=True)
    assert (tmp_path / "cut" / "checkpoints" / "checkpoint-2").is_dir()


@pytest.mark.parametrize("moment", ["in the exchange", "before the first step", "while it evaluates"])
def test_a_signal_at_any_moment_is_heard(
    run_config: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
):
    """One that comes after a step has asked for it ends the next one, which is saved."""
    place, name = {
        "in the exchange": (loop, "anywhere"),
        "before the first step": (Loop, "prepare"),
        "while it evaluates": (Loop, "due"),
    }[moment]
    stock, came = getattr(place, name), []

    def terminate(*args: Any) -> Any:
        answer = stock(*args)  # asked first: the signal comes too late for this answer
        if not came:
            came.append(True)
            os.kill(os.getpid(), signal.SIGTERM)
        return answer

    monkeypatch.setattr(place, name, terminate)
    with pytest.raises(Stopped) as stopped:
        train(run_config("cut", **SETTINGS), quiet=True)
    step = 1 if moment == "before the first step" else 2
    assert f"after step {step}," in str(stopped.value)
    assert (tmp_path / "cut" / "checkpoints" / f"checkpoint-{step}").is_dir()


def test_rotation_keeps_what_was_just_written(run_config: Build):
    run = RunFolder(run_config("rotated"))
    for name in ("100", "150", "200", "best-900", "120.bak"):
        (run.checkpoints / f"checkpoint-{name}").mkdir(parents=True)
    _rotate(run, 1, 150)  # 200 is of a run that went back behind it
    assert sorted(path.name[11:] for path in run.checkpoints.iterdir()) == ["120.bak", "150", "200", "best-900"]


def test_the_command_says_so(run_config: Build, tmp_path: Path, terminated_in_step_2: signal.Signals, capsys):
    run_config("cut", **SETTINGS).save(tmp_path / "config.yaml")
    assert main(["train", str(tmp_path / "config.yaml"), "--device", "cpu"]) == 128 + terminated_in_step_2
    assert "stopped by a signal after step 2" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    run_config: Build, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    config = run_config("run", max_steps=6, save_every=2, num_threads=1, keep_checkpoints=3)
    expected = load_file(train(config, quiet=True) / "model.safetensors")
    run = tmp_path / "run"
    for name in ("final/config.json", "final/model.safetensors", "final/README.md"):
        (run / name).unlink()
    (run / "final").rmdir()
    for step, wrong in ((6, "optimizer.pt"), (4, "state.json")):
        path = run / "checkpoints" / f"checkpoint-{step}" / wrong
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(bytes(content))
    again = load_file(train(config, quiet=True) / "model.safetensors")
    assert all(torch.equal(again[name], expected[name]) for name in expected)
    told = [record.getMessage() for record in caplog.records if "damaged" in record.getMessage()]
    assert len(told) == 2 and "checkpoint-6: damaged (optimizer.pt)" in told[0]
    assert "checkpoint-4: damaged (state.json)" in told[1]


def test_too_little_memory_is_one_line_with_advice(run_config: Build, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError(
            "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"
        )

    monkeypatch.setattr(Loop, "loss", fail)
    with pytest.raises(
        HartError, match="out of memory in training; set training.micro_batch_size below 8, model.grad"
    ) as told:
        train(run_config(), quiet=True)
    monkeypatch.undo()
    continues, _, anew = str(told.value).partition("start anew in another training.output_dir")
    assert "training.bf16 true" in anew and "bf16" not in continues and "gradient_checkpointing true" in continues
    with pytest.raises(HartError, match="holds a run with another configuration .training.bf16 was False"):
        train(run_config(bf16=True), quiet=True)
    train(run_config(micro_batch_size=4, model={"gradient_checkpointing": True}), quiet=True)
    assert memory_error(RuntimeError("size mismatch"), run_config("other")) is None
    assert memory_error(torch.OutOfMemoryError("CUDA"), run_config("third")) is not None


def test_a_full_disk_keeps_the_checkpoint_before(run_config: Build, tmp_path: Path):
    """On a real small file system, which only root can make."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no permission to mount a small file system")
    try:
        config = run_config("disk/run", max_steps=6, save_every=2, num_threads=1, keep_checkpoints=2)
        with pytest.raises(HartError, match=r"checkpoint-\d: cannot be written .*free some space and run the comm"):
            train(config, quiet=True)
        run = RunFolder(config)
        kept = run.last_checkpoint()
        assert kept is not None and damage(kept) is None
        assert [path.name for path in run.checkpoints.iterdir()] == [kept.name], "nothing half-written is left"
        subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)
        final = train(config, quiet=True)
        whole = train(run_config("whole", max_steps=6, save_every=2, num_threads=1), quiet=True)
        one, other = (load_file(folder / "model.safetensors") for folder in (final, whole))
        assert all(torch.equal(one[name], other[name]) for name in other)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)
