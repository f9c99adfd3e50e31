"""Fixtures: sweeps whose runs have no separate processes."""

from contextlib import redirect_stdout
from typing import IO, Any

import pytest

from hart.training.sweep_run import run_one


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs without the seconds that a new process takes to import torch."""

    class InThisProcess:
        stdin, pid = None, 2**22 + 1  # no process can have it

        def __init__(self, command: list[str], *, stdout: IO[str], **_: Any) -> None:
            with redirect_stdout(stdout):
                self.status = run_one(*command[3:])

        def poll(self) -> int:
            return self.status

        wait = poll

    monkeypatch.setattr("hart.training.sweep_jobs.subprocess.Popen", InThisProcess)
