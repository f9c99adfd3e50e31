"""Folders of saved systems: their content, and refused folders."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hart.errors import HartError
from hart.hypernetwork.network import HyperNetwork
from hart.model.folder import fetch
from hart.model.hart_model import HartModel

from .conftest import QUERIES, TASKS, make


def test_saved_model_adapts_and_answers_identically(variant: HartModel, tmp_path: Path):
    variant.save_pretrained(tmp_path / "model")
    loaded = HartModel.from_pretrained(tmp_path / "model")
    assert loaded.fusion == variant.fusion and loaded.input_format == variant.input_format
    assert not loaded.training
    expected, found = variant.adapt(TASKS), loaded.adapt(TASKS)
    assert found.peft == expected.peft and found.model == str(tmp_path / "model")
    for name, values in expected.blocks.items():
        assert torch.equal(found.blocks[name], values)
    assert loaded.generate(QUERIES, found) == variant.generate(QUERIES, expected)
    # An adaptation belongs to the base, not to the object that made it.
    assert loaded.generate(QUERIES, expected) == variant.generate(QUERIES, found)


def test_saved_model_holds_the_hypernetwork_alone(system: HartModel, tmp_path: Path):
    system.save_pretrained(tmp_path / "model")
    assert {p.name for p in (tmp_path / "model").iterdir()} == {"config.json", "model.safetensors", "README.md"}
    assert load_file(tmp_path / "model" / "model.safetensors").keys() == system.hypernetwork.state_dict().keys()
    card = (tmp_path / "model" / "README.md").read_text()
    assert f"base_model: {system.main.name}" in card and "autoregressive" in card


def test_saving_replaces_an_earlier_model_and_nothing_else(system: HartModel, tmp_path: Path):
    system.save_pretrained(tmp_path / "model")
    system.save_pretrained(tmp_path / "model", card="my own words")
    assert (tmp_path / "model" / "README.md").read_text() == "my own words"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(HartError, match="other content"):
        system.save_pretrained(tmp_path / "other")
    assert [p.name for p in (tmp_path / "other").iterdir()] == ["thesis.tex"]


def test_weights_stored_in_bfloat16_compute_in_float32(system: HartModel, tmp_path: Path):
    system.save_pretrained(tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    halved = {name: values.bfloat16() for name, values in weights.items()}
    save_file(halved, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    loaded = HartModel.from_pretrained(tmp_path / "model")
    assert {p.dtype for p in loaded.hypernetwork.parameters()} == {torch.float32}


def test_a_dtype_may_have_the_name_that_torch_prints(system: HartModel, tmp_path: Path):
    system.save_pretrained(tmp_path / "model")
    loaded = HartModel.from_pretrained(tmp_path / "model", dtype=str(torch.bfloat16))
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}


@pytest.fixture
def saved(system: HartModel, tmp_path: Path) -> Path:
    system.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_base_found_elsewhere_is_the_same_base(saved: Path, tiny_base_dir: Path, tmp_path: Path):
    copy = shutil.copytree(tiny_base_dir, tmp_path / "copy")
    edit_config(saved, base="a/name-that-is-not-here", base_revision="0" * 40)
    assert HartModel.from_pretrained(saved, base=str(copy)).main.name == str(copy)


def test_other_base_is_refused(saved: Path, tiny_base_dir: Path, tmp_path: Path):
    other = shutil.copytree(tiny_base_dir, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    weights["encoder.block.1.layer.0.SelfAttention.k.weight"] *= 1.5
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(HartError, match="was trained for the base .* whose weights differ"):
        HartModel.from_pretrained(saved, base=str(other))


def test_a_trained_main_model_takes_no_other_base(tiny_base_dir: Path, tmp_path: Path):
    make(tiny_base_dir, train_main=True).save_pretrained(tmp_path / "model")
    with pytest.raises(HartError, match="contains its own trained main model; leave out the base"):
        HartModel.from_pretrained(tmp_path / "model", base=str(tiny_base_dir))


def test_hypernetwork_for_another_shape_is_refused(system: HartModel):
    system.hypernetwork.shape = type(system.main.shape)(**{**vars(system.main.shape), "d_kv": 4})
    with pytest.raises(HartError, match="use the base it was trained with"):
        HartModel(system.main, system.hypernetwork)


def test_truncated_weights_are_refused(saved: Path):
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(HartError, match=r"model.safetensors: truncated .*; download it again") as refused:
        HartModel.from_pretrained(saved)
    assert "\n" not in str(refused.value)


def test_bad_files_are_named(saved: Path):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2145\nsize 12345\n"
    config, weights = saved / "config.json", saved / "model.safetensors"
    config.write_bytes(b"\xef\xbb\xbf" + config.read_bytes())  # a byte order mark is no mistake
    HartModel.from_pretrained(saved)
    tensors = load_file(weights)
    name = min(tensors)
    save_file(tensors | {name: tensors[name].to(torch.int64)}, weights, metadata={"format": "pt"})
    with pytest.raises(HartError, match=f"^{weights}: {name} has I64 instead of floating-point numbers"):
        HartModel.from_pretrained(saved)
    weights.write_bytes(pointer)
    with pytest.raises(HartError, match=f"^{weights}: is a Git LFS pointer"):
        HartModel.from_pretrained(saved)
    for content in (pointer, b"[" * 100_000, b"9" * 5000, b'{"model_type": "\\ud800"}'):
        config.write_bytes(content)
        with pytest.raises(HartError, match=f"^{config}: ") as refused:
            HartModel.from_pretrained(saved)
        assert "\n" not in str(refused.value)


def test_saved_files_have_ordinary_modes(variant: HartModel, tmp_path: Path):
    """Also the weights, which safetensors makes private."""
    (tmp_path / "plain").touch()
    variant.save_pretrained(tmp_path / "model")
    files = [path for path in (tmp_path / "model").rglob("*") if path.is_file()]
    assert {path.stat().st_mode for path in files} == {(tmp_path / "plain").stat().st_mode}


def test_weights_that_lack_a_tensor_are_refused(saved: Path):
    weights = load_file(saved / "model.safetensors")
    del weights["encoder.final_layer_norm.weight"]
    save_file(weights, saved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(HartError, match="does not fit config.json at encoder.final_layer_norm"):
        HartModel.from_pretrained(saved)


def edit_config(folder: Path, **system: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["system"] |= system
    (folder / "config.json").write_text(json.dumps(config))


def test_unknown_kind_is_refused(saved: Path):
    config = json.loads((saved / "config.json").read_text())
    config["peft"][0]["kind"] = "nonsense"
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(HartError, match="nonsense"):
        HartModel.from_pretrained(saved)


def test_a_scheme_that_was_not_imported_is_refused(saved: Path):
    config = json.loads((saved / "config.json").read_text())
    config["scheme"] = {"name": "mine"}
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(HartError, match=f"^{saved}: has the scheme 'mine', .* import its module first"):
        HartModel.from_pretrained(saved)


def test_foreign_config_files_are_refused(saved: Path, tiny_base_dir: Path):
    with pytest.raises(HartError, match="model_type is 't5'"):
        HartModel.from_pretrained(tiny_base_dir)
    edit_config(saved, input_format={"beams": 3})
    with pytest.raises(HartError, match="input_format has fields of another version"):
        HartModel.from_pretrained(saved)
    config = json.loads((saved / "config.json").read_text())
    for broken, reason in (
        ({**config, "system": {"base": "x"}}, "system.base_revision is missing"),
        ({k: v for k, v in config.items() if k != "system"}, "system.base is missing"),
    ):
        (saved / "config.json").write_text(json.dumps(broken))
        with pytest.raises(HartError, match=reason):
            HartModel.from_pretrained(saved)
    (saved / "config.json").write_bytes(b"\xff{")
    with pytest.raises(HartError, match=r"config.json: .*the text is not UTF-8"):
        HartModel.from_pretrained(saved)
    (saved / "config.json").unlink()
    with pytest.raises(HartError, match="give the folder of a saved HART model"):
        HartModel.from_pretrained(saved)


def test_name_that_is_nowhere_is_refused():
    for name in ("nobody/nothing-here", "a/b/c"):
        with pytest.raises(HartError, match=f"{name}: no such folder, and no such model"):
            HartModel.from_pretrained(name)


def test_disk_full_while_saving_leaves_nothing(system: HartModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from safetensors import SafetensorError

    def full(*_: object, **__: object) -> None:
        raise SafetensorError("IoError: No space left on device")

    monkeypatch.setattr(HyperNetwork, "save_pretrained", full)
    with pytest.raises(HartError, match="model: cannot be written .*No space left"):
        system.save_pretrained(tmp_path / "model")
    assert not any(tmp_path.iterdir())


def test_upload_sends_what_is_saved(system: HartModel, monkeypatch: pytest.MonkeyPatch):
    sent: dict[str, list[str]] = {}

    class Hub:
        def create_repo(self, repo_id: str, **_: object) -> None: ...

        def upload_folder(self, *, repo_id: str, folder_path: Path, **_: object) -> str:
            sent[repo_id] = sorted(p.name for p in Path(folder_path).iterdir())
            return "https://hub/commit/1"

    monkeypatch.setattr("hart.model.folder.HfApi", Hub)
    assert system.push_to_hub("me/mine") == "https://hub/commit/1"
    assert sent == {"me/mine": ["README.md", "config.json", "model.safetensors"]}


def test_upload_without_a_hub_is_one_clear_line(system: HartModel):
    with pytest.raises(HartError, match="me/mine: upload failed"):
        system.push_to_hub("me/mine")


def test_bundled_models_are_found_by_name():
    """By whatever takes over a saved model: `from_pretrained` and `model.init_from` alike."""
    assert (fetch("mini", None) / "config.json").is_file()
