"""Optimizers: 8-bit Adam, Adam's constants, and Muon beside AdamW."""

import shutil
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from hart.errors import HartError
from hart.training import loop as module
from hart.training.config import RunConfig, TrainingConfig
from hart.training.estimate import estimate
from hart.training.optimizer import linear_weights, make_optimizer, optimizer_used
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


def small() -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict(
        {
            "first": nn.Linear(6, 4),
            "second": nn.Linear(4, 8, bias=False),
            "table": nn.Embedding(5, 6),
            "norm": nn.LayerNorm(6),
        }
    )


def test_muon_moves_linear_maps_as_torchs_own_and_adamw_all_else():
    config = TrainingConfig(optimizer="muon", learning_rate=1e-2, muon_rate=3e-2, weight_decay=0.1)
    ours, reference = small(), small()
    maps = [reference["first"].weight, reference["second"].weight]
    rest = [reference["table"].weight], [reference["first"].bias, *reference["norm"].parameters()]
    expected = [
        torch.optim.Muon(maps, lr=3e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(
            [{"params": rest[0], "weight_decay": 0.1}, {"params": rest[1], "weight_decay": 0.0}], lr=1e-2
        ),
    ]
    optimizer = make_optimizer(ours, config, "muon")
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(ours.parameters()))
    for step in range(3):
        for model in (ours, reference):
            torch.manual_seed(step)
            model.zero_grad()
            model["second"](
                model["first"](model["norm"](model["table"](torch.randint(5, (7,)))))
            ).square().sum().backward()
        optimizer.step()
        for each in expected:
            each.step()
    for (name, value), other in zip(ours.named_parameters(), reference.parameters(), strict=True):
        assert torch.equal(value, other), name


def test_muon_leaves_the_head_that_is_an_embedding_and_what_is_frozen_to_adamw():
    model = small()
    model["head"] = nn.Linear(6, 5, bias=False)
    model["head"].weight = model["table"].weight
    model["first"].requires_grad_(False)
    assert [id(each) for each in linear_weights(model)] == [id(model["second"].weight)]


def test_muon_trains_and_goes_on_where_it_was(run_config: Build):
    final = train(run_config(optimizer="muon", warmup_steps=1), quiet=True)
    whole = load_file(final / "model.safetensors")
    last = final.parent / "checkpoints" / f"checkpoint-{STEPS}"
    states = torch.load(last / "optimizer.pt", weights_only=True)["state"].values()
    assert {"momentum_buffer" in state for state in states} == {True, False}
    shutil.rmtree(final)
    shutil.rmtree(last)
    again = load_file(train(run_config(optimizer="muon", warmup_steps=1), quiet=True) / "model.safetensors")
    assert all(torch.equal(again[name], values) for name, values in whole.items())
    plain = load_file(train(run_config("plain", optimizer="adamw", warmup_steps=1), quiet=True) / "model.safetensors")
    assert not all(torch.equal(plain[name], values) for name, values in whole.items())


def test_rates_of_both_parts_follow_the_schedule(run_config: Build, monkeypatch: pytest.MonkeyPatch):
    kept: list[Any] = []
    begin = module.make_optimizer
    monkeypatch.setattr(module, "make_optimizer", lambda *args: kept.append(begin(*args)) or kept[0])
    train(run_config(optimizer="muon", muon_rate=4e-3, max_steps=2, warmup_steps=1), quiet=True)
    assert [group["initial_lr"] for group in kept[0].param_groups] == [1e-3, 1e-3, 4e-3]
    assert all(
        part.param_groups[0] is group for part, group in zip(kept[0]._parts, kept[0].param_groups[::2], strict=True)
    )
    assert [group["lr"] for group in kept[0].param_groups] == [0.0, 0.0, 0.0], "the schedule did not reach both"


def test_muon_of_divided_matrices_is_refused():
    config = TrainingConfig(optimizer="muon")
    with pytest.raises(HartError, match="needs each matrix whole, and FSDP divides them"):
        optimizer_used(config, None, fsdp=True)
    plugin: Any = SimpleNamespace(deepspeed_config={})
    with pytest.raises(HartError, match="needs each matrix whole, and DeepSpeed divides them"):
        optimizer_used(config, plugin, fsdp=False)
    assert optimizer_used(config, None, fsdp=False) == "muon"


def test_a_rate_for_muon_without_muon_is_refused():
    with pytest.raises(HartError, match="training.muon_rate: has no effect with training.optimizer adamw; take muon"):
        TrainingConfig(optimizer="adamw", muon_rate=1e-3)


def test_muon_keeps_one_state_of_a_linear_map(run_config: Build):
    plain, muon = (estimate(run_config(optimizer=name)).memory["optimizer"] for name in ("adamw", "muon"))
    assert 0.5 * plain < muon < plain
