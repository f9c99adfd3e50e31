"""Atomic checkpoints of a run, sealed with checksums.

`checkpoint-STEP/` is a model folder with the complete trained weights in every layout. For bit-exact resumption it also
has the optimizer's states in the run's layout (`hart.training.sharding`), scheduler.pt, the random states of each
process, consistency.safetensors (the layer states with which later steps are compared) and state.json (the step and the
best scores).
"""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from hart.errors import HartError, first_line
from hart.runtime.files import seal
from hart.runtime.ranks import rank, together
from hart.training.run_folder import RunFolder
from hart.training.sharding import REPLICATED, load_optimizer, save_optimizer, trained_weights, write_layout

if TYPE_CHECKING:
    from hart.training.loop import Loop

CONSISTENCY_FILE = "consistency.safetensors"
SCHEDULER_FILE = "scheduler.pt"
STATE_FILE = "state.json"


def save_checkpoint(loop: "Loop") -> None:
    """Write a checkpoint after a step, and delete the oldest ones above the limit; all processes together.

    Raises:
        HartError: it cannot be written; earlier checkpoints are kept.
    """
    run, first = loop.run, rank() == 0
    loop.report.write_steps(loop.step)  # a run resumed from this checkpoint does not repeat these steps
    loop.keep_teacher()
    partial, checkpoint = run.checkpoints / ".partial", run.checkpoints / f"checkpoint-{loop.step}"
    remembered = loop.consistency.state_dict(loop.accelerator.gather)
    remembered = {name: values.cpu().contiguous() for name, values in remembered.items()}
    weights = None if loop.layout == REPLICATED else trained_weights(loop.system)
    try:
        with _writing(checkpoint):
            partial.mkdir(parents=True, exist_ok=True)
            save_file(_random_states(), partial / _random_file(rank()))
            if first:
                loop.system.write(partial, weights=weights)
                torch.save(loop.schedule.state_dict(), partial / SCHEDULER_FILE)
                save_file(remembered, partial / CONSISTENCY_FILE)
                (partial / STATE_FILE).write_text(json.dumps({"step": loop.step, "best": loop.best}) + "\n")
                write_layout(partial, loop.layout, loop.optimizer_used)
        with _writing(checkpoint):
            save_optimizer(loop.model, loop.optimizer.optimizer, loop.layout, partial)
        with _writing(checkpoint):
            if first:
                seal(partial)
                shutil.rmtree(checkpoint, ignore_errors=True)
                os.replace(partial, checkpoint)
                _rotate(run, loop.config.keep_checkpoints, loop.step)
    finally:
        if first:
            shutil.rmtree(partial, ignore_errors=True)


def load_weights(loop: "Loop", checkpoint: Path) -> None:
    """Load the weights, consistency states, step and best scores of a checkpoint, before weights are sharded."""
    loop.system.load_trained(checkpoint)
    loop.consistency.load_state_dict(load_file(checkpoint / CONSISTENCY_FILE))
    state = json.loads((checkpoint / STATE_FILE).read_text())
    loop.step, loop.best = state["step"], state["best"]


def load_states(loop: "Loop", checkpoint: Path) -> None:
    """Load the states of optimizer, schedule and random numbers, after preparation and right before the next step."""
    load_optimizer(loop.model, loop.optimizer.optimizer, loop.layout, checkpoint)
    loop.schedule.load_state_dict(torch.load(checkpoint / SCHEDULER_FILE, weights_only=True))
    own = checkpoint / _random_file(rank())
    if own.exists():  # missing if the run has more processes than before
        states = load_file(own)
        torch.set_rng_state(states["cpu"])
        if "cuda" in states and torch.cuda.is_available():
            torch.cuda.set_rng_state(states["cuda"])


def _random_file(number: int) -> str:
    return f"random_{number}.safetensors"


def _random_states() -> dict[str, torch.Tensor]:
    """The random states of torch on the CPU and on this process's GPU; training uses no other generator."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _rotate(run: RunFolder, keep: int, step: int) -> None:
    """Delete all but the newest `keep` checkpoints up to `step`; a later one is damaged, and is left alone."""
    found = run.saved()
    for old in sorted(each for each in found if each <= step)[:-keep]:
        shutil.rmtree(found[old], ignore_errors=True)


@contextmanager
def _writing(checkpoint: Path) -> Iterator[None]:
    """A context for writing a part of a checkpoint, in all processes together; a failure of one is raised in all.

    Errors such as a full disk, which torch and safetensors report differently, become a `HartError` of one line.
    """
    with together():
        try:
            yield
        except (OSError, RuntimeError, SafetensorError, HartError) as error:
            reason = first_line(error)
            # torch gives no cause; most often the disk is full.
            cause = error.__cause__ if isinstance(error, HartError) else error
            full = getattr(cause, "errno", None) in (None, errno.ENOSPC, errno.EDQUOT)
            advice = "free some space" if full and checkpoint.parent.is_dir() else "fix this"
            raise HartError(
                f"{checkpoint}: cannot be written ({reason}); {advice} and run the command again "
                "to continue from the previous checkpoint"
            ) from error
