"""Generated parameters in decoder-only models, against the stock model and against the PEFT library."""

import copy
from typing import Any

import jaxtyping
import pytest
import torch
from decoder_models import CONFIGS, decoder_model, fitting
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from hart.errors import HartError
from hart.peft import injection
from hart.peft.architectures import ARCHITECTURES, architecture
from hart.peft.base import Blocks, MainShape, build_kinds, row_blocks
from hart.peft.injection import attach, binding
from hart.runtime.third_party.transformers import CACHE

NAMES = list(CONFIGS)
EVERY_MAP = ["q", "k", "v", "o", "wi", "wo"]
LORA = {"kind": "lora", "rank": 2, "alpha": 2.0, "targets": EVERY_MAP}
PREFIX = [{"kind": "prefix", "length": 3}]
KINDS = {
    "prefix": PREFIX,
    "lora": [LORA],
    "ia3": [{"kind": "ia3"}],
    "adapter": [{"kind": "adapter", "bottleneck": 3}],
    "all": [*PREFIX, LORA, {"kind": "ia3"}, {"kind": "adapter"}],
}
IDS = torch.randint(2, 60, (2, 14), generator=torch.Generator().manual_seed(3))


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def stock(name: str) -> PreTrainedModel:
    return decoder_model(name)


@pytest.fixture
def seamed(stock: PreTrainedModel) -> PreTrainedModel:
    model = copy.deepcopy(stock)
    attach(model, "sdpa")
    return model


def draw(model: PreTrainedModel, peft: list[dict], n: int = 1, scale: float = 0.5) -> Blocks:
    generator = torch.Generator().manual_seed(5)
    shape = MainShape.of(model)
    return {
        block.name: scale * torch.randn(n, block.layers, block.rows, block.width, generator=generator)
        for block in row_blocks(build_kinds(fitting(peft, shape)), shape)
    }


def run(model: PreTrainedModel, peft: list[dict], blocks: Blocks, ids: Tensor = IDS, **given: Any) -> Tensor:
    kinds = build_kinds(fitting(peft, MainShape.of(model)))
    with binding(*(kind.bindings(model, blocks) for kind in kinds)):
        return model(ids, **given).logits


def test_every_architecture_has_a_test() -> None:
    assert {*(config.model_type for config, _ in CONFIGS.values()), "t5"} == set(ARCHITECTURES)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_without_blocks_it_is_the_stock_model_to_the_last_bit(stock: PreTrainedModel, attention: str) -> None:
    model = copy.deepcopy(stock)
    attach(model, attention)
    stock.set_attn_implementation("eager" if architecture(stock.config).eager else attention)
    mask = torch.ones_like(IDS)
    mask[1, :5] = 0
    for given in ({}, {"attention_mask": mask}):
        assert torch.equal(model(IDS, **given).logits, stock(IDS, **given).logits)


@torch.no_grad()
def test_a_prefix_is_a_past_of_as_many_tokens(name: str, stock: PreTrainedModel, seamed: PreTrainedModel) -> None:
    if name == "gemma4_text, shared":
        pytest.skip("transformers counts positions by the past of the first layer, which has no prefix here")
    shape, blocks = MainShape.of(stock), draw(stock, PREFIX, n=2)
    past = DynamicCache() if shape.attention is None else DynamicCache(config=stock.config)
    for index, layer in enumerate(shape.attention or range(shape.decoder_layers)):
        keys, values = (
            blocks[f"prefix.decoder.{part}"][:, index].unflatten(-1, (shape.heads_in_front, -1)).transpose(1, 2)
            for part in ("key", "value")
        )
        past.update(keys, values, layer)
    stock.set_attn_implementation("eager")
    expected = stock(IDS, **{CACHE: past}, attention_mask=torch.ones(2, 17, dtype=torch.long)).logits
    for attention in ("sdpa", "eager"):
        attach(seamed, attention)
        torch.testing.assert_close(run(seamed, PREFIX, blocks), expected, rtol=1e-4, atol=5e-5)


@pytest.mark.parametrize("kinds", KINDS)
@torch.no_grad()
def test_each_row_has_its_own_and_padding_changes_nothing(seamed: PreTrainedModel, kinds: str) -> None:
    peft, blocks = KINDS[kinds], draw(seamed, KINDS[kinds], n=2, scale=0.3)
    mask = torch.ones_like(IDS)
    mask[1, :5] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    together = run(seamed, peft, blocks, attention_mask=mask, position_ids=positions)
    for row, start in ((0, 0), (1, 5)):
        own = {key: values[row : row + 1] for key, values in blocks.items()}
        alone = run(seamed, peft, own, IDS[row : row + 1, start:])
        torch.testing.assert_close(together[row, start:], alone[0], rtol=1e-4, atol=5e-5)
        assert not torch.allclose(alone, seamed(IDS[row : row + 1, start:]).logits, atol=1e-2)


@pytest.mark.parametrize("kinds", KINDS)
@torch.no_grad()
def test_cached_steps_give_what_one_pass_gives(seamed: PreTrainedModel, kinds: str) -> None:
    peft, blocks = KINDS[kinds], draw(seamed, KINDS[kinds], n=2, scale=0.3)
    whole = run(seamed, peft, blocks)
    cache = DynamicCache(config=seamed.config)
    parts = [IDS[:, :6], *IDS[:, 6:].split(1, dim=1)]
    steps = [run(seamed, peft, blocks, part, **{CACHE: cache}, use_cache=True) for part in parts]
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, rtol=1e-4, atol=5e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2"], indirect=True)
@torch.no_grad()
def test_a_compiled_model_gives_the_same_numbers(seamed: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each layer has what is bound to it, whatever was bound when the model was compiled."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the checks of this test run cannot be compiled
    torch.compiler.reset()
    compiled = torch.compile(seamed, backend="eager")
    options = {"attention_mask": torch.ones_like(IDS), "use_cache": False}
    for kinds in ("prefix", "lora", "all"):
        peft, blocks = KINDS[kinds], draw(seamed, KINDS[kinds], scale=0.3)
        with binding(*(kind.bindings(seamed, blocks) for kind in build_kinds(peft))):
            torch.testing.assert_close(compiled(IDS, **options).logits, seamed(IDS, **options).logits)
    torch.testing.assert_close(compiled(IDS, **options).logits, seamed(IDS, **options).logits)


def test_every_row_of_every_layer_acts_and_gets_gradient(seamed: PreTrainedModel) -> None:
    seamed.requires_grad_(False)
    blocks = {key: values.requires_grad_() for key, values in draw(seamed, KINDS["all"], scale=0.3).items()}
    run(seamed, KINDS["all"], blocks).square().sum().backward()
    for key, values in blocks.items():
        assert values.grad is not None and values.grad.isfinite().all(), key
        assert values.grad.flatten(2).any(dim=2).all(), key


@torch.no_grad()
def test_new_parameters_change_nothing_where_their_kind_promises_it(seamed: PreTrainedModel) -> None:
    before, shape = seamed(IDS).logits, MainShape.of(seamed)
    for kind in build_kinds(fitting(KINDS["all"], shape)):
        stds = kind.init_std(seamed, shape)
        blocks = {
            block.name: torch.randn(1, block.layers, block.rows, block.width) * stds[block.name][:, None, None]
            for block in kind.row_blocks(shape)
        }
        with binding(kind.bindings(seamed, blocks)):
            assert torch.equal(seamed(IDS).logits, before) == kind.identity_at_start


@torch.no_grad()
def test_prefixes_start_at_a_fraction_of_the_size_of_the_models_own_keys_and_values(seamed: PreTrainedModel) -> None:
    """Measured on tokens; the formula takes their features to be uncorrelated, so it is right up to a factor."""
    (kind,) = build_kinds([{"kind": "prefix", "length": 3, "init_scale": 1.0}])
    stds = kind.init_std(seamed, MainShape.of(seamed))
    shape = MainShape.of(seamed)
    cache = DynamicCache() if shape.attention is None else DynamicCache(config=seamed.config)
    seamed(torch.randint(2, 60, (4, 30)), **{CACHE: cache}, use_cache=True)
    for part, own in (("key", "keys"), ("value", "values")):
        of = shape.attention or range(shape.decoder_layers)
        for layer, std in zip(of, stds[f"prefix.decoder.{part}"].tolist(), strict=True):
            found = getattr(cache.layers[layer], own)
            measured = (found - found.mean(dim=(0, 2), keepdim=True)).square().mean().sqrt().item()
            assert 0.4 < measured / std < 2.5, (part, layer)


def test_shapes_are_read_from_the_model() -> None:
    assert MainShape.of(decoder_model("qwen3")) == MainShape(32, 4, 16, 40, 0, 3, gated=True, kv_heads=2)
    assert MainShape.of(decoder_model("gpt2")) == MainShape(32, 4, 8, 128, 0, 3, gated=False)
    shape = MainShape.of(decoder_model("llama"))
    assert shape.stacks == ("decoder",) and not shape.has_encoder and (shape.inner, shape.kv_inner) == (32, 16)


def test_what_a_decoder_only_model_has_not_is_refused() -> None:
    shape = MainShape.of(decoder_model("llama"))
    for kind in (
        {"kind": "prefix", "cross": True},
        {"kind": "ia3", "cross": True},
        {"kind": "lora", "targets": ["cross_q"]},
    ):
        with pytest.raises(HartError, match=f"peft.{kind['kind']}.* cross-attention, which a decoder-only base lacks"):
            row_blocks(build_kinds([kind]), shape)
    with pytest.raises(HartError, match="'opt' have no row in hart's table of sites; supported are t5, llama"):
        architecture(type("Config", (), {"model_type": "opt"}))
    mixture = MainShape.of(decoder_model("mixtral"))
    with pytest.raises(HartError, match=r"peft.lora.targets: a mixture of experts, or .* has no maps wi and wo"):
        row_blocks(build_kinds([LORA]), mixture)
    assert "ia3.decoder.ff" not in {block.name for block in row_blocks(build_kinds([{"kind": "ia3"}]), mixture)}
    with pytest.raises(HartError, match="gpt2.* have no wi_0"):
        injection.sites(decoder_model("gpt2"), "decoder", "wi_0")
    odd = decoder_model("llama")
    odd.model.layers[1].mlp.up_proj = torch.nn.Linear(32, 50)
    with pytest.raises(HartError, match=r"map wi_1 of decoder layer 1 has shape \[50, 32\]"):
        MainShape.of(odd)
