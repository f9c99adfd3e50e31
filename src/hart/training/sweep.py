"""Sweeps: training and scoring on the test tasks of several configurations × seeds, with a table.

Each run has its own process, so that its peak memory is measured separately and a failure does not stop other runs.
Completed runs are not repeated: an interrupted sweep is resumed by the same command, and several sweeps with different
rows or seeds may share a folder.
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hart.errors import HartError
from hart.runtime.files import write_json
from hart.runtime.launch import POLL_SECONDS, TERMINATED, on_sigterm
from hart.training.run_folder import LOCK_FILE, HeldError
from hart.training.sweep_jobs import Job, check_room, remaining, take_over
from hart.training.sweep_plan import RESULTS_FILE, SweepRun
from hart.training.sweep_table import LISTING_FILE, TABLE_FILES, read_listing, write_tables

OWN_FILES = frozenset({LOCK_FILE, LISTING_FILE, *TABLE_FILES, "report.html", "report.csv"})
SAVING_SECONDS = 60
"""Time for interrupted runs to save their state."""


def sweep(
    out: Path,
    runs: Sequence[SweepRun],
    *,
    jobs: int = 1,
    processes: int = 1,
    listing: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = print,
    missed: Callable[[SweepRun], Any] = lambda _: None,
) -> list[dict[str, Any]]:
    """Execute the runs that are not done yet, write the tables, and return their rows.

    Args:
        jobs: number of parallel runs; with GPUs each has its own (`processes` of them).
        processes: number of processes that train each run.
        listing: content of study.json; None: these runs and those of earlier sweeps in the folder.
        missed: called with each run that failed, or could not start because another failed; not with tries of a grid.

    Raises:
        HartError: `out` has other content, or other sweeps are at work on everything that is left.
        KeyboardInterrupt: the runs in progress have saved; they continue when the sweep is started again.
        SystemExit: SIGTERM arrived and was passed on; the runs in progress have saved their state (status 143).
    """
    try:
        # Other content beside the runs of an earlier sweep, such as figures, is allowed.
        new = out.exists() and not (out / LISTING_FILE).is_file()
        foreign = new and (not out.is_dir() or any(not _ours(path, runs) for path in out.iterdir()))
    except OSError as error:
        raise HartError(f"{out}: cannot be read ({error.strerror})") from error
    if foreign:
        raise HartError(f"{out}: exists with other content; choose another folder for the sweep")
    check_room(jobs, processes)
    write_json(out / LISTING_FILE, _listing(out, runs) if listing is None else dict(listing))
    at_work = _AtWork(runs, jobs, processes, say, lambda: write_tables(out, runs))
    at_work.work()
    for run in at_work.missed:
        if not run.fields:  # tries of a grid may fail
            missed(run)
    if at_work.held and not at_work.times:
        raise HeldError(
            f"{out}: is in use by another process; wait until it ends, or choose another folder for the sweep"
        )
    return write_tables(out, runs)


def _ours(path: Path, runs: Sequence[SweepRun]) -> bool:
    """Whether `path` belongs to a sweep: one of its files, or the folder of a row of this or an earlier sweep."""
    return path.name in OWN_FILES or path.name in {run.name for run in runs} or any(path.glob("seed-*"))


def _listing(out: Path, runs: Sequence[SweepRun]) -> dict[str, Any]:
    """Rows and seeds of these runs, after those of earlier sweeps."""
    rows = read_listing(out)
    for run in runs:
        seeds = rows.setdefault(run.name, {"seeds": [], "paper": []}).setdefault("seeds", [])
        seeds += [run.seed] if run.seed not in seeds else []
    return {"study": out.name, "rows": rows}


class _AtWork:
    """The remaining runs of a sweep, and the jobs that execute them.

    Attributes:
        times: seconds of the runs completed here.
        held: whether another sweep works on some runs.
        missed: runs that failed, or could not start because another run failed.
    """

    def __init__(
        self,
        runs: Sequence[SweepRun],
        jobs: int,
        processes: int,
        say: Callable[[str], None],
        save: Callable[[], Any],
    ) -> None:
        self.jobs, self.processes, self.say, self.save = jobs, processes, say, save
        # The seeds of a row share the tries of its grid.
        units = {each.folder: each for run in runs for each in (*run.candidates, run)}
        self.waiting, self.total = [*units.values()], len(units)
        self.settled: dict[Path, bool] = {}
        """Folder of each settled run → whether its results exist."""
        # A try may need a run of a seed that is not in this sweep, which must then exist from an earlier one.
        for source in {source for unit in self.waiting for source in unit.sources} - units.keys():
            self.settled[source] = (source / RESULTS_FILE).is_file()
        self.active: list[Job] = []
        self.times: list[float] = []
        self.held = False
        self.missed: list[SweepRun] = []

    def work(self) -> None:
        with on_sigterm(self.hand_on) as told:
            try:
                while self.waiting or self.active:
                    if not told:
                        self.start()
                    elif not self.active:
                        break
                    for job in [job for job in self.active if job.ended()]:
                        self.end(job, tell=not told)
                    if self.active:
                        time.sleep(POLL_SECONDS)
            except BaseException:
                _stop(self.active)
                raise
        if told:
            sys.exit(TERMINATED)

    def hand_on(self) -> None:
        """Let the jobs save and end."""
        for job in self.active:
            job.terminate()

    def start(self) -> None:
        """Start runs that can start; settle those that are complete or cannot be executed."""
        for unit in [*self.waiting]:
            needs = [each.folder for each in unit.candidates] + [*unit.sources]
            if any(folder not in self.settled for folder in needs):
                continue
            run = unit.resolved()
            if run is not None and run.results() is not None:
                self.settle(unit, "done before", done=True)
            elif missing := [folder for folder in unit.sources if not self.settled[folder]]:
                self.missed.append(unit)
                self.settle(unit, f"not done: it needs {missing[0]}, which has no results")
            elif run is None:
                self.missed.append(unit)
                self.settle(unit, "not done: no try of its grid has results")
            elif len(self.active) < self.jobs:
                self.begin(unit, run)

    def begin(self, unit: SweepRun, run: SweepRun) -> None:
        slot = min({*range(self.jobs)} - {job.slot for job in self.active})
        try:
            run = take_over(run, unit.best())
            job = Job(run, slot, jobs=self.jobs, processes=self.processes)
        except HeldError:
            self.held = True
            self.settle(unit, "another process is running it")
            return
        self.waiting.remove(unit)
        self.active.append(job)
        self.say(f"[{len(self.settled) + len(self.active)}/{self.total}] {run.label} …")

    def end(self, job: Job, *, tell: bool) -> None:
        seconds = job.seconds
        failure = job.close()
        self.active.remove(job)
        self.settled[job.run.folder] = not failure
        if failure:
            self.missed.append(job.run)
        self.times.append(seconds)
        if tell:
            left = remaining(self.times, len(self.waiting) + len(self.active), self.jobs)
            self.say(f"[{len(self.settled)}/{self.total}] {job.run.label}: {failure or f'{seconds:.0f} s'}{left}")
            self.save()

    def settle(self, unit: SweepRun, why: str, *, done: bool = False) -> None:
        self.waiting.remove(unit)
        self.settled[unit.folder] = done
        self.say(f"[{len(self.settled)}/{self.total}] {unit.label}: {why}")


def _stop(active: Sequence[Job]) -> None:
    """Let jobs save and end, and kill those that take too long; a second Ctrl-C kills all at once."""
    try:
        for job in active:
            job.terminate()
        deadline = time.monotonic() + SAVING_SECONDS
        while any(not job.ended() for job in active) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
    finally:
        for job in active:
            job.close()
