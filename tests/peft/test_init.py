"""The interface and the registry of PEFT kinds, for every registered kind."""

import pytest
import torch
from transformers import T5ForConditionalGeneration

from hart.errors import HartError
from hart.peft.base import KINDS, MainShape, PeftKind, build_kinds, check_blocks, row_blocks

SHAPE = MainShape(d_model=48, num_heads=3, d_kv=8, d_ff=64, encoder_layers=3, decoder_layers=2)


@pytest.fixture(params=sorted(KINDS))
def kind(request: pytest.FixtureRequest) -> PeftKind:
    (built,) = build_kinds([{"kind": request.param}])
    return built


def zeros(kind: PeftKind) -> dict[str, torch.Tensor]:
    return {b.name: torch.zeros(1, b.layers, b.rows, b.width) for b in kind.row_blocks(SHAPE)}


def test_shape_is_read_from_the_model(tiny_t5: T5ForConditionalGeneration) -> None:
    shape = MainShape.from_config(tiny_t5.config)
    attention = tiny_t5.decoder.block[0].layer[0].SelfAttention
    assert (shape.inner, shape.d_model) == tuple(attention.k.weight.shape)
    assert shape.d_ff == tiny_t5.encoder.block[0].layer[1].DenseReluDense.wi_0.out_features
    assert shape.encoder_layers == len(tiny_t5.encoder.block)
    assert shape.decoder_layers == len(tiny_t5.decoder.block)


def test_configuration_round_trip(kind: PeftKind) -> None:
    assert build_kinds([kind.to_config()]) == (kind,)


def test_block_names_and_layers(kind: PeftKind) -> None:
    blocks = row_blocks([kind], SHAPE)
    layers = {"encoder": SHAPE.encoder_layers, "decoder": SHAPE.decoder_layers}
    assert len({block.name for block in blocks}) == len(blocks)
    for block in blocks:
        assert block.name.startswith(f"{kind.name}.{block.stack}.")
        assert block.layers == layers[block.stack]


@pytest.mark.parametrize("with_weights", [True, False])
def test_init_std_covers_every_layer(kind: PeftKind, with_weights: bool, tiny_t5) -> None:
    shape = MainShape.from_config(tiny_t5.config)
    stds = kind.init_std(tiny_t5 if with_weights else None, shape)
    blocks = kind.row_blocks(shape)
    assert list(stds) == [block.name for block in blocks]
    for block in blocks:
        assert stds[block.name].shape == (block.layers,)
        assert stds[block.name].isfinite().all() and (stds[block.name] >= 0).all()


def test_a_kind_is_given_once(kind: PeftKind) -> None:
    with pytest.raises(HartError, match=f"kind '{kind.name}' is given twice"):
        build_kinds([kind.to_config(), kind.to_config()])


def test_check_blocks(kind: PeftKind) -> None:
    check_blocks([kind], SHAPE, zeros(kind))
    with pytest.raises(HartError, match="do not match the PEFT kinds"):
        check_blocks([], SHAPE, zeros(kind))
    for name, values in zeros(kind).items():
        with pytest.raises(HartError, match="do not match the PEFT kinds"):
            check_blocks([kind], SHAPE, {k: v for k, v in zeros(kind).items() if k != name})
        for wrong in (values[0], values[:, 1:], values[..., 1:]):
            with pytest.raises(HartError, match=rf"block {name} has shape .*; this base .* need"):
                check_blocks([kind], SHAPE, {**zeros(kind), name: wrong})
