"""The fast paths of the attention functions give the same results as the plain ones."""

import gc
import weakref
from typing import Any

import jaxtyping
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, T5ForConditionalGeneration

from hart.benchmarks.measuring import count
from hart.benchmarks.models import main_model, random_adaptation
from hart.hypernetwork.network import HyperNetwork
from hart.peft import attention, injection
from hart.peft.injection import ExtraKeyValues

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
BATCH, HEADS, WIDTH, TOKENS = 4, 3, 8, 7
SHORT, LONG = 5, 2 * WIDTH + 1
"""Queries below and above the number from which keys and values are joined."""


@pytest.fixture
def module(tiny_t5: T5ForConditionalGeneration) -> torch.nn.Module:
    """An attention module that rows can be bound to."""
    injection.attach(tiny_t5, "sdpa")
    return injection.sites(tiny_t5, "decoder", "cross_attention")[0]


def make(queries: int, sets: int, rows: int = 6, masked: bool = True) -> tuple[dict[str, Tensor], ExtraKeyValues]:
    mask = torch.ones(sets, rows, dtype=torch.long)
    if masked:
        mask[0, 4:] = 0
    visible = torch.rand(BATCH, 1, queries, TOKENS) > 0.3
    visible[..., 0] = True
    inputs = {
        "query": torch.randn(BATCH, HEADS, queries, WIDTH),
        "key": torch.randn(BATCH, HEADS, TOKENS, WIDTH),
        "value": torch.randn(BATCH, HEADS, TOKENS, WIDTH),
        "attention_mask": visible,
        "position_bias": torch.randn(1, HEADS, queries, TOKENS),
    }
    parts = (torch.randn(sets, HEADS, rows, WIDTH) for _ in range(2))
    return inputs, ExtraKeyValues(*parts, mask if masked else None)


def plain(inputs: dict[str, Tensor], rows: ExtraKeyValues) -> Tensor:
    """One softmax over joined keys, each row of the batch by itself."""
    made = []
    each = BATCH // len(rows.key)
    for b in range(BATCH):
        own = b // each
        key, value = (torch.cat([r[own], inputs[n][b]], dim=1) for r, n in ((rows.key, "key"), (rows.value, "value")))
        scores = inputs["query"][b] @ key.transpose(1, 2)
        bias = torch.where(inputs["attention_mask"][b], inputs["position_bias"][0], -torch.inf)
        front = torch.zeros(*bias.shape[:2], rows.key.shape[2])
        if rows.mask is not None:
            front = front.masked_fill(rows.mask[own] == 0, -torch.inf)
        made.append((scores + torch.cat([front, bias], dim=2)).softmax(-1) @ value)
    return torch.stack(made).transpose(1, 2)


def run(module: torch.nn.Module, inputs: dict[str, Tensor], rows: ExtraKeyValues) -> Tensor:
    with injection.binding({module: rows}):
        return attention.hart_sdpa(module.eval(), **inputs, scaling=1.0)[0]


@pytest.mark.parametrize("queries", [1, SHORT, LONG])
@pytest.mark.parametrize("sets", [1, 2, BATCH])
@pytest.mark.parametrize("masked", [True, False])
def test_both_ways_are_one_softmax_over_rows_and_tokens(module, queries: int, sets: int, masked: bool) -> None:
    inputs, rows = make(queries, sets, masked=masked)
    torch.testing.assert_close(run(module, inputs, rows), plain(inputs, rows), **CLOSE)


def test_both_ways_give_the_same_gradients(module) -> None:
    """In training both occur, by the length of the answers."""
    inputs, rows = make(LONG, 2)
    leaves = [inputs["query"], inputs["key"], inputs["value"], rows.key, rows.value]
    for leaf in leaves:
        leaf.requires_grad_()
    weights = torch.randn(BATCH, LONG, HEADS, WIDTH)
    joined = torch.autograd.grad((run(module, inputs, rows) * weights).sum(), leaves)
    own = torch.where(inputs["attention_mask"], inputs["position_bias"], torch.finfo(torch.float32).min)
    made = attention._two_products(module, inputs["query"], inputs["key"], inputs["value"], own, rows, 0.0, 1.0)
    apart = torch.autograd.grad((made * weights).sum(), leaves)
    for ours, theirs in zip(apart, joined, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_shared_rows_are_not_copied_for_the_batch(module) -> None:
    inputs, rows = make(1, 1, rows=500, masked=False)
    counted = count(lambda: run(module, inputs, rows))
    copies = BATCH * rows.key.numel() * rows.key.element_size()
    assert max(counted.largest.values()) < copies / 4


@pytest.mark.parametrize("padded", [True, False])
def test_the_encoder_of_a_hypernetwork_is_the_stock_one(tiny_t5: T5ForConditionalGeneration, padded: bool) -> None:
    """Its bias is put together once and its activation is one operation; the values are those of the checkpoint's."""
    peft = [{"kind": "prefix", "length": 4}]
    network = HyperNetwork.from_base(tiny_t5, decoder_layers=2, scheme={"name": "autoregressive"}, peft=peft).eval()
    ids = torch.randint(3, 200, (3, 9))
    mask = (torch.arange(9) < torch.tensor([9, 5, 2])[:, None]).long() if padded else torch.ones_like(ids)
    expected = tiny_t5.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    actual = network.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(actual[mask.bool()], expected[mask.bool()], rtol=1e-4, atol=1e-5)

    def gradient(encoder: torch.nn.Module) -> list[Tensor]:
        states = encoder(input_ids=ids, attention_mask=mask).last_hidden_state[mask.bool()]
        return torch.autograd.grad(states.pow(3).sum(), list(encoder.parameters()))

    for ours, theirs in zip(gradient(network.encoder), gradient(tiny_t5.encoder), strict=True):
        scale = theirs.abs().max().clamp(min=1e-6)
        torch.testing.assert_close(ours / scale, theirs / scale, rtol=1e-3, atol=1e-4)


def test_recomputed_layers_share_nothing(tiny_t5: T5ForConditionalGeneration) -> None:
    """With gradient checkpointing the bias carries gradient and each layer makes its own."""
    peft = [{"kind": "prefix", "length": 4}]
    network = HyperNetwork.from_base(
        tiny_t5, decoder_layers=1, scheme={"name": "shared"}, peft=peft, dropout=0.0
    ).train()
    ids = torch.randint(3, 200, (2, 6))
    weight = network.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight

    def gradient() -> Tensor:
        states = network.encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        return torch.autograd.grad(states.pow(3).sum(), weight)[0]

    expected = gradient()
    network.encoder.activation_checkpointing_enable({"use_reentrant": False})
    torch.testing.assert_close(gradient(), expected, rtol=1e-4, atol=1e-4)
    assert F.mse_loss(expected, torch.zeros_like(expected)) > 0


@pytest.mark.parametrize("masked", [True, False])
def test_what_is_kept_for_a_pass_goes_with_it(tiny_t5: T5ForConditionalGeneration, masked: bool) -> None:
    """By counting references alone: what waits for a collection piles up in a server."""
    ids = torch.randint(3, 200, (2, 6))
    mask = torch.ones_like(ids)
    mask[1, 4:] = 1 - int(masked)
    biases: list[weakref.ref] = []
    stock = attention.hart_sdpa

    def watched(module: Any, *args: Any, position_bias: Any = None, **kwargs: Any) -> Any:
        biases.append(weakref.ref(position_bias))
        return stock(module, *args, position_bias=position_bias, **kwargs)

    AttentionInterface.register("watched", watched)
    AttentionMaskInterface.register("watched", AttentionMaskInterface()["hart_sdpa"])
    tiny_t5.set_attn_implementation("watched")
    gc.disable()
    try:
        with torch.no_grad():
            tiny_t5(input_ids=ids, attention_mask=mask, decoder_input_ids=ids)
        assert biases and not [bias for bias in biases if bias() is not None]
    finally:
        gc.enable()


@pytest.mark.parametrize("queries", [1, LONG])
@pytest.mark.parametrize("sets", [1, 2, BATCH])
def test_a_gpu_gets_the_stock_function(module, monkeypatch: pytest.MonkeyPatch, queries: int, sets: int) -> None:
    """Keys and values are joined whatever the number of queries, and nothing is kept with the bias."""
    inputs, extra = make(queries, sets)
    expected = run(module, inputs, extra)
    inputs["position_bias"] = inputs["position_bias"].clone()
    monkeypatch.setattr(attention, "takes_cpu_paths", lambda tensor: False)
    seen: list[int] = []
    stock = attention.sdpa_attention_forward

    def watched(module: Any, query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(key.shape[2])
        return stock(module, query, key, *args, **kwargs)

    monkeypatch.setattr(attention, "sdpa_attention_forward", watched)
    torch.testing.assert_close(run(module, inputs, extra), expected, **CLOSE)
    assert seen == [extra.key.shape[2] + TOKENS]
    assert not vars(inputs["position_bias"])


@torch.no_grad()
def test_a_compiled_model_gives_the_same_numbers(
    tiny_t5: T5ForConditionalGeneration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with what is bound after it was compiled: other prefixes, a memory, changes, nothing again."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the checks of this test run cannot be compiled
    main = main_model(tiny_t5)
    ids, labels = torch.randint(3, 200, (2, 5)), torch.randint(3, 200, (2, 3))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "decoder_input_ids": labels}
    lora = {"kind": "lora", "rank": 2, "targets": ["q", "wo"]}
    prefixes = [random_adaptation(main, 2, tokens) for tokens in (0, 4)]
    every = [None, *prefixes, random_adaptation(main, 2, 4, peft=[lora]), None]

    def logits(model: Any, adaptation: Any) -> Tensor:
        with main.adapted(adaptation, batch=2):
            return model(**inputs, use_cache=False).logits

    expected = [logits(main.model, adaptation) for adaptation in every]
    compiled = torch.compile(main.model, backend="eager", fullgraph=False)
    for adaptation, wanted in zip(every, expected, strict=True):
        torch.testing.assert_close(logits(compiled, adaptation), wanted, **CLOSE)
