"""Shapes, calibration and configuration of the prefix kind."""

from pathlib import Path

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from hart.errors import HartError
from hart.model.main_model import MainModel
from hart.peft.base import MainShape, build_kinds
from hart.peft.injection import ExtraKeyValues, binding, sites
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
        ({"kind": []}, "unknown kind \\[\\]"),
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


def test_cross_attention_has_prefixes_where_it_is_asked_for(tiny_t5: T5ForConditionalGeneration) -> None:
    """Measured as above: cross-attention reads what the encoder's closing norm gives."""
    kind = Prefix(length=3, cross=True)
    shape = MainShape.from_config(tiny_t5.config)
    blocks = {block.name: block for block in kind.row_blocks(shape)}
    assert list(blocks)[-2:] == ["prefix.decoder.cross_key", "prefix.decoder.cross_value"]
    assert blocks["prefix.decoder.cross_key"].layers == shape.decoder_layers
    stds = kind.init_std(tiny_t5, shape)
    assert stds.keys() == blocks.keys() == kind.init_std(None, shape).keys()
    inputs = tiny_t5.encoder.final_layer_norm(torch.randn(20_000, tiny_t5.config.d_model))
    for part, projection in (("cross_key", "k"), ("cross_value", "v")):
        measured = [
            getattr(b.layer[1].EncDecAttention, projection)(inputs).std().detach() for b in tiny_t5.decoder.block
        ]
        torch.testing.assert_close(stds[f"prefix.decoder.{part}"], 0.3 * torch.stack(measured), rtol=0.02, atol=0)


@pytest.mark.parametrize("sets", [(1, 1), (1, 3), (3, 1), (3, 3)])
@pytest.mark.parametrize("masked", [True, False])
def test_prefixes_of_cross_attention_stand_beside_the_memory(
    tiny_base_dir: Path, sets: tuple[int, int], masked: bool
) -> None:
    """Bound rows (answering) against memory in the encoder's output (training): the same logits."""
    main = MainModel.from_pretrained(str(tiny_base_dir))
    kind, prefixes, memories = Prefix(length=3, cross=True), *sets
    blocks = {b.name: torch.randn(prefixes, b.layers, b.rows, b.width) for b in kind.row_blocks(main.shape)}
    memory = torch.randn(memories, 5, main.shape.d_model)
    memory_mask = torch.ones(memories, 5, dtype=torch.long)
    if masked:
        memory_mask[-1, 3:] = 0
    ids, mask = main.pad([[5, 6, 7, 8, 1], [9, 1], [10, 11, 12, 1]])
    expected = main(ids, mask, labels=ids, blocks=blocks, peft=[kind], memory=memory, memory_mask=memory_mask).logits
    keys, values = main._memory_key_values(memory)
    rows = {
        site: ExtraKeyValues(keys[layer], values[layer], memory_mask)
        for layer, site in enumerate(sites(main.model, "decoder", "cross_attention"))
    }
    with binding(kind.bindings(main.model, blocks), rows):
        actual = main(ids, mask, labels=ids).logits
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(main(ids, mask, labels=ids).logits, expected, atol=1e-2)
