"""Main models that are the text part of a checkpoint of images and text (Gemma 3, Mistral Small 3, Qwen 3.5)."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    Gemma4Config,
    Gemma4ForConditionalGeneration,
    Gemma4UnifiedConfig,
    Gemma4UnifiedForConditionalGeneration,
    Ministral3Config,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    PixtralVisionConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeConfig,
    Qwen3_5MoeForConditionalGeneration,
    SiglipVisionConfig,
    SmolVLMConfig,
)

from hart import HartError, HartModel, Task
from hart.model.export import save_merged, save_peft
from hart.model.export_card import export_card
from hart.model.main_model import MainModel
from hart.training.config import DataConfig, ModelConfig, RunConfig
from hart.training.estimate import estimate

TASK = Task("Swap the words.", [("one two", "two one"), ("three four", "four three")])
LORA = {"kind": "lora", "rank": 2, "targets": ["q", "v"]}
TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 40,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
IMAGES: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "image_size": 28,
    "patch_size": 14,
}


def made(name: str, vocabulary: int) -> PreTrainedModel:
    """Tied where the whole says so, whatever its part for text says."""
    text = {**TEXT, "vocab_size": vocabulary}
    if name == "gemma3":
        gemma = Gemma3TextConfig(**text, query_pre_attn_scalar=8)
        config = Gemma3Config(text_config=gemma, vision_config=SiglipVisionConfig(**IMAGES), mm_tokens_per_image=4)
        return Gemma3ForConditionalGeneration(config)
    if name == "gemma4_unified":
        text |= {"global_head_dim": 8, "layer_types": ["sliding_attention", "full_attention"]}
        return Gemma4UnifiedForConditionalGeneration(Gemma4UnifiedConfig(text_config=text))
    if name == "gemma4":  # the upper two layers take keys and values from the lower two
        text |= {"num_kv_shared_layers": 2}
        text |= {"global_head_dim": 8, "hidden_size_per_layer_input": 4, "vocab_size_per_layer_input": vocabulary}
        text |= {"num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2}
        images = {**IMAGES, "num_key_value_heads": 2, "head_dim": 8, "global_head_dim": 8}
        return Gemma4ForConditionalGeneration(Gemma4Config(text_config=text, vision_config=images))
    if name.startswith("qwen3_5"):
        layers = {"layer_types": ["linear_attention", "full_attention"]}
        heads = {"linear_key_head_dim": 8, "linear_value_head_dim": 8}
        counts = {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
        images = {"hidden_size": 16, "depth": 1, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": 32}
        text = {**text, **layers, **heads, **counts}
        if name == "qwen3_5":
            return Qwen3_5ForConditionalGeneration(Qwen3_5Config(text_config=text, vision_config=images))
        text |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
        text["shared_expert_intermediate_size"] = 16
        return Qwen3_5MoeForConditionalGeneration(Qwen3_5MoeConfig(text_config=text, vision_config=images))
    mistral = MistralConfig(**text) if name == "mistral" else Ministral3Config(**text)
    tied = name == "ministral3"
    return Mistral3ForConditionalGeneration(
        Mistral3Config(text_config=mistral, vision_config=PixtralVisionConfig(**IMAGES), tie_word_embeddings=tied)
    )


@pytest.fixture(params=["gemma3", "gemma4", "gemma4_unified", "mistral", "ministral3", "qwen3_5", "qwen3_5_moe"])
def whole(request: pytest.FixtureRequest, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        model = made(request.param, len(tiny_tokenizer)).eval()
        for parameter in model.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    return model


@torch.no_grad()
def test_its_numbers_are_those_of_the_whole_model(whole: PreTrainedModel, tmp_path: Path) -> None:
    main = MainModel.from_pretrained(str(tmp_path / "base"), dtype="float32")
    ids = torch.randint(3, 60, (2, 9))
    torch.testing.assert_close(main.model(ids).logits, whole(input_ids=ids).logits, rtol=1e-4, atol=1e-4)
    assert not any("vision" in name for name, _ in main.model.named_modules())
    # As what full fine-tuning and merging write.
    main.model.save_pretrained(tmp_path / "saved")
    again, report = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not report["missing_keys"] and type(again) is type(main.model)
    torch.testing.assert_close(again.eval()(ids).logits, main.model(ids).logits, rtol=1e-4, atol=1e-4)


def test_quantised_weights_are_refused(whole: PreTrainedModel, tmp_path: Path) -> None:
    file = tmp_path / "base" / "config.json"
    content = {**json.loads(file.read_text()), "quantization_config": {"quant_method": "fp8"}}
    file.write_text(json.dumps(content))
    with pytest.raises(HartError, match="its weights are quantised"):
        MainModel.from_pretrained(str(tmp_path / "base"))


def test_an_adapter_of_it_is_loaded_as_its_card_says(whole: PreTrainedModel, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    base = str(tmp_path / "base")
    settings = ModelConfig(
        base=base, encoder="main_model", decoder_layers=1, fusion=False, peft=[LORA], scheme={"name": "causal"}
    )
    model = HartModel.from_config(settings, DataConfig())
    with torch.no_grad():
        for head in model.hypernetwork.heads.heads():  # type: ignore[union-attr]
            nn.init.normal_(head.second, std=0.1)
    adaptation = model.adapt(TASK)
    save_peft(adaptation, model.main, tmp_path / "peft")
    card = (tmp_path / "peft" / "README.md").read_text(encoding="utf-8")
    code = card.partition("```python\n")[2].partition("```")[0].replace("THIS FOLDER", str(tmp_path / "peft"))
    names: dict[str, Any] = {}
    exec(code, names)
    ids = torch.randint(3, 60, (1, 9))
    with torch.no_grad():
        theirs = names["model"](ids).logits
        with model.main.adapted(adaptation, batch=1):
            torch.testing.assert_close(theirs, model.main.model(ids).logits, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(theirs, model.main.model(ids).logits, atol=1e-3)
    assert "revision" not in code  # a folder has none
    model.main.revision = "abc"
    assert export_card(adaptation, model.main, "peft", ()).count("revision='abc'") == 2
    model.main.revision = None
    save_merged(adaptation, model.main, tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, theirs, rtol=1e-4, atol=1e-4)


def test_its_memory_is_estimated(whole: PreTrainedModel, tmp_path: Path) -> None:
    base = str(tmp_path / "base")
    model = ModelConfig(base=base, encoder="main_model", decoder_layers=1, fusion=False, peft=[LORA])
    counts = estimate(RunConfig(model=model)).parameters
    main = MainModel.from_pretrained(base).model
    assert sum(count for name, count in counts.items() if name.startswith("main")) == main.num_parameters()


def test_others_have_no_row(tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """The part for text of SmolVLM is a Llama, under names of its own."""
    SmolVLMConfig().save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    with pytest.raises(HartError, match="architecture 'smolvlm' have no row"):
        MainModel.from_pretrained(str(tmp_path / "base"))
