"""Processes of `run_hart` that are forked from one which has imported everything, so they begin at once.

Most of the time of two processes that train a tiny model for a few steps is what they import.
"""

import multiprocessing
import os
from collections.abc import Mapping, Sequence

import pytest

from hart.runtime import launch

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["hart.cli", "hart.training.train", "hart.evaluation.run", "deepspeed"])


class Forked:
    """What `run_hart` uses of a `subprocess.Popen` of `python -m hart WORDS`. What it prints is not captured."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        self._process = CONTEXT.Process(target=_run, args=(list(command[3:]), dict(env)))
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


def _run(words: list[str], environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    from hart.cli import main

    launch.end_with(lambda: main(words))
