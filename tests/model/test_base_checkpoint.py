"""Unusable bases are refused at loading; revisions on the hub are resolved to commits."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, T5ForConditionalGeneration

from hart.errors import HartError
from hart.model import base_checkpoint
from hart.model.base_checkpoint import load_base
from hart.model.hart_model import HartModel
from hart.model.main_model import MainModel
from hart.training.config import DataConfig, ModelConfig


@pytest.fixture
def copied(tiny_base_dir: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_base_dir, tmp_path / "base")


def test_without_the_tokenizers_files(copied: Path) -> None:
    """transformers makes a tokenizer of its own then, to which every word is unknown."""
    for path in copied.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(HartError, match=r"base: has no tokenizer \(tokenizer.json or spiece.model is missing\)"):
        load_base(str(copied))


def test_with_a_part_of_the_tokenizers_files(copied: Path) -> None:
    (copied / "tokenizer.json").unlink()
    with pytest.raises(HartError, match="base: its tokenizer cannot be loaded .*complete"):
        load_base(str(copied))


def test_a_tokenizer_of_a_larger_model(copied: Path) -> None:
    content = json.loads((copied / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    rows = T5ForConditionalGeneration.from_pretrained(copied).config.vocab_size
    vocabulary["a piece of another model"] = rows
    (copied / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(
        HartError, match=f"its tokenizer has token ids up to {rows}, and the model has {rows} embeddings"
    ):
        load_base(str(copied))


def test_tokens_of_images_beyond_the_embeddings(copied: Path) -> None:
    """As in Gemma 3's tokenizer, which its models of text alone share."""
    tokenizer = AutoTokenizer.from_pretrained(copied)
    rows = T5ForConditionalGeneration.from_pretrained(copied).config.vocab_size
    more = [f"<unused{number}>" for number in range(rows - len(tokenizer))]
    tokenizer.add_tokens([*more, "<image>"], special_tokens=True)
    tokenizer.save_pretrained(copied)
    main = MainModel.from_pretrained(str(copied))
    assert main.generate(["the cat"], max_new_tokens=2)
    with pytest.raises(
        HartError, match=f"has embeddings of {rows} tokens, and token {rows} is not among them; leave it out"
    ):
        main.generate(["the <image>"], max_new_tokens=2)


def test_padding_beyond_the_embeddings_is_refused(copied: Path) -> None:
    """As of a fine-tuned model whose embeddings were not made larger for it."""
    tokenizer = AutoTokenizer.from_pretrained(copied)
    rows = T5ForConditionalGeneration.from_pretrained(copied).config.vocab_size
    more = [f"<unused{number}>" for number in range(rows - len(tokenizer))]
    tokenizer.add_tokens([*more, "[PAD]"], special_tokens=True)
    tokenizer.pad_token = "[PAD]"
    tokenizer.save_pretrained(copied)
    with pytest.raises(
        HartError, match=f"its tokenizer has token ids up to {rows}, and the model has {rows} embeddings"
    ):
        load_base(str(copied))


def test_quantised_weights_are_refused(copied: Path) -> None:
    content = json.loads((copied / "config.json").read_text())
    content["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (copied / "config.json").write_text(json.dumps(content))
    with pytest.raises(HartError, match="base: its weights are quantised.*dtype bfloat16"):
        load_base(str(copied))


@pytest.mark.parametrize("field", ["pad_token", "eos_token"])
def test_a_tokenizer_without_a_token_that_t5_needs(copied: Path, field: str) -> None:
    content = json.loads((copied / "tokenizer_config.json").read_text())
    content.pop(field)
    (copied / "tokenizer_config.json").write_text(json.dumps(content))
    with pytest.raises(HartError, match=f"its tokenizer has no {field}_id"):
        load_base(str(copied))


@pytest.mark.parametrize("dtype", ["float16", torch.float16, "torch.float16"])
def test_float16(copied: Path, dtype: Any, tmp_path: Path) -> None:
    message = "dtype must be float32 or bfloat16, not float16, T5 overflows in float16"
    with pytest.raises(HartError, match=message):
        MainModel.from_pretrained(str(copied), dtype=dtype)
    system = HartModel.from_config(ModelConfig(base=str(copied), decoder_layers=2), DataConfig())
    system.save_pretrained(tmp_path / "saved")
    with pytest.raises(HartError, match=f"{message}$"):
        HartModel.from_pretrained(tmp_path / "saved", dtype=dtype)
    with pytest.raises(HartError, match="dtype must be float32 or bfloat16, not int8"):
        load_base(str(copied), dtype="int8")
    with pytest.raises(HartError, match="dtype must be float32 or bfloat16, not single precision"):
        load_base(str(copied), dtype="single precision")


def test_a_checkpoint_that_is_stored_in_float16(copied: Path) -> None:
    T5ForConditionalGeneration.from_pretrained(copied).half().save_pretrained(copied)
    with pytest.raises(HartError, match="is stored in float16, which may overflow; load it with dtype float32"):
        load_base(str(copied))
    assert load_base(str(copied), dtype="float32").model.dtype == torch.float32


def test_a_decoder_start_is_given_where_the_configuration_says_none(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    config["decoder_start_token_id"] = None
    (copied / "config.json").write_text(json.dumps(config))
    main = MainModel.from_pretrained(str(copied))
    ids, mask = main.pad([[5, 6, 1]])
    assert main(ids, mask, labels=ids).logits.shape[:2] == (1, 3)
    assert len(main.generate(["the cat"], max_new_tokens=2)) == 1


class Hub:
    """A cache of the hub with one repository, in its layout."""

    def __init__(self, folder: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.repository = folder / "models--org--tiny"
        self.base = base
        for module in ("huggingface_hub.constants", "huggingface_hub.file_download", "transformers.utils.hub"):
            monkeypatch.setattr(f"{module}.HF_HUB_CACHE", str(folder), raising=False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))

    def add(self, commit: str, branch: str, *, without: str = "") -> Path:
        snapshot = self.repository / "snapshots" / commit
        shutil.copytree(self.base, snapshot, ignore=shutil.ignore_patterns(without))
        reference = self.repository / "refs" / branch
        reference.parent.mkdir(parents=True, exist_ok=True)
        reference.write_text(commit)
        return snapshot


@pytest.fixture
def hub(tmp_path: Path, tiny_base_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    return Hub(tmp_path / "hub", tiny_base_dir, monkeypatch)


def test_the_commit_of_the_hub_is_recorded(hub: Hub, tmp_path: Path) -> None:
    first, second = "a" * 40, "b" * 40
    hub.add(first, "main")
    changed = hub.add(second, "other")
    weights = load_file(changed / "model.safetensors")
    weights["lm_head.weight"] *= 2
    save_file(weights, changed / "model.safetensors", metadata={"format": "pt"})
    system = HartModel.from_config(ModelConfig(base="org/tiny", decoder_layers=2), DataConfig())
    assert system.main.identity["base_revision"] == first
    assert MainModel.from_pretrained("org/tiny", revision="other").revision == second
    assert MainModel.from_pretrained("org/tiny", revision=first).revision == first
    system.save_pretrained(tmp_path / "saved")
    (hub.repository / "refs" / "main").write_text(second)  # the branch moves on
    assert HartModel.from_pretrained(tmp_path / "saved").main.revision == first
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["system"]["base_revision"] == first


@pytest.mark.parametrize(
    ("without", "message"),
    [
        ("model.safetensors", "org/tiny: cannot be loaded"),
        ("tokenizer*", "org/tiny: has no tokenizer"),
        ("tokenizer.json", "org/tiny: its tokenizer cannot be loaded"),
        ("config.json", "org/tiny: no checkpoint there"),
    ],
)
def test_a_partial_snapshot(hub: Hub, without: str, message: str) -> None:
    hub.add("a" * 40, "main", without=without)
    with pytest.raises(HartError, match=message):
        load_base("org/tiny")


def test_a_revision_is_of_the_hub_alone(tiny_base_dir: Path) -> None:
    assert load_base(str(tiny_base_dir), revision="main").commit is None
    assert base_checkpoint._commit("mini/none", "main") == "main", "nothing in the cache"


def test_a_base_that_has_moved_is_asked_for(copied: Path, tmp_path: Path) -> None:
    system = HartModel.from_config(ModelConfig(base=str(copied), decoder_layers=2), DataConfig())
    system.save_pretrained(tmp_path / "saved")
    moved = copied.rename(tmp_path / "moved")
    with pytest.raises(HartError, match=r"base: no checkpoint there .*it is the base of .*give its folder"):
        HartModel.from_pretrained(tmp_path / "saved")
    assert HartModel.from_pretrained(tmp_path / "saved", base=str(moved)).main.name == str(moved)
