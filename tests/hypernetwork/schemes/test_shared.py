"""HyperTuning's scheme against the stock decoder stack with a mask that hides nothing."""

import torch

from hart.hypernetwork.schemes.shared import Shared
from hart.peft.base import RowBlock

LAYERS = 4


def blocks(*rows: int) -> list[RowBlock]:
    return [RowBlock(f"block.{i}", "encoder", LAYERS, n, 8) for i, n in enumerate(rows)]


def test_is_one_bidirectional_pass_whose_halves_serve_the_two_stacks(tiny_t5):
    decoder, rows = tiny_t5.decoder, 3
    d_model = decoder.config.d_model
    scheme = Shared(d_model, LAYERS, blocks(rows, rows))
    scheme.reset_parameters(1.0)
    memory, mask = torch.randn(2, 7, d_model), torch.tensor([[1] * 7, [1] * 5 + [0] * 2])
    with torch.no_grad():
        states = scheme(decoder, memory, mask)
        stock = decoder(
            inputs_embeds=scheme.z.expand(2, -1, -1),
            attention_mask=torch.ones(2, 1, 2 * rows, 2 * rows, dtype=torch.bool),
            encoder_hidden_states=memory,
            encoder_attention_mask=mask,
            use_cache=False,
        ).last_hidden_state
    for layer in range(LAYERS):
        torch.testing.assert_close(states[:, 0, layer], stock[:, :rows])
        torch.testing.assert_close(states[:, 1, layer], stock[:, rows:])


def test_vectors_of_a_state_divide_those_of_every_block():
    assert Shared(8, LAYERS, blocks(32, 32)).state_vectors == 32
    assert Shared(8, LAYERS, blocks(32, 12)).state_vectors == 4
    assert Shared(8, LAYERS, blocks(32, 12), rows=2).state_vectors == 2
