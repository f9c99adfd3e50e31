"""Heads against an explicit MLP per layer (App. 8.1.2), and their initial scale."""

import numpy as np
import pytest
import torch
from torch import nn

from hart.hypernetwork.heads import TANH_SECOND_MOMENT, BlockHead, RowBlockHeads
from hart.peft.base import RowBlock

D_MODEL, WIDTH, BATCH = 16, 10, 3
ENCODER = RowBlock("prefix.encoder.key", "encoder", layers=4, rows=6, width=WIDTH)
DECODER = RowBlock("prefix.decoder.value", "decoder", layers=3, rows=6, width=WIDTH + 1)
EMPTY = RowBlock("other.decoder.part", "decoder", layers=2, rows=0, width=WIDTH)


def make_heads(state_vectors: int, *blocks: RowBlock) -> RowBlockHeads:
    heads = RowBlockHeads(blocks, D_MODEL, lambda _: slice(0, state_vectors))
    heads.reset_parameters({block.name: torch.ones(block.layers) for block in blocks})
    with torch.no_grad():
        for head in heads.heads():
            head.norm.weight.normal_()
            head.norm.bias.normal_()
    return heads


def one_mlp_per_layer(head: BlockHead, states: torch.Tensor) -> torch.Tensor:
    """App. 8.1.2, layer by layer and row by row, with modules of torch. `[b, L, m, d]` → blocks."""
    batch, _, state_vectors, _ = states.shape
    made = torch.empty(batch, head.block.layers, head.block.rows, head.block.width)
    per_state = head.block.rows // state_vectors
    for layer in range(head.block.layers):
        norm = nn.LayerNorm(D_MODEL)
        norm.weight.data = head.norm.weight[layer, 0, 0]
        norm.bias.data = head.norm.bias[layer, 0, 0]
        for m in range(state_vectors):
            hidden = head.first.weight @ norm(states[:, layer, m])[..., None]
            rows = torch.tanh(hidden.reshape(batch, per_state, D_MODEL))
            made[:, layer, m * per_state : (m + 1) * per_state] = rows @ head.second[layer]
    return made


@pytest.mark.parametrize("state_vectors", [1, 2, 6])
def test_batched_heads_equal_one_mlp_per_layer(state_vectors: int):
    heads = make_heads(state_vectors, ENCODER, DECODER)
    states = torch.randn(BATCH, 2, ENCODER.layers, state_vectors, D_MODEL)
    with torch.no_grad():
        blocks = heads(states)
        for head in heads.heads():
            stack = 0 if head.block.stack == "encoder" else 1
            expected = one_mlp_per_layer(head, states[:, stack])
            torch.testing.assert_close(blocks[head.block.name], expected, rtol=1e-4, atol=1e-5)


def test_a_block_is_made_from_the_vectors_of_the_state_that_serve_it():
    rows = {ENCODER.name: slice(0, 2), DECODER.name: slice(2, 5)}
    heads = RowBlockHeads([ENCODER, DECODER], D_MODEL, lambda block: rows[block.name])
    heads.reset_parameters({block.name: torch.ones(block.layers) for block in (ENCODER, DECODER)})
    states = torch.randn(BATCH, 2, ENCODER.layers, 5, D_MODEL)
    with torch.no_grad():
        blocks = heads(states)
        for stack, head in enumerate(heads.heads()):
            expected = one_mlp_per_layer(head, states[:, stack, :, rows[head.block.name]])
            torch.testing.assert_close(blocks[head.block.name], expected, rtol=1e-4, atol=1e-5)


def test_each_batch_row_is_made_from_its_own_states():
    heads = make_heads(1, ENCODER)
    states = torch.randn(BATCH, 2, ENCODER.layers, 1, D_MODEL)
    together = heads(states)[ENCODER.name]
    alone = torch.cat([heads(states[i : i + 1])[ENCODER.name] for i in range(BATCH)])
    torch.testing.assert_close(together, alone)


def test_the_slice_of_a_layer_is_contiguous():
    """The main model reads one layer at a time and should not have to copy."""
    made = make_heads(1, ENCODER)(torch.randn(BATCH, 2, ENCODER.layers, 1, D_MODEL))[ENCODER.name]
    assert all(made[:, layer].is_contiguous() for layer in range(ENCODER.layers))


def test_blocks_without_rows_come_out_empty_and_cost_no_parameters():
    heads = make_heads(1, ENCODER, EMPTY)
    blocks = heads(torch.randn(BATCH, 2, ENCODER.layers, 1, D_MODEL))
    assert list(blocks) == [ENCODER.name, EMPTY.name]
    assert blocks[EMPTY.name].shape == (BATCH, EMPTY.layers, 0, EMPTY.width)
    assert [head.block for head in heads.heads()] == [ENCODER]


def test_rows_that_states_cannot_fill_are_refused():
    with pytest.raises(ValueError, match="6 rows from states of 4 rows"):
        RowBlockHeads([ENCODER], D_MODEL, lambda _: slice(0, 4))


def test_initial_rows_have_the_asked_standard_deviation_per_layer():
    d_model = 128
    block = RowBlock("prefix.encoder.key", "encoder", layers=3, rows=32, width=128)
    heads = RowBlockHeads([block], d_model, lambda _: slice(0, 1))
    std = torch.tensor([0.1, 1.0, 4.0])
    heads.reset_parameters({block.name: std})
    with torch.no_grad():
        # The scale and offset of the states must not matter.
        made = heads(5 + 3 * torch.randn(16, 2, 3, 1, d_model))[block.name]
    torch.testing.assert_close(made.std(dim=(0, 2, 3)), std, rtol=0.05, atol=0)


def test_a_learned_part_is_added_to_what_is_generated():
    """Zero at the start and the same for all tasks; LoRA's B is this part alone until its map is trained."""
    heads = RowBlockHeads([ENCODER, DECODER], D_MODEL, lambda _: slice(0, 2), bias=True)
    stds = {ENCODER.name: torch.ones(4), DECODER.name: torch.zeros(3)}
    heads.reset_parameters(stds)
    states = torch.randn(BATCH, 2, ENCODER.layers, 2, D_MODEL)
    before = {name: values.detach() for name, values in heads(states).items()}
    assert before[ENCODER.name].any() and not before[DECODER.name].any()
    with torch.no_grad():
        for head in heads.heads():
            assert head.bias is not None and not head.bias.any()
            head.bias.normal_()
    after = heads(states)
    for head in heads.heads():
        name = head.block.name
        assert head.bias is not None and head.bias.shape == after[name].shape[1:]
        torch.testing.assert_close(after[name], before[name] + head.bias)
        assert all(after[name][:, layer].is_contiguous() for layer in range(head.block.layers))
    heads.reset_parameters(stds)
    assert not any(head.bias.any() for head in heads.heads())


def test_second_moment_of_tanh():
    nodes, weights = np.polynomial.hermite_e.hermegauss(100)
    expected = (weights * np.tanh(nodes) ** 2).sum() / weights.sum()
    assert pytest.approx(expected, abs=1e-6) == TANH_SECOND_MOMENT
