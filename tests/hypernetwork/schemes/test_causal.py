"""The causal scheme against the stock decoder stack with a mask in steps of two, and its dependencies."""

import pytest
import torch

from hart.errors import HartError
from hart.hypernetwork.schemes.causal import Causal

LAYERS = 4
ORDERS = ("bottom_up", "top_down", "random")


def make(d_model: int, order: str = "bottom_up", rows: int = 1) -> Causal:
    scheme = Causal(d_model, LAYERS, (), rows=rows, order=order, order_seed=2)  # type: ignore[arg-type]
    scheme.reset_parameters(1.0)
    return scheme


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("order", ORDERS)
def test_is_one_pass_of_the_stock_decoder_with_a_mask_in_steps_of_two(tiny_t5, order: str, rows: int):
    decoder, d_model = tiny_t5.decoder, tiny_t5.config.d_model
    scheme = make(d_model, order, rows)
    positions = 2 * LAYERS * rows
    memory, mask = torch.randn(2, 7, d_model), torch.tensor([[1] * 7, [1] * 5 + [0] * 2])
    step = torch.arange(positions) // (2 * rows)
    mask_of_layers = torch.zeros(positions, positions).masked_fill(step > step[:, None], -1e9)
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
    assert states.shape == (2, 2, LAYERS, rows, d_model) and maps.shape == (2, 2, LAYERS, LAYERS)
    for stack in range(2):
        places = [
            [(2 * scheme.layer_order.step_of_layer[layer] + stack) * rows + row for row in range(rows)]
            for layer in range(LAYERS)
        ]
        for layer, own in enumerate(places):
            torch.testing.assert_close(states[:, stack, layer], stock.last_hidden_state[:, own], rtol=1e-4, atol=1e-5)
            for other, theirs in enumerate(places):
                mass = averaged[:, own][:, :, theirs].sum(dim=2).mean(dim=1)
                torch.testing.assert_close(maps[:, stack, layer, other], mass, rtol=1e-4, atol=1e-5)


def test_rows_that_are_none_are_refused():
    with pytest.raises(HartError, match="scheme.causal.rows must be a whole number ≥ 1, not 0"):
        make(8, rows=0)


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
