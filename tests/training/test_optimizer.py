"""Optimizers: 8-bit Adam, Adam's constants, and refusals of Muon."""

import shutil
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hart.errors import HartError
from hart.training import loop as module
from hart.training.config import RunConfig, TrainingConfig
from hart.training.estimate import estimate
from hart.training.optimizer import optimizer_used
from hart.training.train import train

Build = Callable[..., RunConfig]

STEPS = 4  # of `run_config`


def test_8_bit_adam_trains_and_goes_on_where_it_was(run_config: Build):
    pytest.importorskip("bitsandbytes")
    final = train(run_config(optimizer="adamw_8bit"), quiet=True)
    whole = load_file(final / "model.safetensors")
    last = final.parent / "checkpoints" / f"checkpoint-{STEPS}"
    state = torch.load(last / "optimizer.pt", weights_only=True)["state"]
    moments = {part.dtype for values in state.values() for part in values["__bnb_optimizer_quant_state__"].values()}
    assert torch.uint8 in moments, "no moment is kept in 8 bits"
    shutil.rmtree(final)
    shutil.rmtree(last)
    again = load_file(train(run_config(optimizer="adamw_8bit"), quiet=True) / "model.safetensors")
    assert all(torch.equal(again[name], values) for name, values in whole.items())


def test_adams_constants_are_those_of_the_configuration(run_config: Build, monkeypatch: pytest.MonkeyPatch):
    seen: list[dict[str, Any]] = []
    begin = module.make_optimizer

    def keep(*args: Any) -> Any:
        optimizer = begin(*args)
        seen.extend(optimizer.param_groups)
        return optimizer

    monkeypatch.setattr(module, "make_optimizer", keep)
    train(run_config(max_steps=1, adam_beta1=0.8, adam_beta2=0.95, adam_epsilon=1e-6), quiet=True)
    assert seen and all(group["betas"] == (0.8, 0.95) and group["eps"] == 1e-6 for group in seen)


def test_muon_of_divided_matrices_is_refused():
    config = TrainingConfig(optimizer="muon")
    with pytest.raises(HartError, match="needs whole matrices, and FSDP divides them"):
        optimizer_used(config, None, fsdp=True)
    for file in ({}, {"optimizer": {"type": "AdamW"}}):  # one of DeepSpeed's own would leave the request unheard
        plugin: Any = SimpleNamespace(deepspeed_config=file)
        with pytest.raises(HartError, match="needs whole matrices, and DeepSpeed divides them"):
            optimizer_used(config, plugin, fsdp=False)
    assert optimizer_used(config, None, fsdp=False) == "muon"


def test_a_rate_for_muon_without_muon_is_refused():
    with pytest.raises(HartError, match="training.muon_rate: has no effect with training.optimizer adamw; take muon"):
        TrainingConfig(optimizer="adamw", muon_rate=1e-3)


def test_muon_keeps_one_state_of_a_linear_map(run_config: Build):
    plain, muon = (estimate(run_config(optimizer=name)).memory["optimizer"] for name in ("adamw", "muon"))
    assert 0.5 * plain < muon < plain
