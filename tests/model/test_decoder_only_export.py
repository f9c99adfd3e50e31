"""Exports of a decoder-only model's adaptation in the PEFT library give the same numbers and texts."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from decoder_models import CONFIGS, decoder_model, fitting, frozen
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from hart.data.input_format import InputFormat
from hart.errors import HartError
from hart.model.adaptation import Adaptation
from hart.model.decoder_only import DecoderOnly
from hart.model.export import merge, peft_tensors, save_merged, save_peft, to_peft, what_is_lost
from hart.model.main_model import MainModel
from hart.model.memory_prefix import as_prefixes
from hart.peft.base import build_kinds, row_blocks

peft = pytest.importorskip("peft")
from peft_prefixes import peft_prefixes  # noqa: E402

KINDS = {
    "prefix": {"kind": "prefix", "length": 4},
    "lora": {"kind": "lora", "rank": 2, "alpha": 3.0, "targets": ["q", "v", "o", "wi", "wo"]},
    "ia3": {"kind": "ia3"},
}
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
QUERIES = ["one three", "two four one", "the cat sat on the mat"]


@pytest.fixture(params=CONFIGS)
def main(request: pytest.FixtureRequest, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> MainModel:
    model = decoder_model(request.param, len(tiny_tokenizer))
    model.save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    main = MainModel.from_pretrained(str(tmp_path / "base"), dtype="float32")
    main.freeze()
    return main


def adapted(main: MainModel, *kind: dict[str, Any]) -> Adaptation:
    kinds = build_kinds(fitting(list(kind), main.shape))
    blocks = {
        block.name: 0.3 * torch.randn(1, block.layers, block.rows, block.width)
        for block in row_blocks(kinds, main.shape)
    }
    task = {"name": "t", "Definition": ["d"], "Positive Examples": [{"input": "a", "output": "b"}]}
    return Adaptation(blocks, None, None, [each.to_config() for each in kinds], tasks=[task], **main.identity)


@torch.no_grad()
def logits(model: Any, ids: Tensor) -> Tensor:
    return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


def texts(model: Any, main: MainModel) -> list[str]:
    made = []
    for query in QUERIES:
        ids = torch.tensor([InputFormat().encode_query(main.tokenizer, query)])
        options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 8, "do_sample": False}
        tokens = model.generate(input_ids=ids, pad_token_id=0, **options)
        made.append(main.tokenizer.decode(tokens[0, ids.shape[1] :], skip_special_tokens=True))
    return made


@pytest.mark.parametrize(
    "name", [pytest.param(kind, marks=peft_prefixes if kind == "prefix" else ()) for kind in KINDS]
)
def test_an_export_is_exact(main: MainModel, name: str, tmp_path: Path) -> None:
    adaptation = adapted(main, KINDS[name])
    assert what_is_lost(adaptation) == []
    ids = torch.randint(3, 60, (1, 14))
    with main.adapted(adaptation, batch=1):
        changed = logits(main.model, ids)
    stock = logits(main.model, ids)
    assert not torch.allclose(changed, stock, atol=1e-2)
    if name == "prefix" and main.shape.attention is not None:
        with pytest.raises(
            HartError, match="PEFT's prefixes are for all layers, and those of this base are for some alone"
        ):
            save_peft(adaptation, main, tmp_path / "peft")
        return
    save_peft(adaptation, main, tmp_path / "peft")
    theirs = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(main.name, dtype=torch.float32), tmp_path / "peft"
    ).eval()
    assert theirs.peft_config["default"].task_type == "CAUSAL_LM"
    torch.testing.assert_close(logits(theirs, ids), changed, **CLOSE)
    torch.testing.assert_close(logits(to_peft(adaptation, main), ids), changed, **CLOSE)
    answers = main.generate(QUERIES, adaptation, max_new_tokens=8)
    assert texts(theirs, main) == answers != main.generate(QUERIES, max_new_tokens=8)
    if name != "prefix":
        save_merged(adaptation, main, tmp_path / "merged")
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
        torch.testing.assert_close(logits(merged, ids), changed, **CLOSE)
        assert texts(merged, main) == answers
    assert torch.equal(logits(main.model, ids), stock)
    assert isinstance(main, DecoderOnly)


WITH_A_MEMORY = (
    "llama", "qwen2", "qwen3", "qwen3_moe", "granitemoehybrid, attention", "glm4", "glm4_moe", "ernie4_5",
    "ernie4_5_moe", "olmo2", "olmoe", "seed_oss", "apertus", "arcee", "starcoder2", "phi", "gpt_neox",
)  # fmt: skip
"""Rotary positions and no sliding window."""


def with_a_memory(main: MainModel, *kind: dict[str, Any]) -> Adaptation:
    """Of 6 tokens, two of them padding."""
    adaptation = adapted(main, *kind)
    adaptation.memory, adaptation.memory_mask = torch.randn(1, 6, main.shape.d_model), torch.ones(1, 6)
    adaptation.memory_mask[0, 4:] = 0
    return adaptation


@peft_prefixes
@pytest.mark.parametrize("kinds", [[], [KINDS["prefix"]]], ids=["alone", "prefix"])
@pytest.mark.parametrize("main", WITH_A_MEMORY, indirect=True)
def test_a_memory_in_front_is_exported_as_prefixes(main: MainModel, kinds: list[dict], tmp_path: Path) -> None:
    adaptation = with_a_memory(main, *kinds)
    assert what_is_lost(adaptation) == what_is_lost(adaptation, main) == []
    ids = torch.randint(3, 60, (1, 14))
    with main.adapted(adaptation, batch=1):
        changed = logits(main.model, ids)
    written = as_prefixes(adaptation, main)
    assert written.memory is None and written.peft[0]["length"] == (8 if kinds else 4)
    with main.adapted(written, batch=1):
        torch.testing.assert_close(logits(main.model, ids), changed, **CLOSE)
    save_peft(adaptation, main, tmp_path / "peft")
    theirs = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(main.name, dtype=torch.float32), tmp_path / "peft"
    ).eval()
    torch.testing.assert_close(logits(theirs, ids), changed, **CLOSE)
    assert texts(theirs, main) == main.generate(QUERIES, adaptation, max_new_tokens=8)
    with main.adapted(replace(adaptation, memory=None, memory_mask=None), batch=1):
        assert not torch.allclose(logits(main.model, ids), changed, atol=1e-2)
    with pytest.raises(HartError, match="prefixes and a memory change no weights"):
        merge(adaptation, main)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
        {"rope_type": "dynamic", "factor": 4.0},
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_scaled_rotary_positions(rope: dict, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch) -> None:
    config, sizes = CONFIGS["llama"]
    monkeypatch.setitem(CONFIGS, "scaled", (config, {**sizes, "rope_parameters": {"rope_theta": 100.0, **rope}}))
    main = frozen("scaled", tiny_tokenizer)
    adaptation = with_a_memory(main, KINDS["prefix"])
    if rope["rope_type"] == "dynamic":
        assert "change with the length" in what_is_lost(adaptation, main)[0]
        return
    ids = torch.randint(3, 60, (1, 40))
    found = []
    for each in (adaptation, as_prefixes(adaptation, main)):
        with main.adapted(each, batch=1):
            found.append(logits(main.model, ids))
    torch.testing.assert_close(*found, **CLOSE)


@pytest.mark.parametrize(
    ("main", "kind", "reason"),
    [
        ("gpt2", "prefix", "shift the base's, which are learned"),
        ("ministral3", "prefix", "or scale its queries"),
        ("mistral", "prefix", "sliding window"),
        ("gpt_oss", "prefix", "sliding window"),
        ("cohere2", "prefix", "sliding window"),
        ("gemma3_text", "prefix", "it takes up no positions|sliding window"),
        ("llama", "lora", "one kind of parameters"),
    ],
    indirect=["main"],
)
def test_a_memory_that_cannot_be_prefixes_is_given_up_with_a_reason(
    main: MainModel, kind: str, reason: str, tmp_path: Path
) -> None:
    adaptation = with_a_memory(main, KINDS[kind])
    (lost,) = what_is_lost(adaptation, main)
    with pytest.raises(HartError, match=f"would lose the memory.*({reason}).*--lossy"):
        save_peft(adaptation, main, tmp_path / "peft")
    assert not (tmp_path / "peft").exists()
    kept = peft_tensors(adaptation, main)
    alone = peft_tensors(replace(adaptation, memory=None, memory_mask=None), main)
    assert kept.keys() == alone.keys() and all(torch.equal(rows, alone[name]) for name, rows in kept.items())
    save_peft(adaptation, main, tmp_path / "peft", lossy=True)
    assert lost in (tmp_path / "peft" / "README.md").read_text(encoding="utf-8")
