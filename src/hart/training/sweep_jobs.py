"""The parallel processes of a sweep, each in its own process group; they end when the sweep ends."""

import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Any

from hart.errors import HartError
from hart.runtime.files import write_json
from hart.runtime.launch import cpu_cores
from hart.training.run_folder import holding
from hart.training.sweep_plan import PEAK, RESULTS_FILE, RUN_FOLDER, SweepRun

CONFIG_FILE, LOG_FILE, ABOUT_FILE = "config.yaml", "log.txt", "about.json"


class Job:
    """The process of a run.

    Its standard input is a pipe that closes when this process ends in any way; the run then ends, too
    (`hart.training.sweep_run`).

    Args:
        run: the run, with the values of its grid.
        slot: number of the job among parallel jobs.
        jobs: most parallel jobs.
        processes: number of processes that train the run.

    Raises:
        HeldError: another sweep works on this run.
        HartError: the run's folder cannot be written.
    """

    def __init__(self, run: SweepRun, slot: int, *, jobs: int, processes: int) -> None:
        self.run, self.slot, self.started = run, slot, time.monotonic()
        self.log = run.folder / LOG_FILE
        with ExitStack() as held:
            held.enter_context(holding(run.folder, "folder for the sweep"))
            run.config.save(run.folder / CONFIG_FILE)
            write_json(run.folder / ABOUT_FILE, dict(run.about))
            paths = [str(run.folder / name) for name in (CONFIG_FILE, RESULTS_FILE, ABOUT_FILE)]
            split = "validation" if run.fields else "test"
            words = [sys.executable, "-m", "hart.training.sweep_run", *paths, str(processes), split]
            environment = os.environ | surroundings(slot, jobs, processes, run.config.training.num_threads)
            file = held.enter_context(self.log.open("a", encoding="utf-8"))
            self.child = subprocess.Popen(
                words,
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
            self._held = held.pop_all()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def ended(self) -> bool:
        return self.child.poll() is not None

    def terminate(self) -> None:
        """Let the run save and end."""
        self.child.terminate()

    def close(self) -> str:
        """End the job and all processes that it has started; returns the reason of a failure, else an empty text."""
        status = self.child.poll()
        if status != 0:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.child.pid, signal.SIGKILL)
            status = self.child.wait()
        if self.child.stdin:
            self.child.stdin.close()
        self._held.close()
        if status == 0:
            return ""
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"failed: {(lines or [f'exit status {status}'])[-1]} (see {self.log})"


def surroundings(slot: int, jobs: int, processes: int, threads: int | None) -> dict[str, str]:
    """Environment variables of a job: its number of threads, and its GPUs if there are any.

    Args:
        threads: `training.num_threads`; None: an even share of the cores, unless OMP_NUM_THREADS is set already.
    """
    own = {}
    if threads:
        own["OMP_NUM_THREADS"] = str(threads)
    elif jobs > 1:
        own["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", str(max(1, cpu_cores() // jobs)))
    gpus = visible_gpus() if jobs > 1 else []
    if gpus:
        first = slot * processes % len(gpus)
        own["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[first : first + processes])
    return own


def visible_gpus() -> list[str]:
    """The GPUs of this process, as in CUDA_VISIBLE_DEVICES."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return (named or [str(number) for number in range(count)])[:count]


def check_room(jobs: int, processes: int) -> None:
    """Check that there are enough GPUs for the processes of each run; jobs of one process may share a GPU.

    Raises:
        HartError: there are too few GPUs.
    """
    if processes == 1:
        return
    gpus = len(visible_gpus())
    if gpus and jobs * processes > gpus:
        raise HartError(f"--jobs {jobs} times --processes {processes} exceed the {gpus} GPUs here; lower one")


def take_over(run: SweepRun, candidate: SweepRun | None) -> SweepRun:
    """Let a run take over the training of an identical try of its grid.

    Returns:
        The run, with the peak memory of that training in `about`, as its own process cannot measure it.
    """
    if candidate is None:
        return run
    if (candidate.folder / RUN_FOLDER).is_dir() and not (run.folder / RUN_FOLDER).exists():
        run.folder.mkdir(parents=True, exist_ok=True)
        (candidate.folder / RUN_FOLDER).rename(run.folder / RUN_FOLDER)
    peak = (candidate.results() or {}).get(PEAK)
    return replace(run, about={**run.about, PEAK: peak})


def remaining(seconds: list[float], left: int, jobs: int) -> str:
    """The estimated time of the remaining runs, in words; empty if none is left."""
    if not left or not seconds:
        return ""
    minutes = sum(seconds) / len(seconds) * left / min(jobs, left) / 60
    words: Any = f"{minutes:.0f} min" if 1 <= minutes < 90 else f"{minutes / 60:.1f} h"
    return f", about {words if minutes >= 1 else 'a minute'} left"
