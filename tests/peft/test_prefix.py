"""Shapes, calibration and configuration of the prefix kind."""

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from hart.errors import HartError
from hart.peft import MainShape, build_kinds
from hart.peft.prefix import Prefix

# T5 v1.1-small: heads * d_kv = 384 differs from d_model = 512.
SMALL = MainShape(d_model=512, num_heads=6, d_kv=64, d_ff=1024, encoder_layers=8, decoder_layers=7)


def test_blocks_of_t5_small_have_the_width_of_keys() -> None:
    blocks = {block.name: block for block in Prefix(length=32).row_blocks(SMALL)}
    assert list(blocks) == [
        "prefix.encoder.key",
        "prefix.encoder.value",
        "prefix.decoder.key",
        "prefix.decoder.value",
    ]
    for name, block in blocks.items():
        assert block.stack == name.split(".")[1]
        layers = SMALL.encoder_layers if block.stack == "encoder" else SMALL.decoder_layers
        assert (block.layers, block.rows, block.width) == (layers, 32, SMALL.inner)


def test_init_std_is_that_of_the_models_own_keys_and_values(
    tiny_t5: T5ForConditionalGeneration,
) -> None:
    """Measured: random inputs through each layer's norm and projections."""
    kind = Prefix(init_scale=0.3)
    stds = kind.init_std(tiny_t5, MainShape.from_config(tiny_t5.config))
    inputs = torch.randn(20_000, tiny_t5.config.d_model)
    for stack in ("encoder", "decoder"):
        for part, projection in (("key", "k"), ("value", "v")):
            measured = []
            for block in getattr(tiny_t5, stack).block:
                layer = block.layer[0]
                rows = getattr(layer.SelfAttention, projection)(layer.layer_norm(inputs))
                measured.append(rows.detach().std())
            expected = kind.init_scale * torch.stack(measured)
            torch.testing.assert_close(stds[f"prefix.{stack}.{part}"], expected, rtol=0.02, atol=0)


def test_init_std_without_weights_is_that_of_a_new_t5() -> None:
    config = T5Config(vocab_size=16, d_model=256, num_heads=4, d_kv=64, d_ff=32, num_layers=2)
    shape = MainShape.from_config(config)
    kind = Prefix()
    expected = kind.init_std(T5ForConditionalGeneration(config), shape)
    actual = kind.init_std(None, shape)
    assert actual.keys() == expected.keys()
    for name, stds in actual.items():
        torch.testing.assert_close(stds, expected[name], rtol=0.02, atol=0)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"kind": "prefx"}, "unknown kind 'prefx'; choose one of .*prefix"),
        ({"length": 3}, "unknown kind None"),
        ({"kind": "prefix", "lenght": 3}, "peft.prefix: unknown field 'lenght'; it takes length"),
        ({"kind": "prefix", "length": "32"}, "peft.prefix.length .* not '32'"),
        ({"kind": "prefix", "length": -1}, "peft.prefix.length .* not -1"),
        ({"kind": "prefix", "length": True}, "peft.prefix.length .* not True"),
        ({"kind": "prefix", "init_scale": 0}, "peft.prefix.init_scale .* not 0"),
        ({"kind": "prefix", "init_scale": float("nan")}, "peft.prefix.init_scale .* not nan"),
    ],
)
def test_bad_configuration(config: dict, message: str) -> None:
    with pytest.raises(HartError, match=message):
        build_kinds([config])
