"""Exports give the same as the adaptation: in the PEFT library, merged, and as one file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer, T5ForConditionalGeneration

from hart import Adaptation, HartError, HartModel, Task
from hart.model.export import EXPORT_FILE, merge, save_merged, save_peft, to_peft, what_is_lost
from hart.peft.injection import binding
from hart.training.config import DataConfig, ModelConfig

peft = pytest.importorskip("peft")
from peft_prefixes import peft_prefixes  # noqa: E402

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
TASK = Task("Swap the words.", [("one two", "two one"), ("three four", "four three")])
QUERIES = ["one three", "two four one", "the cat sat on the mat"]
EXACT = [
    {"kind": "lora", "rank": 2, "alpha": 5.0, "targets": ["q", "v"]},
    {
        "kind": "lora",
        "rank": 3,
        "alpha": 3.0,
        "targets": ["q", "k", "v", "o", "cross_q", "cross_k", "cross_v", "cross_o", "wi", "wo"],
    },
    {"kind": "ia3", "cross": False},
    {"kind": "ia3", "cross": True},
]


@pytest.fixture
def adapted(tiny_base_dir: Path) -> Callable[..., tuple[HartModel, Adaptation]]:
    def build(*kinds: dict[str, Any], fusion: bool = False) -> tuple[HartModel, Adaptation]:
        config = ModelConfig(base=str(tiny_base_dir), decoder_layers=1, peft=list(kinds), fusion=fusion)
        model = HartModel.from_config(config, DataConfig(max_target_length=12)).eval()
        adaptation = model.adapt(TASK)
        # New heads generate no change for LoRA and (IA)³; a trained one's are like these.
        adaptation.blocks = {name: 0.3 * torch.randn_like(rows) for name, rows in adaptation.blocks.items()}
        return model, adaptation

    return build


@torch.no_grad()
def logits(model: Any, tokenizer: Any, **options: Any) -> Tensor:
    read = tokenizer(QUERIES, padding=True, return_tensors="pt")
    return model(read.input_ids, read.attention_mask, labels=torch.arange(2, 23).view(3, 7), **options).logits


def ours(model: HartModel, adaptation: Adaptation) -> Tensor:
    return logits(
        model.main,
        model.main.tokenizer,
        blocks=adaptation.blocks,
        peft=adaptation.kinds,
        memory=adaptation.memory,
        memory_mask=adaptation.memory_mask,
    )


def loaded(model: HartModel, folder: Path) -> Any:
    """As a user of PEFT loads it, from the base's own files."""
    return peft.PeftModel.from_pretrained(T5ForConditionalGeneration.from_pretrained(model.main.name), folder).eval()


@pytest.mark.parametrize("kind", EXACT, ids=lambda kind: f"{kind['kind']}-{len(kind)}")
def test_peft_and_merged_are_exact(kind: dict[str, Any], adapted, tmp_path: Path) -> None:
    model, adaptation = adapted(kind)
    assert what_is_lost(adaptation) == []
    tokenizer, changed = model.main.tokenizer, ours(model, adaptation)
    stock = logits(model.main.model, tokenizer)
    assert not torch.allclose(changed, stock, atol=1e-2)
    save_peft(adaptation, model.main, tmp_path / "peft")
    names = {path.name for path in (tmp_path / "peft").iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "README.md", EXPORT_FILE}
    about = json.loads((tmp_path / "peft" / EXPORT_FILE).read_text(encoding="utf-8"))
    assert {*about["files"], EXPORT_FILE} == names and about["base_fingerprint"] == adaptation.base_fingerprint
    assert adaptation.tasks[0]["Definition"][0] not in json.dumps(about)
    theirs = loaded(model, tmp_path / "peft")
    torch.testing.assert_close(logits(theirs, tokenizer), changed, **CLOSE)
    shared = to_peft(adaptation, model.main)
    torch.testing.assert_close(logits(shared, tokenizer), changed, **CLOSE)
    torch.testing.assert_close(logits(shared.merge_and_unload(), tokenizer), changed, **CLOSE)
    torch.testing.assert_close(logits(theirs.merge_and_unload(), tokenizer), changed, **CLOSE)
    save_merged(adaptation, model.main, tmp_path / "merged")
    merged = T5ForConditionalGeneration.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(logits(merged, tokenizer), changed, **CLOSE)
    # The model in use is as it was.
    assert torch.equal(logits(model.main.model, tokenizer), stock)


def test_what_was_made_in_half_precision_is_exported(adapted, tmp_path: Path) -> None:
    model, adaptation = adapted(EXACT[0])
    adaptation = adaptation.to(dtype=torch.bfloat16)
    changed = ours(model, adaptation)
    save_peft(adaptation, model.main, tmp_path / "peft")
    torch.testing.assert_close(logits(loaded(model, tmp_path / "peft"), model.main.tokenizer), changed, **CLOSE)
    save_merged(adaptation, model.main, tmp_path / "merged")
    merged = T5ForConditionalGeneration.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(logits(merged, model.main.tokenizer), changed, **CLOSE)


def test_the_merged_model_writes_the_same_text(adapted, tmp_path: Path) -> None:
    model, adaptation = adapted(EXACT[0])
    save_merged(adaptation, model.main, tmp_path / "merged")
    save_peft(adaptation, model.main, tmp_path / "peft")
    for library, folder in (("transformers", "merged"), ("peft", "peft")):
        card = (tmp_path / folder / "README.md").read_text(encoding="utf-8")
        assert f"library_name: {library}" in card and "the end of sequence behind it" in card
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    merged = T5ForConditionalGeneration.from_pretrained(tmp_path / "merged")
    for theirs in (merged, loaded(model, tmp_path / "peft"), loaded(model, tmp_path / "peft").merge_and_unload()):
        read = tokenizer(QUERIES, padding=True, return_tensors="pt")
        tokens = theirs.generate(**{k: read[k] for k in ("input_ids", "attention_mask")}, max_new_tokens=12)
        assert tokenizer.batch_decode(tokens, skip_special_tokens=True) == model.generate(QUERIES, adaptation)


def test_a_base_whose_generation_config_cannot_be_saved(adapted, tmp_path: Path) -> None:
    """As some on the hub: rules of sampling where nothing is sampled."""
    model, adaptation = adapted(EXACT[0])
    model.main.stock_generation_config.update(do_sample=False, temperature=0.6, top_p=0.9)
    save_merged(adaptation, model.main, tmp_path / "merged")
    written = json.loads((tmp_path / "merged" / "generation_config.json").read_text())
    assert not {"temperature", "top_p"} & written.keys() and written["eos_token_id"] == 1


@peft_prefixes
def test_decoder_prefixes_are_placed_as_peft_reads_them(adapted, tmp_path: Path, monkeypatch) -> None:
    """Equal to ours without encoder prefixes, once the relative bias of PEFT's prefix columns is 0 as ours is.

    heads · d_kv (24) is not d_model (48) here.
    """
    model, adaptation = adapted({"kind": "prefix", "length": 4})
    save_peft(adaptation, model.main, tmp_path / "peft", lossy=True)
    theirs = loaded(model, tmp_path / "peft")
    decoder_only = {n: rows[:, :, : 0 if "encoder" in n else None] for n, rows in adaptation.blocks.items()}
    # Shapes that `check_blocks` would refuse: bound by hand.
    (kind,) = adaptation.kinds
    with binding(kind.bindings(model.main.model, decoder_only)):
        changed = logits(model.main.model, model.main.tokenizer)
    assert not torch.allclose(logits(theirs, model.main.tokenizer), changed, atol=1e-2)
    attention = theirs.base_model.decoder.block[0].layer[0].SelfAttention
    biases = attention.compute_bias

    def without_bias(*args: Any, **kwargs: Any) -> Tensor:
        made = biases(*args, **kwargs)
        return torch.cat([torch.zeros_like(made[..., :4]), made[..., 4:]], dim=-1)

    monkeypatch.setattr(attention, "compute_bias", without_bias)
    torch.testing.assert_close(logits(theirs, model.main.tokenizer), changed, **CLOSE)


@pytest.mark.parametrize(
    ("kind", "fusion", "lost"),
    [
        (
            {"kind": "prefix", "length": 4},
            True,
            ["the memory: the main model no longer", "prefixes of the encoder", "relative bias"],
        ),
        ({"kind": "prefix", "length": 4}, False, ["prefixes of the encoder", "relative bias"]),
        (EXACT[0], True, ["the memory: the main model no longer"]),
    ],
)
def test_losses_are_named_and_refused(kind: dict[str, Any], fusion: bool, lost: list[str], adapted, tmp_path) -> None:
    model, adaptation = adapted(kind, fusion=fusion)
    said = what_is_lost(adaptation)
    assert len(said) == len(lost) and all(word in phrase for word, phrase in zip(lost, said, strict=True))
    with pytest.raises(HartError, match="--lossy") as refusal:
        save_peft(adaptation, model.main, tmp_path / "peft")
    assert all(phrase in str(refusal.value) for phrase in said)
    assert not (tmp_path / "peft").exists()
    save_peft(adaptation, model.main, tmp_path / "peft", lossy=True)
    card = (tmp_path / "peft" / "README.md").read_text(encoding="utf-8")
    assert all(phrase in card for phrase in said)


def test_lora_beside_fusion_keeps_the_lora(adapted) -> None:
    model, adaptation = adapted(EXACT[0], fusion=True)
    theirs = to_peft(adaptation, model.main, lossy=True)
    adaptation.memory = adaptation.memory_mask = None
    torch.testing.assert_close(logits(theirs, model.main.tokenizer), ours(model, adaptation), **CLOSE)


@pytest.mark.parametrize(
    ("kinds", "told"),
    [
        ([{"kind": "adapter", "bottleneck": 4}], "PEFT has no adapter beside the feed-forward"),
        ([{"kind": "prefix", "length": 2}, EXACT[0]], "prefix and lora"),
    ],
)
def test_what_peft_does_not_have(kinds: list[dict[str, Any]], told: str, adapted) -> None:
    model, adaptation = adapted(*kinds)
    with pytest.raises(HartError, match=told):
        to_peft(adaptation, model.main, lossy=True)


def test_prefixes_cannot_be_merged_and_rows_are_exported_one_by_one(adapted) -> None:
    model, adaptation = adapted({"kind": "prefix", "length": 4})
    with pytest.raises(HartError, match="cannot be merged"):
        merge(adaptation, model.main, lossy=True)
    with pytest.raises(HartError, match="choose one"):
        to_peft(Adaptation.stack([adaptation, adaptation]), model.main, lossy=True)


def test_another_base_is_refused(adapted) -> None:
    model, adaptation = adapted(EXACT[0])
    adaptation.base_fingerprint = "0" * 64
    with pytest.raises(HartError, match="belongs to the base"):
        to_peft(adaptation, model.main)
