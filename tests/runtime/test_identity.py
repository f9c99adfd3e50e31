"""The fingerprint covers the current weights and the tokenizer's behaviour."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from hart.data.tasks import Task
from hart.errors import HartError
from hart.model.hart_model import HartModel
from hart.model.main_model import MainModel
from hart.runtime.fingerprints import difference, tokenizer_digest
from hart.runtime.identity import fingerprint, peft_digest, trace
from hart.training.config import DataConfig, ModelConfig

TASK = Task("Write the first word.", [("cat sat on the mat", "cat")], name="first")


def step(main: MainModel) -> None:
    """One of an optimizer that writes past torch's count of changes, as some do."""
    for parameter in main.model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)


def trained(base: Path) -> HartModel:
    model = ModelConfig(base=str(base), decoder_layers=2, train_main=True, peft=[{"kind": "prefix", "length": 4}])
    return HartModel.from_config(model, DataConfig(max_target_length=8))


def test_the_fingerprint_follows_the_weights(tiny_base_dir: Path) -> None:
    main = MainModel.from_pretrained(str(tiny_base_dir))
    first = main.fingerprint
    assert main.fingerprint == first == fingerprint(main.model, main.tokenizer)
    before = copy.deepcopy(main.model.state_dict())
    step(main)
    second = main.fingerprint
    assert second != first and difference(first, second) == "weights differ"
    main.model.load_state_dict(before)
    assert main.fingerprint == first
    main.freeze()
    with torch.no_grad():
        main.model.lm_head.weight.mul_(1.5)
    assert main.fingerprint not in (first, second), "also of a frozen model"


def test_what_a_trained_model_adapts_is_for_its_own_weights(tiny_base_dir: Path, tmp_path: Path) -> None:
    system = trained(tiny_base_dir)
    before = system.adapt(TASK)
    step(system.main)
    after = system.adapt(TASK)
    with pytest.raises(HartError, match="belongs to the base .* whose weights differ"):
        system.generate("the cat", before)
    answers = system.generate("the cat", after)
    untrained = MainModel.from_pretrained(str(tiny_base_dir))
    with pytest.raises(HartError, match="belongs to the base .* whose weights differ"):
        untrained.generate(["the cat"], after)
    system.save_pretrained(tmp_path / "saved")
    saved = HartModel.from_pretrained(tmp_path / "saved")
    assert saved.main.fingerprint == after.base_fingerprint
    assert saved.generate("the cat", after) == answers
    # What it was trained from is kept beside it.
    assert saved._origin["base_fingerprint"] == untrained.fingerprint


def another_tokenizer(base: Path, folder: Path) -> Path:
    """The same weights, and a vocabulary in which two pieces have changed places."""
    shutil.copytree(base, folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    pieces = content["model"]["vocab"]
    one, other = "a", "b"
    pieces[one], pieces[other] = pieces[other], pieces[one]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder


def test_the_tokenizer_is_part_of_it(tiny_base_dir: Path, tmp_path: Path) -> None:
    system = HartModel.from_config(ModelConfig(base=str(tiny_base_dir), decoder_layers=2), DataConfig())
    system.save_pretrained(tmp_path / "saved")
    other = MainModel.from_pretrained(str(another_tokenizer(tiny_base_dir, tmp_path / "other")))
    assert difference(other.fingerprint, system.main.fingerprint) == "tokenizer differs"
    assert difference("weights-tokenizer", "others-tokenizer") == "weights differ"
    with pytest.raises(HartError, match="whose tokenizer differs from"):
        other.generate(["the cat"], system.adapt(TASK))
    with pytest.raises(HartError, match="whose tokenizer differs from .*; give the right one as base"):
        HartModel.from_pretrained(tmp_path / "saved", base=str(tmp_path / "other"))


def test_a_tokenizer_is_known_by_what_it_does(tiny_base_dir: Path, tmp_path: Path) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny_base_dir)
    digest = tokenizer_digest(tokenizer)
    tokenizer(["a", "b c"], padding=True, truncation=True, max_length=2)  # leaves settings in the file's object
    assert tokenizer_digest(tokenizer) == digest
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer_digest(PreTrainedTokenizerFast.from_pretrained(tmp_path)) == digest
    tokenizer.add_tokens(["another"])
    assert tokenizer_digest(tokenizer) != digest


def test_the_digest_of_what_adapts(tiny_base_dir: Path) -> None:
    system = trained(tiny_base_dir)
    digest = peft_digest(system.hypernetwork, {"fusion": True})
    assert digest == peft_digest(system.hypernetwork, {"fusion": True})
    assert digest != peft_digest(system.hypernetwork, {"fusion": False})
    with torch.no_grad():
        next(system.hypernetwork.parameters())[0, 0] += 1
    assert digest != peft_digest(system.hypernetwork, {"fusion": True})
    assert peft_digest(None, 1) != peft_digest(None, 2)


def test_trace_sees_what_versions_do_not() -> None:
    weights = torch.nn.Parameter(torch.randn(100, 7))
    before = trace([weights])
    assert trace([weights]) == before
    weights.data.add_(1e-3)
    assert trace([weights]) != before


def test_the_bundled_model_names_its_base_in_full() -> None:
    model = HartModel.from_pretrained("mini")
    assert model._origin["base_fingerprint"] == model.main.fingerprint
