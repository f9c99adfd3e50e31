"""HINT's cross-attention against loops over layers, components and heads."""

import pytest
import torch

from hart.hypernetwork.schemes.component import Component
from hart.peft.base import RowBlock

D, LAYERS, TOKENS = 12, 2, 5
BLOCKS = [
    RowBlock("prefix.encoder.key", "encoder", LAYERS, 3, 8),
    RowBlock("prefix.decoder.key", "decoder", LAYERS, 3, 8),
    RowBlock("adapter.encoder.down", "encoder", LAYERS, 4, D),
    RowBlock("adapter.decoder.down_bias", "decoder", LAYERS, 1, 4),
]


def rms(rows: torch.Tensor) -> torch.Tensor:
    return rows / (rows.square().mean(-1, keepdim=True) + 1e-6).sqrt()


@pytest.mark.parametrize("heads", [1, 3])
def test_equals_attention_written_out(heads: int):
    scheme = Component(D, LAYERS, BLOCKS, heads=heads)
    scheme.reset_parameters(1.0)
    with torch.no_grad():
        scheme.norm.normal_()
        memory, mask = torch.randn(2, TOKENS, D), torch.tensor([[1] * 5, [1] * 3 + [0] * 2])
        states = scheme(None, memory, mask)
        assert states.shape == (2, 2, LAYERS, 4, D)
        width = D // heads
        for b in range(2):
            seen = memory[b, mask[b].bool()]
            for stack in range(2):
                for layer in range(LAYERS):
                    for row in range(4):
                        start = scheme.z[stack, layer, 0] + scheme.components[stack, 0, row]
                        query = scheme.query(rms(start) * scheme.norm)
                        parts = []
                        for h in range(heads):
                            part = slice(h * width, (h + 1) * width)
                            scores = scheme.key(seen)[:, part] @ query[part]
                            parts.append(scores.softmax(0) @ scheme.value(seen)[:, part])
                        expected = rms(start + scheme.output(torch.cat(parts)))
                        torch.testing.assert_close(states[b, stack, layer, row], expected, rtol=1e-4, atol=1e-5)


def test_a_prefix_row_is_a_component_and_a_matrix_is_one():
    scheme = Component(D, LAYERS, BLOCKS)
    rows = {block.name: scheme.vectors_of(block) for block in BLOCKS}
    assert rows == {
        "prefix.encoder.key": slice(0, 3),
        "adapter.encoder.down": slice(3, 4),
        "prefix.decoder.key": slice(0, 3),
        "adapter.decoder.down_bias": slice(3, 4),
    }
    assert Component(128, LAYERS, BLOCKS).heads == 2
