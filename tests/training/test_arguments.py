"""What the Trainer is told: the optimizer that there is, and batches that can be cut as asked for."""

import logging
import os
from pathlib import Path

import pytest

from hart.errors import HartError
from hart.training import arguments as module
from hart.training.arguments import optimizer_name, training_arguments, wants_fsdp
from hart.training.config import TrainingConfig


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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "zero.json: no such file; give the JSON file that training.deepspeed must be"),
        ("{", "zero.json: not the JSON file that training.deepspeed must be, the text is not JSON .Expecting"),
        ("[]", "zero.json: training.deepspeed must be a JSON object"),
        ('{"train_batch_size": 3}', "zero.json: DeepSpeed refuses it"),
    ],
)
def test_mistakes_in_deepspeeds_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, message: str
):
    pytest.importorskip("deepspeed")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    path = tmp_path / "zero.json"
    if content is not None:
        path.write_text(content)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("hart.training.arguments.announce_alone", lambda: None)
    with pytest.raises(HartError, match=message) as refused:
        training_arguments(TrainingConfig(deepspeed=str(path)), tmp_path, evaluate=False, quiet=True)
    assert "\n" not in str(refused.value)


def test_deepspeed_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(HartError, match="pip install 'hart-hypernet.deepspeed.'"):
        training_arguments(
            TrainingConfig(deepspeed="zero.json", optimizer="adamw"), tmp_path, evaluate=False, quiet=True
        )


def test_fsdp_is_asked_for_by_field_or_launcher(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    assert wants_fsdp(TrainingConfig(fsdp=True)) and not wants_fsdp(TrainingConfig())
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("HART_USE_FSDP", "")
    monkeypatch.delenv("HART_USE_FSDP")
    assert wants_fsdp(TrainingConfig()) and wants_fsdp(TrainingConfig()), "also when asked again"
    assert "ACCELERATE_USE_FSDP" not in os.environ
    assert optimizer_name("adamw_8bit", fsdp=True) == "adamw_torch"
    assert "FSDP cannot divide" in caplog.text
