"""A gpt-oss whose experts are stored in four bits (MXFP4), as its published checkpoints have them."""

import json
from pathlib import Path

import pytest
import torch
from decoder_models import CONFIGS, decoder_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from hart.model.main_model import MainModel

VALUES = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
"""Of the sixteen codes of the format's four bits: a sign, two bits of exponent, one of mantissa."""


def packed(shape: tuple[int, int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Random codes of experts [experts, in, out], exponents of each 32 of them, and the weights that they stand for."""
    experts, width, out = shape
    codes = torch.randint(0, 16, (experts, out, width // 32, 32))
    exponents = torch.randint(122, 126, (experts, out, width // 32))
    weights = VALUES[codes] * torch.exp2(exponents - 127.0)[..., None]
    blocks = codes[..., ::2] + 16 * codes[..., 1::2]
    return blocks.to(torch.uint8), exponents.to(torch.uint8), weights.flatten(2).transpose(1, 2)


def test_experts_are_unpacked(
    tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, sizes = CONFIGS["gpt_oss"]
    monkeypatch.setitem(CONFIGS, "gpt_oss", (config, {**sizes, "intermediate_size": 64}))
    torch.manual_seed(0)
    model, base = decoder_model("gpt_oss", len(tiny_tokenizer)), tmp_path / "base"
    model.save_pretrained(base)
    tiny_tokenizer.save_pretrained(base)
    stored = load_file(base / "model.safetensors")
    for name, weights in model.named_parameters():
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            del stored[name]
            stored[f"{name}_blocks"], stored[f"{name}_scales"], weights.data = packed(tuple(weights.shape))
    save_file(stored, base / "model.safetensors", metadata={"format": "pt"})
    content = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**content, "quantization_config": {"quant_method": "mxfp4"}}))

    main, ids = MainModel.from_pretrained(str(base)), torch.randint(3, 60, (2, 9))
    torch.testing.assert_close(main.model(ids).logits, model(ids).logits)
    # As what full fine-tuning and merging write.
    main.model.save_pretrained(tmp_path / "saved")
    again, report = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    torch.testing.assert_close(again.eval()(ids).logits, main.model(ids).logits)
