"""Reports of a running training: rows of metrics.jsonl, trackers, and a progress bar or (without a terminal) lines.

A row of losses has means over the steps since the previous row, or since the checkpoint from which the run was resumed:
`prediction_loss` (per target token of a step's global batch), `consistency_loss` (per row and element of the states),
`loss` (their sum with α) and `seconds_per_step`. `steps` is the number of these steps, `tokens` that of their target
tokens. `grad_norm` (before clipping) and `learning_rate` are those of the row's step; `layer_cosine`, `stack_cosine`
and `row_variance` describe the layer states of its last pass (`hart.evaluation.states.batch_measures`). A row of scores
(`eval_…`) is over the validation tasks. steps.csv has the losses of each step, as means over steps hide the spikes of
Figure 4.
"""

import importlib.util
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from statistics import fmean
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch import Tensor

from hart.errors import HartError, first_line
from hart.runtime.ranks import rank, together
from hart.training.config import TrainingConfig
from hart.training.run_folder import RunFolder

PROJECT = "hart"
"""Project name of the runs in trackers."""

SHORT = {
    "prediction_loss": "L_pred",
    "consistency_loss": "L_cst",
    "distillation_loss": "L_KD",
    "eval_rouge_l": "ROUGE-L",
    "eval_exact_match": "exact match",
    "eval_accuracy": "accuracy",
}


def check_trackers(names: list[Any]) -> None:
    """Check before training that trackers are installed.

    Raises:
        HartError: a tracker is not installed.
    """
    for name in names:
        if not importlib.util.find_spec(name):
            raise HartError(f"training.trackers: {name} is not installed; pip install {name}, or leave it out")


class Report:
    """Collects the losses of passes and steps, and reports them.

    All processes have one and call it together; only the first process writes.

    Args:
        accelerator: the accelerator with its trackers.
        run: the run's folder, for metrics.jsonl and steps.csv.
        quiet: show neither progress bar nor lines.
    """

    def __init__(self, accelerator: Accelerator, config: TrainingConfig, run: RunFolder, *, quiet: bool) -> None:
        self.accelerator, self.config, self.run = accelerator, config, run
        self._shown = not quiet and rank() == 0
        self._bar: tuple[Progress, TaskID] | None = None
        self._pending: dict[str, list[Any]] = {}  # losses of steps not yet in steps.csv
        self._losses: dict[str, list[float]] = {}  # losses of all steps since the last row
        self._passes = self._steps = 0
        self._tokens: Any = 0
        self._seconds, self._since = 0.0, time.monotonic()

    def begin(self, step: int, line: str) -> None:
        """Open the trackers, and the progress bar or (without a terminal) print the description of the run."""
        name = self.run.path.name
        own = {"wandb": {"name": name, "dir": str(self.run.path)}, "trackio": {"name": name}}
        with self._tracking():
            self.accelerator.init_trackers(PROJECT, init_kwargs={**own, "mlflow": {"run_name": name}})
        console = Console(stderr=True)
        if self._shown and sys.stderr.isatty() and not console.is_dumb_terminal:
            columns = (BarColumn(None), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
            progress = Progress(*columns, console=console, expand=True)
            self._bar = progress, progress.add_task("", total=self.config.max_steps, completed=step)
            progress.start()
        else:
            self._say(line)
        self.start_clock()

    def close(self) -> None:
        for tracker in self.accelerator.trackers:
            with suppress(OSError):  # as on a full disk, which the last row has reported
                tracker.finish()
        if self._bar is not None:
            self._bar[0].stop()

    def start_clock(self) -> None:
        """Restart the step timer, so that time before the first step, in evaluation and in saving is not counted."""
        self._since = time.monotonic()

    def add_pass(self, **losses: Tensor) -> None:
        """Add the losses of one pass; the loss of a step is the mean over its passes."""
        for name, value in losses.items():
            steps = self._pending.setdefault(name, [])
            if self._passes:
                steps[-1] = steps[-1] + value.detach()
            else:
                steps.append(value.detach())
        self._passes += 1

    def add_step(self, tokens: Tensor) -> None:
        """End a step, whose global batch had `tokens` target tokens."""
        now = time.monotonic()
        self._seconds += now - self._since
        self._since = now
        for steps in self._pending.values():
            steps[-1] = steps[-1] / self._passes
        self._passes = 0
        self._steps += 1
        self._tokens = self._tokens + tokens
        if self._bar is not None:
            progress, task = self._bar
            progress.advance(task)

    def losses(self, step: int, **last: float) -> None:
        """Report the mean losses since the last call, and values of the last step."""
        self.write_steps(step)
        means = {name: fmean(values) for name, values in self._losses.items()}
        over = {"steps": self._steps, "tokens": int(self._tokens)}
        self._row(step, {**means, **last, "seconds_per_step": self._seconds / self._steps, **over})
        self._losses, self._steps, self._tokens, self._seconds = {}, 0, 0, 0.0

    def write_steps(self, step: int) -> None:
        """Write the losses of all steps up to `step` into steps.csv, as means over the processes."""
        reduced = {n: self.accelerator.reduce(torch.stack(v), "mean").tolist() for n, v in self._pending.items() if v}
        self._pending = {}
        for name, values in reduced.items():
            self._losses.setdefault(name, []).extend(values)
        with together():
            if reduced and rank() == 0:
                self.run.append_steps(step - len(next(iter(reduced.values()))) + 1, reduced)

    def scores(self, step: int, scores: dict[str, float]) -> None:
        """Report the scores on the validation tasks."""
        self._row(step, {f"eval_{name}": value for name, value in scores.items()})

    def _row(self, step: int, row: dict[str, Any]) -> None:
        with together():
            if rank() == 0:
                self.run.append_metrics({"step": step, **row})
        group = {name: ("eval/" if name.startswith("eval_") else "train/") + name.removeprefix("eval_") for name in row}
        with self._tracking():
            self.accelerator.log({group[name]: value for name, value in row.items()}, step=step)
        if self._bar is not None:
            progress, task = self._bar
            shown = ", ".join(f"{SHORT[name]} {value:.3f}" for name, value in row.items() if name in SHORT)
            progress.update(task, description=shown)
            return
        said = (
            f"{SHORT.get(name, name)} {value:.4g}" for name, value in row.items() if name not in ("steps", "tokens")
        )
        self._say(f"step {step}/{self.config.max_steps}: {', '.join(said)}")

    @contextmanager
    def _tracking(self) -> Iterator[None]:
        """A context in which the trackers write; a failure of theirs is raised in all processes."""
        with together():
            try:
                yield
            except OSError as error:
                raise HartError(
                    f"training.trackers: {', '.join(self.config.trackers)} cannot write ({first_line(error)}); fix "
                    "this or leave it out, and run the command again to continue from the last checkpoint"
                ) from error

    def _say(self, line: str) -> None:
        if self._shown:
            with suppress(OSError):  # the reader has gone
                print(line, file=sys.stderr, flush=True)
