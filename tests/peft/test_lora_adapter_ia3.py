"""LoRA, adapters and (IA)³, against forward passes with changed weights, and refused configurations."""

import copy

import pytest
import torch
from torch.nn import functional as F
from transformers import T5Config, T5ForConditionalGeneration

from hart.errors import HartError
from hart.model.encoder_decoder import EncoderDecoder
from hart.peft.base import MainShape, build_kinds, row_blocks
from hart.peft.injection import sites

TARGETS = ["q", "k", "v", "o", "cross_q", "cross_k", "cross_v", "cross_o", "wi", "wo"]


def run(model: T5ForConditionalGeneration) -> torch.Tensor:
    with torch.no_grad():
        return model(
            input_ids=torch.tensor([[5, 6, 7, 1], [8, 9, 1, 0]]),
            attention_mask=torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]),
            decoder_input_ids=torch.tensor([[0, 4, 5], [0, 6, 7]]),
        ).logits


def blocks_for(peft: list[dict], model: T5ForConditionalGeneration) -> dict[str, torch.Tensor]:
    shape = MainShape.from_config(model.config)
    return {
        block.name: 0.3 * torch.randn(1, block.layers, block.rows, block.width)
        for block in row_blocks(build_kinds(peft), shape)
    }


def bound(
    model: T5ForConditionalGeneration, peft: list[dict], blocks: dict[str, torch.Tensor], tokenizer
) -> torch.Tensor:
    main = EncoderDecoder(copy.deepcopy(model), tokenizer, name="tiny")
    with main.binding(blocks, build_kinds(peft), batch=2):
        return run(main.model)


@pytest.fixture(params=["gated-gelu", "relu"])
def model(request: pytest.FixtureRequest) -> T5ForConditionalGeneration:
    config = T5Config(vocab_size=40, d_model=24, d_kv=5, d_ff=32, num_heads=3, num_layers=2, num_decoder_layers=3,
                      feed_forward_proj=request.param, decoder_start_token_id=0)  # fmt: skip
    return T5ForConditionalGeneration(config).eval()


def test_lora_equals_changed_weights(model, tiny_tokenizer):
    peft = [{"kind": "lora", "rank": 2, "alpha": 6.0, "targets": TARGETS}]
    blocks = blocks_for(peft, model)
    changed = copy.deepcopy(model)
    pairs = {name.rpartition(".")[0] for name in blocks}
    assert len(pairs) == (6 + 1 * model.config.is_gated_act) * 2 + 4
    with torch.no_grad():
        for pair in pairs:
            _, stack, site = pair.split(".")
            for layer, linear in enumerate(sites(changed, stack, site)):
                linear.weight += 3.0 * blocks[f"{pair}.b"][0, layer].T @ blocks[f"{pair}.a"][0, layer]
    torch.testing.assert_close(bound(model, peft, blocks, tiny_tokenizer), run(changed), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("biases", [True, False])
def test_adapter_equals_a_plain_parallel_layer(model, tiny_tokenizer, biases: bool):
    peft = [{"kind": "adapter", "bottleneck": 3, "biases": biases}]
    blocks = blocks_for(peft, model)
    assert ("adapter.encoder.up_bias" in blocks) == biases
    changed = copy.deepcopy(model)

    def parallel(module: torch.nn.Module, rows: dict[str, torch.Tensor]) -> None:
        stock = module.forward

        def forward(hidden: torch.Tensor) -> torch.Tensor:
            inner = F.linear(hidden, rows["down"], rows["down_bias"][0] if biases else None)
            return stock(hidden) + F.linear(F.gelu(inner), rows["up"].T, rows["up_bias"][0] if biases else None)

        module.forward = forward  # type: ignore[method-assign]

    for stack in ("encoder", "decoder"):
        for layer, module in enumerate(sites(changed, stack, "feed_forward")):
            parts = {name.split(".")[2]: rows[0, layer] for name, rows in blocks.items() if name.split(".")[1] == stack}
            parallel(module, parts)
    torch.testing.assert_close(bound(model, peft, blocks, tiny_tokenizer), run(changed), rtol=1e-4, atol=1e-4)


def test_ia3_equals_scaled_weights(model, tiny_tokenizer):
    peft = [{"kind": "ia3", "cross": True}]
    blocks = blocks_for(peft, model)
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for name, rows in blocks.items():
            _, stack, part = name.split(".")
            site = {"key": "k", "value": "v", "ff": "wo", "cross_key": "cross_k", "cross_value": "cross_v"}[part]
            for layer, linear in enumerate(sites(changed, stack, site)):
                scale = 1 + rows[0, layer, 0]
                linear.weight *= scale if part == "ff" else scale[:, None]
    torch.testing.assert_close(bound(model, peft, blocks, tiny_tokenizer), run(changed), rtol=1e-4, atol=1e-4)


def test_kinds_compose_in_the_order_of_the_list(model, tiny_tokenizer):
    lora, ia3 = {"kind": "lora", "rank": 2, "alpha": 2.0, "targets": ["k"]}, {"kind": "ia3"}
    blocks = blocks_for([lora, ia3], model)
    first, second = (bound(model, peft, blocks, tiny_tokenizer) for peft in ([lora, ia3], [ia3, lora]))
    assert not torch.allclose(first, second, atol=1e-3)
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for name, rows in blocks.items():
            _, stack, *part = name.split(".")
            if part == ["value"]:
                for layer, linear in enumerate(sites(changed, stack, "v")):
                    linear.weight *= (1 + rows[0, layer, 0])[:, None]
            if part == ["ff"]:
                for layer, linear in enumerate(sites(changed, stack, "wo")):
                    linear.weight *= 1 + rows[0, layer, 0]
        for stack in ("encoder", "decoder"):
            for layer, linear in enumerate(sites(changed, stack, "k")):
                a, b = (blocks[f"lora.{stack}.k.{part}"][0, layer] for part in "ab")
                # LoRA first: its change is scaled too.
                linear.weight += b.T @ a
                linear.weight *= (1 + blocks[f"ia3.{stack}.key"][0, layer, 0])[:, None]
    torch.testing.assert_close(first, run(changed), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"kind": "lora", "rank": 0}, "peft.lora.rank must be a whole number ≥ 1, not 0"),
        ({"kind": "lora", "rank": True}, "peft.lora.rank"),
        ({"kind": "lora", "alpha": 0}, "peft.lora.alpha must be a number > 0"),
        ({"kind": "lora", "alpha": True}, "peft.lora.alpha must be a number > 0, not True"),
        ({"kind": "lora", "alpha": float("nan")}, "peft.lora.alpha must be a number > 0, not nan"),
        ({"kind": "lora", "targets": ["query"]}, "peft.lora.targets must be a list of some of q, k"),
        ({"kind": "lora", "targets": []}, "peft.lora.targets"),
        ({"kind": "lora", "targets": "q"}, "peft.lora.targets"),
        ({"kind": "lora", "targets": ["q", "q"]}, "peft.lora.targets names a target twice"),
        ({"kind": "adapter", "bottleneck": 1.5}, "peft.adapter.bottleneck"),
        ({"kind": "adapter", "biases": 1}, "peft.adapter.biases must be true or false"),
        ({"kind": "ia3", "cross": "yes"}, "peft.ia3.cross must be true or false"),
    ],
)
def test_wrong_values_are_refused(config: dict, message: str):
    with pytest.raises(HartError, match=message):
        build_kinds([config])
