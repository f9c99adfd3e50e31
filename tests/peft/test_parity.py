"""LoRA, (IA)³ and decoder prefixes give the logits that the PEFT library gives for the same numbers.

Adapters have no counterpart there; `test_lora_adapter_ia3.py` compares them with a plain forward pass.
"""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from transformers import T5Config, T5ForConditionalGeneration

from hart.peft.base import Blocks, MainShape, PeftKind, build_kinds, row_blocks
from hart.peft.injection import attach, binding

peft = pytest.importorskip("peft")
from peft_prefixes import peft_prefixes  # noqa: E402

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
LAYERS, LENGTH = 2, 4
SELF_ATTENTION, CROSS_ATTENTION = ("q", "k", "v", "o"), ("cross_q", "cross_k", "cross_v", "cross_o")


def build(feed_forward: str, d_kv: int) -> T5ForConditionalGeneration:
    """A tiny T5 with relative biases that matter; heads · d_kv is 3 · d_kv."""
    sizes = {"vocab_size": 40, "d_model": 24, "num_heads": 3, "d_kv": d_kv, "d_ff": 32, "num_layers": LAYERS}
    model = T5ForConditionalGeneration(
        T5Config(**sizes, feed_forward_proj=feed_forward, dropout_rate=0.0, decoder_start_token_id=0)
    )
    with torch.no_grad():
        for stack in (model.encoder, model.decoder):
            stack.block[0].layer[0].SelfAttention.relative_attention_bias.weight.normal_()
    return model.eval()


@pytest.fixture(params=["gated-gelu", "relu"])
def stock(request: pytest.FixtureRequest) -> T5ForConditionalGeneration:
    return build(request.param, d_kv=5)


@torch.no_grad()
def logits(model: nn.Module, **options) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return model(
        input_ids=torch.randint(2, 40, (3, 7), generator=generator),
        attention_mask=torch.tensor([[1] * 7, [1] * 5 + [0] * 2, [1] * 2 + [0] * 5]),
        decoder_input_ids=torch.randint(2, 40, (3, 6), generator=generator),
        **options,
    ).logits


def draw(kind: PeftKind, stock: T5ForConditionalGeneration, batch: int) -> Blocks:
    shape = MainShape.from_config(stock.config)
    return {b.name: 0.5 * torch.randn(batch, b.layers, b.rows, b.width) for b in row_blocks([kind], shape)}


def ours(kind: PeftKind, stock: T5ForConditionalGeneration, blocks: Blocks) -> Tensor:
    main = copy.deepcopy(stock)
    attach(main, "sdpa")
    with binding(kind.bindings(main, blocks)):
        return logits(main)


def path(stack: str, layer: int, site: str) -> str:
    """Where a stock T5 keeps the map that a block's name calls `site`."""
    if site in SELF_ATTENTION:
        return f"{stack}.block.{layer}.layer.0.SelfAttention.{site}"
    if site in CROSS_ATTENTION:
        return f"{stack}.block.{layer}.layer.1.EncDecAttention.{site.removeprefix('cross_')}"
    return f"{stack}.block.{layer}.layer.{1 if stack == 'encoder' else 2}.DenseReluDense.{site}"


def maps(blocks: Blocks) -> Iterator[tuple[str, str, str, int]]:
    """(block, path, part, layer) of every block of the form `<kind>.<stack>.<site>.<part>`."""
    for name, values in blocks.items():
        _, stack, site, part = name.split(".")
        for layer in range(values.shape[1]):
            yield name, path(stack, layer, site), part, layer


@pytest.mark.parametrize(
    "targets",
    [*([target] for target in (*SELF_ATTENTION, *CROSS_ATTENTION, "wi", "wo")),
     [*SELF_ATTENTION, *CROSS_ATTENTION, "wi", "wo"]],
    ids="+".join,
)  # fmt: skip
def test_lora_of_mixed_tasks(stock, targets: list[str]) -> None:
    """Three rows with parameters of their own are three named adapters in PEFT."""
    (kind,) = build_kinds([{"kind": "lora", "rank": 2, "alpha": 5.0, "targets": targets}])
    blocks = draw(kind, stock, batch=3)
    names = ["first", "second", "third"]
    config = {"r": 2, "lora_alpha": 5.0, "target_modules": sorted({where for _, where, _, _ in maps(blocks)})}
    theirs = peft.get_peft_model(copy.deepcopy(stock), peft.LoraConfig(**config), adapter_name=names[0])
    for name in names[1:]:
        theirs.add_adapter(name, peft.LoraConfig(**config))
    for row, adapter in enumerate(names):
        for name, where, part, layer in maps(blocks):
            module = theirs.base_model.model.get_submodule(where)
            rows = blocks[name][row, layer]
            if part == "a":
                module.lora_A[adapter].weight.data.copy_(rows)
            else:
                module.lora_B[adapter].weight.data.copy_(rows.T)
    changed = ours(kind, stock, blocks)
    torch.testing.assert_close(changed, logits(theirs.eval(), adapter_names=names), **CLOSE)
    assert not torch.allclose(changed, logits(stock), atol=1e-2)


def test_ia3(stock) -> None:
    """PEFT holds the vectors themselves, we their difference from 1."""
    (kind,) = build_kinds([{"kind": "ia3", "cross": True}])
    blocks = draw(kind, stock, batch=1)
    sites = {"key": "k", "value": "v", "ff": "wo", "cross_key": "cross_k", "cross_value": "cross_v"}
    config = peft.IA3Config(target_modules=["k", "v", "wo"], feedforward_modules=["wo"])
    theirs = peft.get_peft_model(copy.deepcopy(stock), config)
    filled = 0
    for name, values in blocks.items():
        _, stack, part = name.split(".")
        for layer in range(LAYERS):
            vector = theirs.base_model.model.get_submodule(path(stack, layer, sites[part])).ia3_l["default"]
            vector.data.copy_(1 + values[0, layer].view(vector.shape))
            filled += 1
    assert filled == sum("ia3_l" in name for name, _ in theirs.named_parameters())
    changed = ours(kind, stock, blocks)
    torch.testing.assert_close(changed, logits(theirs.eval()), **CLOSE)
    assert not torch.allclose(changed, logits(stock), atol=1e-2)


@peft_prefixes
def test_decoder_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same logits, once the relative bias of PEFT's prefix columns is 0.

    PEFT puts prefixes into the key/value cache. T5 takes what is there for earlier tokens and gives it their relative
    bias; ours have none. The biases depend on the query's place, so no key could make up for them: a model with
    prefixes can be exported exactly only where the decoder's relative bias is 0. PEFT has no prefixes in the encoder,
    so ours are of no rows there. And for T5 it gives layer l of the decoder the pieces 4l to 4l + 3, of which it drops
    the last two (cross-attention), which takes twice as many layers as the model has. It needs d_kv = d_model / heads.
    """
    stock = build("gated-gelu", d_kv=8)
    (kind,) = build_kinds([{"kind": "prefix", "length": LENGTH}])
    blocks = draw(kind, stock, batch=1)
    config = peft.PrefixTuningConfig(
        task_type="SEQ_2_SEQ_LM",
        num_virtual_tokens=LENGTH,
        num_layers=2 * LAYERS,
        token_dim=stock.config.d_model,
        num_attention_heads=stock.config.num_heads,
    )
    theirs = peft.get_peft_model(copy.deepcopy(stock), config).eval()
    rows = torch.zeros(LENGTH, 4 * LAYERS, stock.config.d_model)
    for layer in range(LAYERS):
        rows[:, 4 * layer] = blocks["prefix.decoder.key"][0, layer]
        rows[:, 4 * layer + 1] = blocks["prefix.decoder.value"][0, layer]
    theirs.prompt_encoder["default"].embedding.weight.data.copy_(rows.flatten(1))
    decoder_only = {name: values[:, :, : 0 if "encoder" in name else None] for name, values in blocks.items()}
    changed = ours(kind, stock, decoder_only)
    assert not torch.allclose(changed, logits(stock), atol=1e-2)
    assert not torch.allclose(changed, logits(theirs), atol=1e-2)

    attention = theirs.base_model.decoder.block[0].layer[0].SelfAttention
    biases = attention.compute_bias

    def without_bias(*args, **kwargs) -> Tensor:
        made = biases(*args, **kwargs)
        return torch.cat([torch.zeros_like(made[..., :LENGTH]), made[..., LENGTH:]], dim=-1)

    monkeypatch.setattr(attention, "compute_bias", without_bias)
    torch.testing.assert_close(changed, logits(theirs), **CLOSE)
