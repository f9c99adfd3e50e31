"""The bidirectional scheme against the stock decoder stack with a mask that hides nothing."""

import pytest
import torch

from hart.errors import HartError
from hart.hypernetwork.network import HyperNetwork
from hart.hypernetwork.schemes.bidirectional import Bidirectional

LAYERS = 3


def test_is_one_pass_of_the_stock_decoder_and_returns_its_attention(tiny_t5):
    decoder = tiny_t5.decoder
    d_model = decoder.config.d_model
    scheme = Bidirectional(d_model, LAYERS, ())
    scheme.reset_parameters(1.0)
    memory, mask = torch.randn(2, 7, d_model), torch.tensor([[1] * 7, [1] * 5 + [0] * 2])
    tiny_t5.set_attn_implementation("eager")
    with torch.no_grad():
        states = scheme(decoder, memory, mask)
        maps = scheme.attention_maps(decoder, memory, mask)
        stock = decoder(
            inputs_embeds=scheme.z.expand(2, -1, -1),
            attention_mask=torch.ones(2, 1, 2 * LAYERS, 2 * LAYERS, dtype=torch.bool),
            encoder_hidden_states=memory,
            encoder_attention_mask=mask,
            use_cache=False,
            output_attentions=True,
        )
    averaged = stock.attentions[-1].mean(dim=1)
    assert states.shape == (2, 2, LAYERS, 1, d_model) and maps.shape == (2, 2, LAYERS, LAYERS)
    for stack in range(2):
        rows = torch.arange(LAYERS) * 2 + stack
        torch.testing.assert_close(states[:, stack, :, 0], stock.last_hidden_state[:, rows], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(maps[:, stack], averaged[:, rows][:, :, rows], rtol=1e-4, atol=1e-5)


def test_the_hypernetwork_hands_out_the_maps(tiny_t5):
    settings = {"decoder_layers": 2, "peft": [{"kind": "prefix", "length": 4}]}
    network = HyperNetwork.from_base(tiny_t5, scheme={"name": "bidirectional"}, **settings).eval()
    ids = torch.randint(3, 200, (2, 6))
    maps = network.attention_maps(ids, torch.ones_like(ids))
    assert maps.shape == (2, 2, 3, 3) and maps.min() >= 0 and maps.sum(dim=-1).max() < 1
    other = HyperNetwork.from_base(tiny_t5, scheme={"name": "shared"}, **settings)
    with pytest.raises(HartError, match="need model.scheme {name: bidirectional} or {name: causal}"):
        other.attention_maps(ids, torch.ones_like(ids))
