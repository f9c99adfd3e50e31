"""`StepLinear` against `nn.Linear` in the stock decoder: the same numbers, gradients and parameters."""

import copy
import gc
import weakref

import pytest
import torch
from torch import Tensor, nn
from transformers import T5ForConditionalGeneration
from transformers.models.t5.modeling_t5 import T5Stack

from hart.benchmarks.measuring import count
from hart.benchmarks.models import hypernetwork, t5_config
from hart.hypernetwork import step_linear
from hart.hypernetwork.decoding import DecoderPass, relative_bias
from hart.hypernetwork.step_linear import MOST_FEW, StepLinear, Steps, multiply, step_linears

STEPS, ROWS = 4, 2


@pytest.fixture
def stock(tiny_t5: T5ForConditionalGeneration) -> T5Stack:
    return tiny_t5.decoder


@pytest.fixture
def fast(stock: T5Stack) -> T5Stack:
    decoder = copy.deepcopy(stock)
    step_linears(decoder)
    return decoder


def run(decoder: T5Stack, inputs: Tensor, memory: Tensor) -> list[Tensor]:
    """Steps of two rows, each fed with the one before, as `Autoregressive` takes them."""
    bias = relative_bias(decoder, STEPS * ROWS)
    steps = DecoderPass(decoder, memory, torch.ones(memory.shape[:2]))
    states = [inputs]
    for step in range(STEPS):
        end = (step + 1) * ROWS
        states.append(steps.step(states[-1], bias[:, :, end - ROWS : end, :end]))
    return states[1:]


def given(decoder: T5Stack, batch: int) -> tuple[Tensor, Tensor]:
    d_model = decoder.config.d_model
    return torch.randn(batch, ROWS, d_model, requires_grad=True), torch.randn(batch, 7, d_model, requires_grad=True)


def named(decoder: T5Stack) -> dict[str, nn.Parameter]:
    return {n: p for n, p in decoder.named_parameters() if "embed_tokens" not in n}


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 2), (3, 1), (3, 2), (0, 2), (4,)])
@pytest.mark.parametrize("contiguous", [True, False])
def test_few_rows_are_multiplied_alike_with_the_same_gradients(shape: tuple[int, ...], contiguous: bool) -> None:
    weight = torch.randn(40, 24, requires_grad=True)
    rows = torch.randn(*shape, 24) if contiguous else torch.randn(24, *shape).movedim(0, -1)
    target = torch.randn(*shape, 40)
    results = []
    for function in (nn.functional.linear, multiply):
        inputs = rows.detach().requires_grad_()
        out = function(inputs, weight)
        results.append((out, *torch.autograd.grad((out * target).sum(), [inputs, weight])))
    for ours, reference in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, reference)


def test_other_numbers_and_autocast_are_left_to_torch() -> None:
    rows, weight = torch.randn(2, 24), torch.randn(40, 24)
    half = rows.bfloat16(), weight.bfloat16()
    assert torch.equal(multiply(*half), nn.functional.linear(*half))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(multiply(rows, weight), nn.functional.linear(rows, weight))


def test_a_hypernetworks_decoder_has_the_stock_parameters(stock: T5Stack, fast: T5Stack) -> None:
    assert {n: p.shape for n, p in fast.named_parameters()} == {n: p.shape for n, p in stock.named_parameters()}


def test_the_device_decides_the_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU they are torch's own, whatever the pass before was on; the states are the same."""
    network = hypernetwork(t5_config("tiny", vocabulary=100), decoder_layers=2)
    assert network.decoder is not None and network.scheme is not None
    assert {type(m) for m in network.decoder.modules() if isinstance(m, nn.Linear)} == {StepLinear}
    memory, states, calls = torch.randn(1, 8, 64), [], []
    monkeypatch.setattr(step_linear, "multiply", lambda *given: calls.append(given) or multiply(*given))
    for on_cpu in (True, False, True):
        calls.clear()
        monkeypatch.setattr(step_linear, "takes_cpu_paths", lambda tensor, answer=on_cpu: answer)
        states.append(network.scheme(network.decoder, memory, torch.ones(1, 8)))
        assert bool(calls) == on_cpu
    for other in states[1:]:
        torch.testing.assert_close(other, states[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_states_and_gradients_are_those_of_the_stock_maps(stock: T5Stack, fast: T5Stack, batch: int) -> None:
    inputs, memory = given(stock, batch)
    targets = torch.randn(STEPS, batch, ROWS, inputs.shape[-1])
    results = []
    for decoder in (stock, fast):
        states = torch.stack(run(decoder, inputs, memory))
        wanted = [inputs, memory, *named(decoder).values()]
        results.append([states, *torch.autograd.grad((states * targets).sum(), wanted)])
    for name, ours, reference in zip(["states", "inputs", "memory", *named(stock)], *results[::-1], strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_steps_that_nothing_depends_on_have_no_part_in_gradients(stock: T5Stack, fast: T5Stack) -> None:
    """Of a main model with unequal stacks, the last steps of one go unused."""
    inputs, memory = given(stock, 1)
    found = []
    for decoder in (stock, fast):
        loss = run(decoder, inputs, memory)[1].square().sum()
        found.append(torch.autograd.grad(loss, [inputs, *named(decoder).values()]))
    for ours, reference in zip(*found[::-1], strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-3, atol=1e-4)


def test_gradients_of_several_passes_add_up(stock: T5Stack, fast: T5Stack) -> None:
    for _ in range(2):
        inputs, memory = given(stock, 2)
        for decoder in (stock, fast):
            torch.stack(run(decoder, inputs, memory)).sum().backward()
    for ours, reference in zip(named(fast).values(), named(stock).values(), strict=True):
        torch.testing.assert_close(ours.grad, reference.grad, rtol=1e-3, atol=1e-3)


def test_autocast_and_bf16_weights_follow_float32(stock: T5Stack, fast: T5Stack) -> None:
    inputs, memory = given(stock, 2)
    exact = torch.stack(run(stock, inputs, memory))
    exact.square().sum().backward()
    reference = {name: p.grad for name, p in named(stock).items()}
    half = copy.deepcopy(fast).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        states = torch.stack(run(fast, inputs, memory))
    states.float().square().sum().backward()
    stored = torch.stack(run(half, inputs.bfloat16(), memory.bfloat16()))
    stored.float().square().sum().backward()
    assert stored.dtype == torch.bfloat16
    for decoder in (fast, half):
        for name, parameter in named(decoder).items():
            assert parameter.grad is not None and parameter.grad.dtype == parameter.dtype, name
            expected = reference[name]
            assert expected is not None
            error = (parameter.grad.float() - expected).norm() / expected.norm()
            assert error < 0.1, f"{name}: {error}"


def test_a_frozen_decoder_hands_gradients_on(stock: T5Stack, fast: T5Stack) -> None:
    inputs, memory = given(stock, 1)
    grads = []
    for decoder in (stock, fast):
        decoder.requires_grad_(False)
        grads.append(torch.autograd.grad(run(decoder, inputs, memory)[-1].sum(), [inputs, memory]))
    for ours, reference in zip(*grads[::-1], strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-3, atol=1e-4)


def test_a_pass_without_backward_leaves_nothing(fast: T5Stack) -> None:
    inputs, memory = given(fast, 1)
    steps = DecoderPass(fast, memory, torch.ones(1, 7))
    steps.step(inputs, relative_bias(fast, ROWS))
    kept = steps._steps
    assert isinstance(kept, Steps)
    uses = [weakref.ref(use) for _, use in kept._uses.values()]
    assert uses
    gc.collect()
    gc.disable()
    try:
        del steps, kept
        assert all(use() is None for use in uses), "a cycle of references holds the record"
    finally:
        gc.enable()


def test_an_error_within_a_step_ends_it(fast: T5Stack) -> None:
    inputs, memory = given(fast, 1)
    with pytest.raises(RuntimeError):
        DecoderPass(fast, memory, torch.ones(1, 7)).step(inputs[..., :-1], relative_bias(fast, ROWS))
    linear = next(m for m in fast.modules() if isinstance(m, StepLinear))
    out = linear(torch.randn(MOST_FEW + 1, linear.in_features))
    (gradient,) = torch.autograd.grad(out.sum(), [linear.weight])
    assert gradient.any() and out.grad_fn.name() == "MmBackward0"  # torch's own map again


def test_more_steps_write_no_more_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step of the stock maps makes another gradient of every weight; these make one for all."""
    made = {}
    for kind in (StepLinear, nn.Linear):
        for layers in (6, 12):
            network = hypernetwork(t5_config("tiny", vocabulary=100, num_layers=layers), decoder_layers=2)
            assert network.decoder is not None and network.scheme is not None
            monkeypatch.setattr(step_linear, "takes_cpu_paths", lambda tensor, answer=kind is StepLinear: answer)
            states = network.scheme(network.decoder, torch.randn(1, 8, 64), torch.ones(1, 8))
            made[kind, layers] = count(lambda s=states: s.sum().backward()).allocated
            weights = sum(m.weight.nbytes for m in network.decoder.modules() if isinstance(m, nn.Linear))
    more = {kind: made[kind, 12] - made[kind, 6] for kind in (StepLinear, nn.Linear)}
    assert more[nn.Linear] - more[StepLinear] > 4 * weights
