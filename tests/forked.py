"""Processes that are forked from one which has imported everything, so they begin at once.

Most of the time of two processes that train a tiny model for a few steps is what they import.
"""

import multiprocessing
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from hart.runtime import launch

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["hart.cli", "hart.training.train", "hart.evaluation.run", "deepspeed"])


class Forked:
    """What is used of a `subprocess.Popen` of `python -m hart WORDS` or `python -c CODE WORDS`.

    Args:
        errors: file for what it writes to standard error; nothing that it prints is captured.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str], errors: Path | None = None) -> None:
        self._process = CONTEXT.Process(target=_run, args=(list(command[1:]), dict(env), errors))
        self._process.start()
        self.terminate, self.kill, self.wait = self._process.terminate, self._process.kill, self._process.join

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode


def run_forked(words: Sequence[str], processes: int) -> None:
    """As `run_hart`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch.subprocess, "Popen", Forked)
        launch.run_hart(words, processes)


def _run(command: list[str], environment: dict[str, str], errors: Path | None) -> None:
    os.environ.clear()
    os.environ.update(environment)
    if errors is not None:
        os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), sys.stderr.fileno())
    how, what, *words = command
    if how == "-c":
        sys.argv = [how, *words]
        exec(what, {"__name__": "__main__"})
        return
    from hart.cli import main

    launch.end_with(lambda: main(words))
