"""Setup of the loop: available optimizers, division of batches, DeepSpeed's configuration."""

import logging
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch import nn

from hart.errors import HartError
from hart.training import optimizer as module
from hart.training import zero
from hart.training.config import TrainingConfig
from hart.training.loop import cut
from hart.training.optimizer import make_optimizer, optimizer_used
from hart.training.sharding import wants_fsdp
from hart.training.zero import deepspeed_plugin

EIGHT_BIT, PLAIN = TrainingConfig(optimizer="adamw_8bit"), TrainingConfig(optimizer="adamw")


def test_optimizer_of_the_paper_where_it_is_installed():
    pytest.importorskip("bitsandbytes")
    assert optimizer_used(EIGHT_BIT, None, fsdp=False) == "adamw_8bit"


def test_optimizer_falls_back_aloud(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda _: None)
    with caplog.at_level(logging.WARNING):
        assert optimizer_used(EIGHT_BIT, None, fsdp=False) == "adamw"
    assert "bitsandbytes is not installed: using plain AdamW" in caplog.text
    caplog.clear()
    assert optimizer_used(PLAIN, None, fsdp=False) == "adamw" and not caplog.text


def test_biases_and_norms_are_not_decayed():
    names = ["layer_norm", "proj", "table", "first"]
    model = nn.ModuleDict(
        {"layer_norm": nn.RMSNorm(4), "proj": nn.Linear(4, 4), "table": nn.Embedding(3, 4), "first": nn.LayerNorm(4)}
    )
    model["frozen"] = nn.Linear(4, 4).requires_grad_(False)
    decayed, others = make_optimizer(model, TrainingConfig(weight_decay=0.1), "adamw").param_groups
    assert [decayed["weight_decay"], others["weight_decay"]] == [0.1, 0.0]
    expected = [model["proj"].weight, model["table"].weight]
    assert list(map(id, decayed["params"])) == list(map(id, expected))
    assert len(others["params"]) == sum(len(list(model[name].parameters())) for name in names) - len(expected)


@pytest.mark.parametrize(("micro", "accumulated"), [(None, 1), (8, 1), (2, 4)])
def test_batch_is_cut_into_passes(micro: int | None, accumulated: int):
    config = TrainingConfig(batch_size=8, micro_batch_size=micro)
    queries, passes = cut(config, 1)
    assert passes == accumulated and queries * passes == config.batch_size


def test_batch_that_processes_cannot_share_is_refused():
    with pytest.raises(HartError, match="batch_size: 8 is not divisible by 3 processes times micro_batch_size 3"):
        cut(TrainingConfig(batch_size=8), 3)


def test_queries_of_a_task_stay_in_one_pass():
    config = TrainingConfig(batch_size=8, micro_batch_size=2, queries_per_task=4)
    with pytest.raises(HartError, match="queries_per_task: 4 does not divide the 2 queries of one pass"):
        cut(config, 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "zero.json: no such file; give the JSON file of training.deepspeed"),
        ("{", "zero.json: not the JSON file of training.deepspeed, the text is not JSON .Expecting"),
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
    monkeypatch.setattr(zero, "announce_alone", lambda: None)
    with pytest.raises(HartError, match=message) as refused:
        deepspeed_plugin(TrainingConfig(deepspeed=str(path)), 1)
    assert "\n" not in str(refused.value)


def test_deepspeed_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(HartError, match="pip install 'hart-hypernet.deepspeed.'"):
        deepspeed_plugin(TrainingConfig(deepspeed="zero.json"), 1)


def test_fsdp_is_asked_for_by_field_or_launcher(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    assert wants_fsdp(TrainingConfig(fsdp=True)) and not wants_fsdp(TrainingConfig())
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("HART_USE_FSDP", "")
    monkeypatch.delenv("HART_USE_FSDP")
    assert wants_fsdp(TrainingConfig()) and wants_fsdp(TrainingConfig()), "also when asked again"
    assert "ACCELERATE_USE_FSDP" not in os.environ
    assert optimizer_used(EIGHT_BIT, None, fsdp=True) == "adamw"
    assert "FSDP cannot divide" in caplog.text


def test_a_stage_that_divides_nothing_is_refused():
    """DeepSpeed knows no norm of the gradient there."""
    pytest.importorskip("deepspeed")
    plugin = SimpleNamespace(zero_stage=0, deepspeed_config_process=lambda **_: None)
    config = TrainingConfig(deepspeed="zero.json")
    with pytest.raises(HartError, match="zero.json: DeepSpeed's stage 0 divides nothing; take stage 1 to 3"):
        zero.agree(SimpleNamespace(deepspeed_plugin=plugin), config, 1, 1)  # type: ignore[arg-type]
