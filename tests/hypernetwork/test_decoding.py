"""The step-by-step decoder against `T5Stack.forward`."""

import pytest
import torch
from transformers import T5ForConditionalGeneration
from transformers.models.t5.modeling_t5 import T5Stack

from hart.hypernetwork import decoding
from hart.hypernetwork.decoding import DecoderPass, relative_bias

LENGTH = 5


@pytest.fixture
def decoder(tiny_t5: T5ForConditionalGeneration) -> T5Stack:
    return tiny_t5.decoder


@pytest.fixture
def memory(decoder: T5Stack) -> torch.Tensor:
    return torch.randn(2, 7, decoder.config.d_model)


@pytest.fixture
def memory_mask() -> torch.Tensor:
    return torch.tensor([[1] * 7, [1] * 4 + [0] * 3])


def stock(decoder, inputs, memory, memory_mask, visible=None):
    """`visible` `[n, n]` is the self-attention mask; None is the stock causal one."""
    if visible is not None:
        visible = visible[None, None].expand(inputs.shape[0], 1, -1, -1)
    return decoder(
        inputs_embeds=inputs,
        attention_mask=visible,
        encoder_hidden_states=memory,
        encoder_attention_mask=memory_mask,
        use_cache=False,
    ).last_hidden_state


def test_one_row_at_a_time_is_stock_causal_decoding(decoder, memory, memory_mask):
    inputs = torch.randn(2, LENGTH, memory.shape[-1])
    bias = relative_bias(decoder, LENGTH)
    decoding = DecoderPass(decoder, memory, memory_mask)
    rows = [decoding.step(inputs[:, i : i + 1], bias[:, :, i : i + 1, : i + 1]) for i in range(LENGTH)]
    torch.testing.assert_close(torch.cat(rows, 1), stock(decoder, inputs, memory, memory_mask))


def test_all_rows_at_once_is_stock_bidirectional_decoding(decoder, memory, memory_mask):
    inputs = torch.randn(2, LENGTH, memory.shape[-1])
    rows = DecoderPass(decoder, memory, memory_mask).step(inputs, relative_bias(decoder, LENGTH))
    everything = torch.ones(LENGTH, LENGTH, dtype=torch.bool)
    torch.testing.assert_close(rows, stock(decoder, inputs, memory, memory_mask, everything))


def test_a_pass_that_forgot_starts_anew(decoder, memory, memory_mask):
    inputs = torch.randn(2, LENGTH, memory.shape[-1])
    bias = relative_bias(decoder, LENGTH)
    decoding = DecoderPass(decoder, memory, memory_mask)
    decoding.step(torch.randn_like(inputs), bias)
    decoding.forget()
    fresh = DecoderPass(decoder, memory, memory_mask)
    assert torch.equal(decoding.step(inputs, bias), fresh.step(inputs, bias))


def test_padding_of_the_memory_is_never_read(decoder, memory, memory_mask):
    inputs, bias = torch.randn(2, LENGTH, memory.shape[-1]), relative_bias(decoder, LENGTH)
    rows = DecoderPass(decoder, memory, memory_mask).step(inputs, bias)
    noise = torch.where(memory_mask[..., None] == 0, 1e3, memory)
    assert torch.equal(DecoderPass(decoder, noise, memory_mask).step(inputs, bias), rows)


def test_gradients_equal_those_of_the_stock_stack(decoder, memory, memory_mask):
    """Through cached keys and values, cross-attention rows and the relative bias alike."""
    inputs = torch.randn(2, LENGTH, memory.shape[-1], requires_grad=True)
    memory.requires_grad_()
    weights = {n: p for n, p in decoder.named_parameters() if "embed_tokens" not in n}
    wanted = [inputs, memory, *weights.values()]
    target = torch.randn(2, LENGTH, memory.shape[-1])

    bias = relative_bias(decoder, LENGTH)
    decoding = DecoderPass(decoder, memory, memory_mask)
    rows = [decoding.step(inputs[:, i : i + 1], bias[:, :, i : i + 1, : i + 1]) for i in range(LENGTH)]
    ours = torch.autograd.grad((torch.cat(rows, 1) * target).sum(), wanted)
    reference = (stock(decoder, inputs, memory, memory_mask) * target).sum()
    theirs = torch.autograd.grad(reference, wanted)
    for name, a, b in zip(["inputs", "memory", *weights], ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_bf16_weights_and_autocast_follow_float32(decoder, memory, memory_mask):
    inputs, bias = torch.randn(2, LENGTH, memory.shape[-1]), relative_bias(decoder, LENGTH)
    exact = DecoderPass(decoder, memory, memory_mask).step(inputs, bias)
    with torch.autocast("cpu", torch.bfloat16):
        autocast = DecoderPass(decoder, memory, memory_mask).step(inputs, bias)
    half = decoder.bfloat16()
    stored = DecoderPass(half, memory.bfloat16(), memory_mask).step(inputs.bfloat16(), relative_bias(half, LENGTH))
    assert stored.dtype == torch.bfloat16
    # bf16 keeps 8 bits: a few percent of the states' size after three layers.
    tolerance = 0.1 * exact.std().item()
    for approximate in (autocast, stored):
        torch.testing.assert_close(approximate.float(), exact, rtol=0, atol=tolerance)


def test_recomputed_weights_give_the_same_gradients_and_are_not_kept(decoder, monkeypatch):
    monkeypatch.setattr(decoding, "MANY", LENGTH)
    decoder.train()
    heads = decoder.config.num_heads

    def run() -> tuple[list[torch.Tensor], set[tuple[int, ...]]]:
        kept: set[tuple[int, ...]] = set()
        torch.manual_seed(1)
        memory = torch.randn(2, 7, decoder.config.d_model, requires_grad=True)
        inputs = torch.randn(2, LENGTH, decoder.config.d_model, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.add(tuple(t.shape)) or t, lambda t: t):
            states = DecoderPass(decoder, memory, torch.ones(2, 7)).step(inputs, relative_bias(decoder, LENGTH))
        states.square().sum().backward()
        return [states.detach(), memory.grad, inputs.grad], kept

    made, kept = run()
    decoder.gradient_checkpointing = True
    again, kept_again = run()
    weights = {(2, heads, LENGTH, LENGTH), (2, heads, LENGTH, 7)}
    assert weights <= kept and not weights & kept_again
    assert decoder.block[0].layer[0].SelfAttention.dropout > 0
    for one, other in zip(made, again, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
