"""The row-by-row decoder against `T5Stack.forward`, which knows nothing of it."""

import copy

import pytest
import torch
from torch import nn
from transformers import T5ForConditionalGeneration
from transformers.models.t5.modeling_t5 import T5Stack

from hart.schemes.decoding import MOST_FEW_ROWS, DecoderPass, FewRowsLinear, multiply_few_rows_faster, relative_bias

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


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 2), (3, 1), (3, 2), (0, 2), (4,)])
@pytest.mark.parametrize("contiguous", [True, False])
def test_few_rows_are_multiplied_alike_with_the_same_gradients(shape, contiguous):
    usual = nn.Linear(24, 40, bias=False)
    fast = FewRowsLinear(24, 40, bias=False)
    fast.load_state_dict(usual.state_dict())
    rows = torch.randn(*shape, 24) if contiguous else torch.randn(24, *shape).movedim(0, -1)
    target = torch.randn(*shape, 40)
    results = []
    for module in (usual, fast):
        given = rows.detach().clone().requires_grad_()
        out = module(given)
        results.append((out, *torch.autograd.grad((out * target).sum(), [given, module.weight])))
    for ours, reference in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, reference)


def test_few_rows_leave_biases_other_numbers_and_autocast_to_torch():
    rows = torch.randn(2, 24)
    for module in (nn.Linear(24, 40), nn.Linear(24, 40, bias=False).bfloat16()):
        fast = copy.deepcopy(module)
        fast.__class__ = FewRowsLinear
        given = rows.to(module.weight.dtype)
        assert torch.equal(fast(given), module(given))
    module = nn.Linear(24, 40, bias=False)
    fast = copy.deepcopy(module)
    fast.__class__ = FewRowsLinear
    with torch.autocast("cpu", torch.bfloat16):
        assert fast(rows).dtype == torch.bfloat16
        assert torch.equal(fast(rows), module(rows))


@pytest.mark.parametrize("batch", [1, 2])
def test_a_decoder_that_multiplies_few_rows_faster_has_the_same_weights_and_states(decoder, batch):
    fast = multiply_few_rows_faster(copy.deepcopy(decoder))
    assert {n: p.shape for n, p in fast.named_parameters()} == {n: p.shape for n, p in decoder.named_parameters()}
    memory = torch.randn(batch, 7, decoder.config.d_model)
    mask = torch.ones(batch, 7, dtype=torch.long)
    inputs, bias = torch.randn(batch, 2, memory.shape[-1]), relative_bias(decoder, 2)
    assert batch * 2 <= MOST_FEW_ROWS
    torch.testing.assert_close(
        DecoderPass(fast, memory, mask).step(inputs, bias), DecoderPass(decoder, memory, mask).step(inputs, bias)
    )
