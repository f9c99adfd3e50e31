"""Two processes with half of each batch train the same as one process, and resume from its checkpoint."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import debug_launcher
from safetensors.torch import load_file

from hart.training.checkpoints import CONSISTENCY_FILE
from hart.training.config import RunConfig
from hart.training.run_folder import read_metrics
from hart.training.train import train

BATCH, STEPS = 8, 4


def in_this_process(config: RunConfig) -> None:
    train(config, quiet=True)


def losses(run: Path) -> list[list[float]]:
    rows = read_metrics(run / "metrics.jsonl")
    return [[row[name] for name in ("loss", "prediction_loss", "consistency_loss", "grad_norm")] for row in rows]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a forked process cannot use a GPU that its parent may use")
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo")
@pytest.mark.parametrize("pairing", ["slots", "task"])
def test_two_processes_equal_one(run_config: Callable[..., RunConfig], tmp_path: Path, pairing: str):
    settings = {"alpha": 3.0, "batch_size": BATCH, "max_steps": STEPS, "num_threads": 1, "model": {"dropout": 0.0}}
    settings["pairing"] = pairing
    one = train(run_config("one", **settings), quiet=True).parent
    config = run_config("two", **settings)
    debug_launcher(in_this_process, (config,), num_processes=2)
    two = tmp_path / "two"
    assert len(losses(two)) == STEPS
    for found, expected in zip(losses(two), losses(one), strict=True):
        assert found == pytest.approx(expected, rel=1e-4)
    states = load_file(two / "checkpoints" / "checkpoint-2" / CONSISTENCY_FILE)
    if pairing == "slots":
        assert sorted(states["slots"].tolist()) == list(range(BATCH)), "each process must leave the states of its rows"
    else:
        alone = load_file(one / "checkpoints" / "checkpoint-2" / CONSISTENCY_FILE)
        assert torch.equal(states["tasks"], alone["tasks"])
        torch.testing.assert_close(states["states"], alone["states"], rtol=1e-3, atol=1e-4)
    before = losses(two)
    shutil.rmtree(two / "final")
    shutil.rmtree(two / "checkpoints" / f"checkpoint-{STEPS}")
    debug_launcher(in_this_process, (config,), num_processes=2)
    assert losses(two) == before
