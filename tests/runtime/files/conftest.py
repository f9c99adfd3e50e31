"""Fixture: a folder for private mounts."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

InMounts = Callable[..., str]


@pytest.fixture
def in_mounts() -> InMounts:
    """A function of a folder, shell commands that mount something there, Python code and its arguments.

    It runs the code after the commands and returns what it printed.
    """
    apart = ["unshare", "--mount", "--map-root-user"]
    trial = [*apart, "sh", "-c", "mount -t tmpfs none /mnt"]
    if shutil.which("unshare") is None or subprocess.run(trial, capture_output=True).returncode:
        pytest.skip("this system lets no process have mounts of its own")

    def run(folder: Path, mounts: str, code: str, *words: str) -> str:
        script = f'set -e; {mounts}; exec "$@"'
        command = [*apart, "sh", "-c", script, "sh", sys.executable, "-c", code, *words]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
