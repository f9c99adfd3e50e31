"""The causal pass: the stock decoder stack with a mask in steps of two, and what depends on what."""

import pytest
import torch

from hart.hypernetwork.schemes.causal import Causal

LAYERS = 4
ORDERS = ("bottom_up", "top_down", "random")


def make(d_model: int, order: str = "bottom_up") -> Causal:
    scheme = Causal(d_model, LAYERS, (), order=order, order_seed=2)  # type: ignore[arg-type]
    scheme.reset_parameters(1.0)
    return scheme


@pytest.mark.parametrize("order", ORDERS)
def test_is_one_pass_of_the_stock_decoder_with_a_mask_in_steps_of_two(tiny_t5, order: str):
    decoder, d_model = tiny_t5.decoder, tiny_t5.config.d_model
    scheme = make(d_model, order)
    memory, mask = torch.randn(2, 7, d_model), torch.tensor([[1] * 7, [1] * 5 + [0] * 2])
    step = torch.arange(2 * LAYERS) // 2
    mask_of_layers = torch.zeros(2 * LAYERS, 2 * LAYERS).masked_fill(step > step[:, None], -1e9)
    tiny_t5.set_attn_implementation("eager")
    with torch.no_grad():
        states, maps = scheme(decoder, memory, mask), scheme.attention_maps(decoder, memory, mask)
        stock = decoder(
            inputs_embeds=scheme.z.expand(2, -1, -1),
            attention_mask=mask_of_layers.expand(2, 1, -1, -1),
            encoder_hidden_states=memory,
            encoder_attention_mask=mask,
            use_cache=False,
            output_attentions=True,
        )
    averaged = stock.attentions[-1].mean(dim=1)
    assert states.shape == (2, 2, LAYERS, 1, d_model)
    for stack in range(2):
        rows = torch.tensor([2 * scheme.layer_order.step_of_layer[layer] + stack for layer in range(LAYERS)])
        torch.testing.assert_close(states[:, stack, :, 0], stock.last_hidden_state[:, rows], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(maps[:, stack], averaged[:, rows][:, :, rows], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("order", ORDERS)
def test_a_layer_depends_on_those_before_it_and_on_no_later_one(tiny_t5, order: str):
    d_model = tiny_t5.config.d_model
    scheme = make(d_model, order)
    memory, mask = torch.randn(1, 5, d_model), torch.ones(1, 5)
    with torch.no_grad():
        before = scheme(tiny_t5.decoder, memory, mask)
    for step, changed in enumerate(scheme.layer_order.layer_of_step):
        with torch.no_grad():
            kept = scheme.z.clone()
            scheme.z[2 * step : 2 * step + 2] += 1
            difference = (scheme(tiny_t5.decoder, memory, mask) - before).abs().amax((0, 1, 3, 4))
            scheme.z.copy_(kept)
        moved = {layer for layer in range(LAYERS) if difference[layer] > 1e-4}
        assert moved == set(scheme.layer_order.layer_of_step[step:]), changed
