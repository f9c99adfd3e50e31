"""Prefixes in a stock T5's attention, against an explicit T5 and the stock model."""

import copy
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import T5ForConditionalGeneration

from hart.peft.base import Blocks, MainShape
from hart.peft.injection import attach, binding, checkpoint_contexts
from hart.peft.prefix import Prefix

LENGTH = 4
ATTENTIONS = ("sdpa", "eager")
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(params=ATTENTIONS)
def attention(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def stock(tiny_t5: T5ForConditionalGeneration, attention: str) -> T5ForConditionalGeneration:
    tiny_t5.set_attn_implementation(attention)
    return tiny_t5


@pytest.fixture
def main(stock: T5ForConditionalGeneration, attention: str) -> T5ForConditionalGeneration:
    prepared = copy.deepcopy(stock)
    attach(prepared, attention)
    return prepared


def make_inputs(vocabulary: int) -> dict[str, Tensor]:
    """Three queries, two of them padded; targets of one length."""
    lengths = torch.tensor([7, 5, 2])
    mask = (torch.arange(7) < lengths[:, None]).long()
    return {
        "input_ids": torch.randint(2, vocabulary, (3, 7)) * mask,
        "attention_mask": mask,
        "decoder_input_ids": torch.randint(2, vocabulary, (3, 6)),
    }


def make_blocks(main: T5ForConditionalGeneration, batch: int, length: int = LENGTH, scale: float = 1.0) -> Blocks:
    blocks = Prefix(length).row_blocks(MainShape.from_config(main.config))
    return {b.name: (scale * torch.randn(batch, b.layers, b.rows, b.width)).requires_grad_() for b in blocks}


def plain_bucket(distance: int, bidirectional: bool, buckets: int, furthest: int) -> int:
    """Bucket of a relative position (key - query), after the T5 paper's description."""
    offset = 0
    if bidirectional:
        buckets //= 2
        offset = buckets if distance > 0 else 0
        distance = abs(distance)
    else:
        distance = max(-distance, 0)
    exact = buckets // 2
    if distance < exact:
        return offset + distance
    log = math.log(distance / exact) / math.log(furthest / exact) * (buckets - exact)
    return offset + min(exact + int(log), buckets - 1)


def plain_attention(module, x: Tensor, source: Tensor, bias: Tensor, prefix) -> Tensor:
    """One example: `x` [q, d] attends to prefix rows (bias 0) and then to `source` [k, d]."""
    heads, d_kv = module.n_heads, module.key_value_proj_dim

    def split(rows: Tensor) -> Tensor:
        return rows.reshape(len(rows), heads, d_kv).transpose(0, 1)

    q, k, v = split(x @ module.q.weight.T), source @ module.k.weight.T, source @ module.v.weight.T
    if prefix is not None:
        k, v = torch.cat([prefix[0], k]), torch.cat([prefix[1], v])
        bias = torch.cat([torch.zeros(*bias.shape[:2], len(prefix[0])), bias], dim=2)
    weights = (q @ split(k).transpose(1, 2) + bias).softmax(dim=-1)
    return (weights @ split(v)).transpose(0, 1).reshape(len(x), -1) @ module.o.weight.T


def plain_stack(stack, ids: Tensor, blocks: Blocks, row: int, source: Tensor | None) -> Tensor:
    """One unpadded example through the encoder (`source` None) or the decoder."""
    config, decoder = stack.config, source is not None
    table = stack.block[0].layer[0].SelfAttention.relative_attention_bias.weight
    limits = (config.relative_attention_num_buckets, config.relative_attention_max_distance)
    n = len(ids)
    bias = torch.stack(
        [torch.stack([table[plain_bucket(k - q, not decoder, *limits)] for k in range(n)]) for q in range(n)]
    ).permute(2, 0, 1)
    if decoder:
        bias = bias + torch.full((n, n), -math.inf).triu(1)

    def norm(layer, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], layer.weight, config.layer_norm_epsilon)

    x = stack.embed_tokens(ids)
    name = "prefix.decoder" if decoder else "prefix.encoder"
    for index, block in enumerate(stack.block):
        prefix = None
        if blocks:
            prefix = [blocks[f"{name}.{part}"][row, index] for part in ("key", "value")]
        self_layer, *cross_layer, ff_layer = block.layer
        h = norm(self_layer.layer_norm, x)
        x = x + plain_attention(self_layer.SelfAttention, h, h, bias, prefix)
        if source is not None:
            (cross,) = cross_layer
            nothing = torch.zeros(config.num_heads, n, len(source))
            h = norm(cross.layer_norm, x)
            x = x + plain_attention(cross.EncDecAttention, h, source, nothing, None)
        ff = ff_layer.DenseReluDense
        h = norm(ff_layer.layer_norm, x)
        x = x + ff.wo(F.gelu(ff.wi_0(h), approximate="tanh") * ff.wi_1(h))
    return norm(stack.final_layer_norm, x)


def plain_logits(model, inputs: dict[str, Tensor], blocks: Blocks) -> Tensor:
    rows = []
    for row, (ids, mask) in enumerate(zip(inputs["input_ids"], inputs["attention_mask"], strict=True)):
        source = plain_stack(model.encoder, ids[mask.bool()], blocks, row, None)
        target = plain_stack(model.decoder, inputs["decoder_input_ids"][row], blocks, row, source)
        rows.append(model.lm_head(target))
    return torch.stack(rows)


def logits(main, inputs: dict[str, Tensor], blocks: Blocks | None) -> Tensor:
    """Logits with prefixes bound for this forward pass only."""
    if blocks is None:
        return main(**inputs, use_cache=False).logits
    kind = Prefix(blocks["prefix.encoder.key"].shape[2])
    with binding(kind.bindings(main, blocks)):
        return main(**inputs, use_cache=False).logits


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("autocast", [True, False])
def test_no_rows_is_the_stock_model(stock, main, padded: bool, autocast: bool) -> None:
    inputs = make_inputs(stock.config.vocab_size)
    if not padded:  # the case in which the stock SDPA mask function returns no mask
        del inputs["attention_mask"]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        expected = stock(**inputs).logits
        assert torch.equal(logits(main, inputs, None), expected)
        assert torch.equal(logits(main, inputs, make_blocks(main, 3, length=0)), expected)
        logits(main, inputs, make_blocks(main, 3))
        assert torch.equal(logits(main, inputs, None), expected), "a prefix outlived its context"


def test_plain_implementation_is_t5(stock) -> None:
    inputs = make_inputs(stock.config.vocab_size)
    torch.testing.assert_close(plain_logits(stock, inputs, {}), stock(**inputs).logits, **CLOSE)


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_rows_are_keys_and_values_in_front_of_the_tokens(stock, main, scale: float) -> None:
    inputs = make_inputs(stock.config.vocab_size)
    blocks = make_blocks(main, 3, scale=scale)
    expected = plain_logits(stock, inputs, blocks)
    actual = logits(main, inputs, blocks)
    torch.testing.assert_close(actual, expected, **CLOSE)
    assert not torch.allclose(actual, logits(main, inputs, None), **CLOSE)

    weights = torch.randn_like(expected)
    names = list(blocks)
    expected_grads = torch.autograd.grad((expected * weights).sum(), [blocks[n] for n in names])
    actual_grads = torch.autograd.grad((actual * weights).sum(), [blocks[n] for n in names])
    for name, ours, theirs in zip(names, actual_grads, expected_grads, strict=True):
        assert theirs.abs().amax(dim=(0, 2, 3)).min() > 0, f"a layer of {name} gets no gradient"
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_no_position_sees_the_future(main) -> None:
    inputs = make_inputs(main.config.vocab_size)
    del inputs["attention_mask"]
    blocks = make_blocks(main, 3)
    before = logits(main, inputs, blocks)
    changed = dict(inputs)
    other = inputs["decoder_input_ids"].clone()
    other[:, 3:] = (other[:, 3:] + 1) % main.config.vocab_size
    changed["decoder_input_ids"] = other
    after = logits(main, changed, blocks)
    assert torch.equal(before[:, :3], after[:, :3])
    assert not torch.equal(before[:, 3:], after[:, 3:])


def test_one_row_serves_the_whole_batch(main) -> None:
    inputs = make_inputs(main.config.vocab_size)
    one = make_blocks(main, 1)
    each = {name: values.expand(3, -1, -1, -1) for name, values in one.items()}
    torch.testing.assert_close(logits(main, inputs, one), logits(main, inputs, each))


def test_rows_must_divide_the_batch(main) -> None:
    with pytest.raises(ValueError, match="2 sets of parameters cannot serve a batch of 3 rows"):
        logits(main, make_inputs(main.config.vocab_size), make_blocks(main, 2))


def test_both_attentions_agree(tiny_t5) -> None:
    inputs = make_inputs(tiny_t5.config.vocab_size)
    blocks = make_blocks(tiny_t5, 3)
    results = []
    for name in ATTENTIONS:
        main = copy.deepcopy(tiny_t5)
        attach(main, name)
        results.append(logits(main, inputs, blocks))
    torch.testing.assert_close(*results, **CLOSE)


@pytest.mark.parametrize("autocast", [True, False])
def test_bfloat16(main, autocast: bool) -> None:
    inputs = make_inputs(main.config.vocab_size)
    blocks = make_blocks(main, 3)
    expected = logits(main, inputs, blocks)
    if not autocast:
        main = main.to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        actual = logits(main, inputs, blocks)
    assert actual.dtype == torch.bfloat16
    actual.float().square().mean().backward()
    assert all(values.grad.isfinite().all() for values in blocks.values())
    # bfloat16 has 8 significant bits; errors add up over 6 layers.
    error = (actual.float() - expected).norm() / expected.norm()
    assert error < 2**-8 * 6


def test_checkpointed_layers_find_the_rows_of_their_own_forward(main) -> None:
    """Other rows are bound, and cleared, between a forward pass and its backward pass."""
    inputs = make_inputs(main.config.vocab_size)
    main.requires_grad_(False)
    for module in main.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    first, second = make_blocks(main, 3), make_blocks(main, 3)

    def gradients() -> list[Tensor]:
        losses = [logits(main, inputs, b).square().mean() for b in (first, second)]
        (losses[0] + 2 * losses[1]).backward()
        grads = []
        for values in (*first.values(), *second.values()):
            grads.append(values.grad)
            values.grad = None
        return grads

    expected = gradients()
    recomputed = []

    def contexts():
        recomputed.append(checkpoint_contexts())
        return recomputed[-1]

    main.activation_checkpointing_enable({"use_reentrant": False, "context_fn": contexts})
    for module in main.modules():
        module.training = True
        if hasattr(module, "dropout") and isinstance(module.dropout, float):
            module.dropout = 0.0
    actual = gradients()
    layers = main.config.num_layers + main.config.num_decoder_layers
    assert len(recomputed) == 2 * layers, "nothing was checkpointed"
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_attach_leaves_the_state_dict_alone(stock, main) -> None:
    expected = stock.state_dict()
    actual = main.state_dict()
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
