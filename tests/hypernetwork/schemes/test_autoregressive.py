"""HART's scheme against a loop over the stock decoder stack."""

import functools

import pytest
import torch

from hart.benchmarks.generating import uncached
from hart.errors import HartError
from hart.hypernetwork.schemes.autoregressive import Autoregressive

LAYERS = 4


@pytest.fixture
def decoder(tiny_t5):
    return tiny_t5.decoder


def make(history: str, d_model: int) -> Autoregressive:
    scheme = Autoregressive(d_model, LAYERS, (), history=history)  # type: ignore[arg-type]
    scheme.reset_parameters(1.0)
    return scheme


def run_stock(decoder, scheme: Autoregressive, memory, memory_mask, fed_back=None) -> torch.Tensor:
    """§3.1 with `T5Stack.forward`: h_l from the sequence z, h_1, …, h_{l−1} and a mask in blocks
    of two. What is fed back is `fed_back(input, state, hidden before the norm, next step)`."""
    sequence = scheme.z.expand(memory.shape[0], -1, -1)
    before_norm: list[torch.Tensor] = []
    decoder.final_layer_norm.register_forward_pre_hook(lambda _, given: before_norm.append(given[0][:, -2:]))
    states = []
    for step_number in range(LAYERS):
        step = torch.arange(sequence.shape[1]) // 2
        visible = step[:, None] >= step if scheme.history == "all" else step[:, None] == step
        hidden = decoder(
            inputs_embeds=sequence,
            attention_mask=visible[None, None].expand(memory.shape[0], 1, -1, -1),
            encoder_hidden_states=memory,
            encoder_attention_mask=memory_mask,
            use_cache=False,
        ).last_hidden_state[:, -2:]
        states.append(hidden)
        next_input = hidden
        if fed_back is not None:
            next_input = fed_back(sequence[:, -2:], hidden, before_norm[-1], step_number + 1)
        sequence = torch.cat((sequence, next_input), 1)
    # [b, stack, layer, 1, d]
    return torch.stack(states, 2)[:, :, :, None]


@pytest.mark.parametrize("history", ["all", "last"])
def test_equals_a_loop_over_the_stock_decoder(decoder, history: str):
    scheme = make(history, decoder.config.d_model)
    memory = torch.randn(2, 7, decoder.config.d_model)
    memory_mask = torch.tensor([[1] * 7, [1] * 5 + [0] * 2])
    with torch.no_grad():
        states = scheme(decoder, memory, memory_mask)
        expected = run_stock(decoder, scheme, memory, memory_mask)
    assert states.shape == (2, 2, LAYERS, 1, decoder.config.d_model)
    torch.testing.assert_close(states, expected, rtol=1e-4, atol=1e-5)


def rms(vectors: torch.Tensor) -> torch.Tensor:
    return (vectors**2).mean(-1, keepdim=True) ** 0.5


@pytest.mark.parametrize(
    ("feedback", "expected"),
    [
        ("scaled", lambda scheme, _, state, __: state / rms(state) * rms(scheme.z)),
        ("before_norm", lambda _, __, ___, hidden: hidden),
        ("residual", lambda _, given, state, __: given + state),
    ],
)
def test_what_is_fed_back(decoder, feedback: str, expected):
    scheme = Autoregressive(decoder.config.d_model, LAYERS, (), feedback=feedback)  # type: ignore[arg-type]
    scheme.reset_parameters(1.0)
    memory, mask = torch.randn(2, 7, decoder.config.d_model), torch.ones(2, 7)
    with torch.no_grad():
        states = scheme(decoder, memory, mask)
        stock = run_stock(decoder, scheme, memory, mask, lambda *parts: expected(scheme, *parts[:3]))
    torch.testing.assert_close(states, stock, rtol=1e-4, atol=1e-4)


def test_step_embeddings_start_as_nothing_and_are_added_to_every_input(decoder):
    plain = make("all", decoder.config.d_model)
    scheme = Autoregressive(decoder.config.d_model, LAYERS, (), step_embeddings=True)
    scheme.reset_parameters(1.0)
    scheme.z = plain.z
    memory, mask = torch.randn(2, 7, decoder.config.d_model), torch.ones(2, 7)
    with torch.no_grad():
        torch.testing.assert_close(scheme(decoder, memory, mask), plain(decoder, memory, mask), rtol=0, atol=0)
        scheme.step_embedding.normal_()
        states = scheme(decoder, memory, mask)
        embedding = scheme.step_embedding
        plain.z = torch.nn.Parameter(scheme.z + embedding[0])
        stock = run_stock(
            decoder, plain, memory, mask, lambda _, state, __, step: state + embedding[min(step, LAYERS - 1)]
        )
    torch.testing.assert_close(states, stock, rtol=1e-4, atol=1e-4)


def test_cached_steps_equal_uncached_ones_in_states_and_gradients(decoder):
    """The benchmark's other side: everything decoded anew in each step."""
    d_model = decoder.config.d_model
    scheme = make("all", d_model)
    memory, mask = torch.randn(2, 7, d_model, requires_grad=True), torch.tensor([[1] * 7, [1] * 5 + [0] * 2])
    wanted = [memory, scheme.z, *(p for name, p in decoder.named_parameters() if "embed_tokens" not in name)]
    results = []
    for run in (scheme, functools.partial(uncached, scheme)):
        states = run(decoder, memory, mask)
        weights = torch.linspace(-1, 1, states.numel()).view(states.shape)
        results.append((states, *torch.autograd.grad((states * weights).sum(), wanted)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_a_state_depends_on_all_earlier_steps_and_on_no_later_one(decoder):
    """With more layers, the first states are the same; and the last gradient reaches back to z."""
    d_model = decoder.config.d_model
    memory, mask = torch.randn(1, 5, d_model), torch.ones(1, 5)
    scheme = make("all", d_model)
    shorter = Autoregressive(d_model, LAYERS - 2, ())
    shorter.z = scheme.z
    states = scheme(decoder, memory, mask)
    torch.testing.assert_close(shorter(decoder, memory, mask), states[:, :, : LAYERS - 2])
    (gradient,) = torch.autograd.grad(states[:, :, -1].sum(), scheme.z)
    assert gradient.abs().sum(-1).gt(0).all()


def test_history_matters(decoder):
    d_model = decoder.config.d_model
    memory, mask = torch.randn(1, 5, d_model), torch.ones(1, 5)
    everything, last = make("all", d_model), make("last", d_model)
    last.z = everything.z
    a, b = everything(decoder, memory, mask), last(decoder, memory, mask)
    torch.testing.assert_close(a[:, :, 0], b[:, :, 0])
    assert not torch.allclose(a[:, :, 1:], b[:, :, 1:], atol=1e-3)


def test_unknown_history_is_refused():
    with pytest.raises(HartError, match="history must be one of all, last, not 'some'"):
        make("some", 8)


@pytest.mark.parametrize("order", ["top_down", "random"])
def test_orders_run_the_same_steps_for_other_layers(decoder, order: str):
    d_model = decoder.config.d_model
    memory, mask = torch.randn(2, 5, d_model), torch.ones(2, 5)
    upwards = make("all", d_model)
    other = Autoregressive(d_model, LAYERS, (), order=order, order_seed=2)  # type: ignore[arg-type]
    other.z = upwards.z
    steps, states = (scheme(decoder, memory, mask) for scheme in (upwards, other))
    for step, layer in enumerate(other.layer_order.layer_of_step):
        torch.testing.assert_close(states[:, :, layer], steps[:, :, step], rtol=1e-4, atol=1e-5)
    assert other.layer_order.layer_of_step != upwards.layer_order.layer_of_step
