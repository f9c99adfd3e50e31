"""Muon for linear maps with AdamW for all other parameters."""

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.optim import Optimizer

from hart.training import loop as module
from hart.training import muon
from hart.training.config import RunConfig, TrainingConfig
from hart.training.muon import BatchedMuon, orthogonalised
from hart.training.optimizer import linear_weights, make_optimizer
from hart.training.train import train

Build = Callable[..., RunConfig]

STEPS = 4  # of `run_config`


@pytest.mark.parametrize("shape", [(6, 6), (4, 8), (8, 4)])
def test_orthogonalised_keeps_singular_vectors_and_levels_the_values(shape: tuple[int, int]):
    torch.manual_seed(0)
    matrices = torch.randn(3, *shape)
    found = orthogonalised(matrices, (3.4445, -4.7750, 2.0315), 5, 1e-7)
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    values = left.mT @ found @ right.mT
    diagonal = values.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(values, torch.diag_embed(diagonal), rtol=0, atol=1e-4)
    assert ((diagonal > 0.6) & (diagonal < 1.3)).all()


def maps() -> list[nn.Parameter]:
    torch.manual_seed(1)
    return [nn.Parameter(torch.randn(*shape)) for shape in ((8, 8), (12, 8), (8, 8), (8, 12), (8, 8), (12, 8))]


def moved(optimizer: Callable[..., Optimizer], **settings: Any) -> list[torch.Tensor]:
    """What three steps change; the second map has no gradient in the last."""
    found = maps()
    steps = optimizer(found, lr=1e-2, **settings)
    for step in range(3):
        torch.manual_seed(step)
        for place, each in enumerate(found):
            gradient = torch.randn(each.shape)
            each.grad = None if step == 2 and place == 1 else gradient
        steps.step()
    return [each.detach() - before.detach() for each, before in zip(found, maps(), strict=True)]


in_torch = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has Muon from 2.9 on")


def torchs(matrices: list[nn.Parameter], **settings: Any) -> Optimizer:
    return torch.optim.Muon(matrices, adjust_lr_fn="match_rms_adamw", **settings)


@in_torch
@pytest.mark.parametrize("settings", [{}, {"weight_decay": 0.5}, {"nesterov": False, "momentum": 0.5, "ns_steps": 3}])
def test_matrices_together_move_as_in_torchs_own(settings: dict[str, Any]):
    settings = {"weight_decay": 0.0, **settings}
    for ours, theirs in zip(moved(BatchedMuon, **settings), moved(torchs, **settings), strict=True):
        assert (ours - theirs).norm() < 0.01 * theirs.norm()


def test_a_bound_on_what_one_product_takes_changes_nothing(monkeypatch: pytest.MonkeyPatch):
    together = moved(BatchedMuon)
    monkeypatch.setattr(muon, "_AT_ONCE", 1)
    for some, alone in zip(together, moved(BatchedMuon), strict=True):
        torch.testing.assert_close(some, alone, rtol=0, atol=1e-4)


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


@in_torch
def test_muon_moves_linear_maps_as_torchs_own_and_adamw_all_else():
    config = TrainingConfig(optimizer="muon", learning_rate=1e-2, muon_rate=3e-2, weight_decay=0.1)
    ours, reference = small(), small()
    maps = [reference["first"].weight, reference["second"].weight]
    rest = [reference["table"].weight], [reference["first"].bias, *reference["norm"].parameters()]
    expected = [
        torchs(maps, lr=3e-2, weight_decay=0.1),
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
        torch.testing.assert_close(value, other, rtol=0, atol=4e-4, msg=name)  # steps of .01; bfloat16 inside


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


def test_a_closure_is_called_once_before_anything_moves():
    model = small()
    optimizer = make_optimizer(model, TrainingConfig(optimizer="muon", learning_rate=1e-2), "muon")
    seen: list[torch.Tensor] = []

    def loss() -> torch.Tensor:
        seen.append(torch.cat([each.detach().flatten() for each in model.parameters()]))
        optimizer.zero_grad()
        found = model["second"](model["first"](model["norm"](model["table"](torch.arange(5))))).square().sum()
        found.backward()
        return found

    before = torch.cat([each.detach().flatten() for each in model.parameters()])
    found = optimizer.step(loss)
    assert found is not None and found > 0 and len(seen) == 1 and torch.equal(seen[0], before)
    assert all(not torch.equal(a, b) for a, b in zip(model.parameters(), small().parameters(), strict=True))
