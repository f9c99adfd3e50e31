"""What the Trainer is told: the optimizer that there is, and batches that can be cut as asked for."""

import logging
from pathlib import Path

import pytest

from hart import training_arguments as module
from hart.config import TrainingConfig
from hart.errors import HartError
from hart.training_arguments import optimizer_name, training_arguments


def test_optimizer_of_the_paper_where_it_is_installed():
    pytest.importorskip("bitsandbytes")
    assert optimizer_name("adamw_8bit") == "adamw_bnb_8bit"


def test_optimizer_falls_back_aloud(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda _: None)
    with caplog.at_level(logging.WARNING):
        assert optimizer_name("adamw_8bit") == "adamw_torch"
    assert "bitsandbytes is not installed: using plain AdamW" in caplog.text
    caplog.clear()
    assert optimizer_name("adamw") == "adamw_torch" and not caplog.text


@pytest.mark.parametrize(("micro", "accumulated"), [(None, 1), (8, 1), (2, 4)])
def test_batch_is_cut_into_passes(tmp_path: Path, micro: int | None, accumulated: int):
    config = TrainingConfig(batch_size=8, micro_batch_size=micro)
    arguments = training_arguments(config, tmp_path, evaluate=False, quiet=True)
    assert arguments.gradient_accumulation_steps == accumulated
    assert arguments.per_device_train_batch_size * accumulated == config.batch_size


def test_batch_that_processes_cannot_share_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(HartError, match="batch_size: 8 is not divisible by 3 processes times micro_batch_size 3"):
        training_arguments(TrainingConfig(batch_size=8), tmp_path, evaluate=False, quiet=True)


def test_queries_of_a_task_stay_in_one_pass(tmp_path: Path):
    config = TrainingConfig(batch_size=8, micro_batch_size=2, queries_per_task=4)
    with pytest.raises(HartError, match="queries_per_task: 4 does not divide the 2 queries of one pass"):
        training_arguments(config, tmp_path, evaluate=False, quiet=True)
