"""hart export: the three formats from the command line, and refused input."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, T5ForConditionalGeneration

from hart import Adaptation, HartModel, Task
from hart.serving.store import Store
from hart.training.config import DataConfig, ModelConfig

peft = pytest.importorskip("peft")


@pytest.fixture
def lora_dir(tmp_path: Path, tiny_base_dir: Path) -> Path:
    config = ModelConfig(base=str(tiny_base_dir), decoder_layers=1, peft=[{"kind": "lora", "rank": 2}], fusion=False)
    model = HartModel.from_config(config, DataConfig(max_target_length=8))
    adaptation = model.adapt(Task("Swap.", [("a b", "b a")]))
    adaptation.blocks = {name: 0.3 * torch.randn_like(rows) for name, rows in adaptation.blocks.items()}
    adaptation.save_pretrained(tmp_path / "lora")
    return tmp_path / "lora"


def test_peft_and_merged_answer_as_predict_does(lora_dir: Path, tiny_base_dir: Path, tmp_path: Path, ok, hart) -> None:
    expected = ok("predict", lora_dir, "--input", "cat sat").strip()
    for form in ("peft", "merged"):
        assert f"as {form}" in ok("export", lora_dir, "--format", form, "--output-dir", tmp_path / form)
    base = T5ForConditionalGeneration.from_pretrained(tiny_base_dir)
    tokenizer = AutoTokenizer.from_pretrained(tiny_base_dir)
    ids = tokenizer("cat sat", return_tensors="pt").input_ids
    for model in (
        peft.PeftModel.from_pretrained(base, tmp_path / "peft"),
        T5ForConditionalGeneration.from_pretrained(tmp_path / "merged"),
    ):
        tokens = model.generate(input_ids=ids, max_new_tokens=8)
        assert tokenizer.decode(tokens[0], skip_special_tokens=True).strip() == expected
    # The same again replaces; what is something else stays.
    ok("export", lora_dir, "--format", "peft", "--output-dir", tmp_path / "peft")


def test_native_folder(lora_dir: Path, tmp_path: Path, ok) -> None:
    ok("export", lora_dir, "--format", "safetensors", "--output-dir", tmp_path / "copy")
    copy, original = (Adaptation.from_pretrained(folder) for folder in (tmp_path / "copy", lora_dir))
    assert all(torch.equal(copy.blocks[name], rows) for name, rows in original.blocks.items())


def test_a_lossy_export_is_asked_for_and_warned_of(adaptation_dir: Path, tmp_path: Path, hart, refused) -> None:
    words = ("export", adaptation_dir, "--format", "peft", "--output-dir", tmp_path / "peft")
    assert "--lossy" in refused(*words)
    assert not (tmp_path / "peft").exists()
    result = hart(*words, "--lossy")
    assert result.status == 0
    warnings = result.err.splitlines()
    assert len(warnings) == 3 and all(line.startswith("hart: warning: lost in the export: ") for line in warnings)
    assert (tmp_path / "peft" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("form", ["peft", "merged", "safetensors"])
def test_another_export_is_replaced_if_asked_to(form: str, lora_dir: Path, tmp_path: Path, ok, refused) -> None:
    adaptation = Adaptation.from_pretrained(lora_dir)
    replace(adaptation, tasks=[Task("Turn.").to_dict()]).save_pretrained(tmp_path / "other")
    folder = tmp_path / "out"
    words = ("--format", form, "--output-dir", folder)
    ok("export", lora_dir, *words)
    assert "another adaptation; give a new folder, or --overwrite" in refused("export", tmp_path / "other", *words)
    if form != "safetensors":  # a file that only the earlier export had
        about = json.loads((folder / "hart_export.json").read_text(encoding="utf-8"))
        (folder / "shard").touch()
        text = json.dumps({**about, "files": [*about["files"], "shard"]})
        (folder / "hart_export.json").write_text(text, encoding="utf-8")
    ok("export", tmp_path / "other", *words, "--overwrite")
    assert not (folder / "shard").exists()
    (folder / "thesis.tex").touch()
    line = refused("export", tmp_path / "other", *words, "--overwrite")
    assert "exists with other content" in line and (folder / "thesis.tex").exists()


def test_a_checkpoint_of_somebody_else_is_never_replaced(
    lora_dir: Path, tiny_base_dir: Path, tmp_path, refused
) -> None:
    mine = shutil.copytree(tiny_base_dir, tmp_path / "mine")
    before = sorted(each.name for each in mine.iterdir())
    line = refused("export", lora_dir, "--format", "merged", "--output-dir", mine, "--overwrite")
    assert "exists with other content" in line and sorted(each.name for each in mine.iterdir()) == before


@pytest.mark.parametrize("form", ["peft", "merged", "safetensors"])
def test_other_content_stays(form: str, lora_dir: Path, tmp_path: Path, refused) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").touch()
    assert "exists with other content" in refused(
        "export", lora_dir, "--format", form, "--output-dir", tmp_path / "thesis"
    )
    assert [each.name for each in (tmp_path / "thesis").iterdir()] == ["thesis.tex"]


def test_mistakes(adaptation_dir: Path, tmp_path: Path, refused: Callable[..., str], monkeypatch) -> None:
    assert "absent" in refused("export", tmp_path / "absent", "--format", "peft", "--output-dir", tmp_path / "p")
    words = ("export", adaptation_dir, "--output-dir", tmp_path / "p", "--format")
    assert "cannot be merged" in refused(*words, "merged", "--lossy")
    assert "cannot be merged" in refused(*words, "merged"), "said at once, not behind --lossy"
    assert "give its whole id of 64 digits" in refused("export", "0123456789ab", *words[2:], "merged")
    assert "--format" in refused(*words, "gguf")
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    assert "pip install" in refused(*words, "peft", "--lossy")
    assert not (tmp_path / "p").exists()


def test_an_id_of_the_store(lora_dir: Path, tmp_path: Path, ok, refused, monkeypatch) -> None:
    monkeypatch.setenv("HART_CACHE", str(tmp_path / "cache"))
    record = Store().put(Adaptation.from_pretrained(lora_dir), model_fingerprint="m")
    ok("export", record.id, "--format", "safetensors", "--output-dir", tmp_path / "copy")
    assert Adaptation.from_pretrained(tmp_path / "copy").tasks == Adaptation.from_pretrained(lora_dir).tasks
    line = refused("export", "0" * 64, "--format", "safetensors", "--output-dir", tmp_path / "none")
    assert "no such adaptation" in line and str(tmp_path / "cache") in line


def test_the_base_from_elsewhere(lora_dir: Path, tiny_base_dir: Path, tmp_path: Path, ok, refused) -> None:
    base = shutil.copytree(tiny_base_dir, tmp_path / "base")
    adaptation = Adaptation.from_pretrained(lora_dir)
    replace(adaptation, base="runs/base").save_pretrained(tmp_path / "moved")
    words = ("export", tmp_path / "moved", "--format", "peft", "--output-dir", tmp_path / "peft")
    assert "give its folder with --base" in refused(*words)
    ok(*words, "--base", base)
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == str(base)  # where PEFT, too, will find it
