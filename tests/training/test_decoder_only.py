"""A decoder-only base in a run from a YAML file: training, resume, evaluation, adapting, answers, export."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from decoder_models import decoder_model
from safetensors.torch import load_file
from transformers import AutoTokenizer

from hart import Adaptation, HartError, HartModel, Task
from hart.cli import main as cli
from hart.model.answering import encode_queries
from hart.model.bundled import resolve_base
from hart.model.decoder_only import DecoderOnly
from hart.model.export import merge
from hart.training.config import RunConfig, load
from hart.training.estimate import estimate
from hart.training.run_folder import read_metrics
from hart.training.train import train

STEPS = 4
TASK = Task("Write the words in reverse order.", [("one two", "two one"), ("the cat", "cat the")], name="reverse")


@pytest.fixture(scope="module")
def llama_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with the bundled tokenizer."""
    folder = tmp_path_factory.mktemp("llama")
    tokenizer = AutoTokenizer.from_pretrained(resolve_base("mini-base"))
    decoder_model("llama", len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def configured(llama_dir: Path, tmp_path: Path) -> Callable[..., RunConfig]:
    """A configuration of the bundled tasks from a YAML file, of which sections may be changed."""

    def build(name: str = "run", **sections: dict[str, Any]) -> RunConfig:
        model = {"base": str(llama_dir), "hypernetwork_init": "mini-base", "decoder_layers": 1, "fusion": False}
        peft = [{"kind": "prefix", "length": 2}, {"kind": "lora", "rank": 2, "targets": ["q", "v", "wo"]}]
        lengths = {"max_demonstrations_length": 128, "max_query_length": 32, "max_target_length": 16}
        data = {"collection": "procedural", "max_train_instances": 4, "demonstrations": "sampled", **lengths}
        training = {
            "output_dir": str(tmp_path / name),
            "max_steps": STEPS,
            "save_every": 2,
            "batch_size": 4,
            "queries_per_task": 2,
            "learning_rate": 1e-3,
            "optimizer": "adamw",
            "log_every": 1,
            "alpha": 0.5,
            "trackers": [],
        }
        content: dict[str, dict[str, Any]] = {"model": {**model, "peft": peft}, "data": data, "training": training}
        for section, fields in sections.items():
            content[section] |= fields
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
        return load(tmp_path / f"{name}.yaml")

    return build


# What encodes the task, what stands in front of queries, and what rows have beside what is generated.
VARIANTS: dict[str, dict[str, Any]] = {
    "t5": {},
    "memory in front": {"memory_in_front": True, "head_bias": True},
    "main model": {"encoder": "main_model", "hypernetwork_init": None, "memory_in_front": True},
    "two layers, narrow": {
        "encoder": "main_model",
        "hypernetwork_init": None,
        "encoder_layers": [1, 3],
        "hypernetwork_width": 16,
        "head_bias": True,
        "gradient_checkpointing": True,
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_its_resume_and_what_is_made_of_it(variant: str, configured, tmp_path: Path, capsys) -> None:
    settings = VARIANTS[variant]
    final = train(configured(model=settings), quiet=True)
    rows = read_metrics(final.parent / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4] and all(row["prediction_loss"] > 0 for row in rows)
    assert rows[-1]["consistency_loss"] > 0
    # Interrupted behind its first checkpoint, it ends in the same weights.
    again = shutil.copytree(final.parent, tmp_path / "again")
    shutil.rmtree(again / "final")
    shutil.rmtree(again / "checkpoints" / f"checkpoint-{STEPS}")
    resumed = train(configured("again", model=settings), quiet=True)
    expected, found = load_file(final / "model.safetensors"), load_file(resumed / "model.safetensors")
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], values) for name, values in expected.items())

    model = HartModel.from_pretrained(final)
    read_by_main = settings.get("encoder") == "main_model"
    assert (model.reader is model.main.tokenizer) == read_by_main == (not (final / "tokenizer").exists())
    assert not any(name.startswith("encoder.") for name in found) or not read_by_main
    adaptation = model.adapt(TASK)
    assert (adaptation.memory is not None) == settings.get("memory_in_front", False)
    answers = model.generate(["one three", "cat"], adaptation, max_new_tokens=4)
    scores = model.score("one three", ["three one", "cat"], adaptation)
    assert len(answers) == 2 and len(scores) == 2 and all(score < 0 for score in scores)

    task = tmp_path / "reverse.json"
    TASK.save(task)
    status = cli(["adapt", str(final), "--task", str(task), "--output-dir", str(tmp_path / "a")])
    assert status == 0
    saved = Adaptation.from_pretrained(tmp_path / "a")
    assert all(torch.equal(saved.blocks[name], values) for name, values in adaptation.blocks.items())
    assert adaptation.memory is None or torch.equal(saved.memory, adaptation.memory)  # type: ignore[arg-type]
    capsys.readouterr()
    assert cli(["predict", str(tmp_path / "a"), "--input", "one three", "--max-new-tokens", "4"]) == 0
    assert capsys.readouterr().out.strip() == answers[0].strip()
    output = tmp_path / "results.json"
    words = ["--data", "procedural", "--split", "test", "--max-instances", "2"]
    assert cli(["evaluate", str(final), *words, "--output", str(output)]) == 0
    assert json.loads(output.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("model", "data", "told"),
    [
        (
            {"encoder": "main_model", "hypernetwork_init": None},
            {"max_demonstrations_length": 513},
            "data.max_demonstrations_length is 513, and .*, which encodes tasks, has 512 positions; lower it",
        ),
        (
            {},
            {"max_query_length": 496},
            "data.max_query_length: an input and its answer behind a prefix of 2 take up to 513 positions, and .* 512",
        ),
        (
            {"weights": "learned", "hypernetwork_init": None},
            {"demonstrations_to": "main", "max_demonstrations_length": 500},
            "data.max_demonstrations_length: an input and its answer behind a prefix of 2 take up to 517 positions",
        ),
    ],
    ids=["encodes", "queries", "in context"],
)
def test_lengths_beyond_learned_positions_are_refused_before_the_run(
    configured, tmp_path: Path, model: dict[str, Any], data: dict[str, Any], told: str
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(resolve_base("mini-base"))
    for saved in (decoder_model("gpt2", len(tokenizer)), tokenizer):
        saved.save_pretrained(tmp_path / "gpt2")
    training = {"alpha": 0.0, "queries_per_task": 1}
    config = configured(model={"base": str(tmp_path / "gpt2"), **model}, data=data, training=training)
    for refusing in (lambda: train(config, quiet=True), lambda: estimate(config)):
        with pytest.raises(HartError, match=told):
            refusing()
    assert not Path(config.training.output_dir).exists()


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ({"hypernetwork_init": None}, "hypernetwork_init: must name a T5 checkpoint"),
        ({"fusion": True}, "model.fusion: .* has no cross-attention .* set it to false .model.memory_in_front puts"),
        (
            {"encoder": "main_model", "hypernetwork_init": None, "encoder_layers": [4]},
            "model.encoder_layers: must be different layers from 1 to 3, the depth of the base",
        ),
        (
            {"tied_encoder": True, "train_main": True, "hypernetwork_init": None},
            "model.tied_encoder: a decoder-only base has no encoder to share; set it to false",
        ),
        ({"peft": [{"kind": "prefix", "cross": True}]}, "which a decoder-only base lacks"),
    ],
)
def test_what_does_not_go_with_it_is_one_line(configured, model: dict[str, Any], told: str) -> None:
    config = configured(model=model)
    with pytest.raises(HartError, match=told) as refusal:
        train(config, quiet=True)
    assert "\n" not in str(refusal.value) and not Path(config.training.output_dir).exists()


def test_pre_training_on_text_that_one_tokenizer_cuts(configured, tmp_path: Path) -> None:
    """The base's own, where it encodes; a T5 beside it has another. Fine-tuning starts from what was pre-trained."""
    (tmp_path / "text").mkdir()
    lines = (json.dumps({"text": f"w{i} the cat sat on the mat " * 8}) + "\n" for i in range(8))
    (tmp_path / "text" / "a.jsonl").write_text("".join(lines), encoding="utf-8")
    lengths = {"max_train_instances": 100, "demonstrations": "fixed"}
    text = {"collection": "four_segments", "dir": str(tmp_path / "text"), **lengths}
    training = {"queries_per_task": 1}
    with pytest.raises(HartError, match="one tokenizer; this base and hypernetwork have two"):
        train(configured("two", data=text, training=training), quiet=True)
    own = VARIANTS["main model"]
    first = train(configured("first", model=own, data=text, training=training), quiet=True)
    second = configured("tuned", model={**own, "init_from": str(first)}, training={"max_steps": 1})
    assert train(second, quiet=True).is_dir()
    other = configured("other", model={**own, "init_from": str(first), "encoder_layers": [1]})
    with pytest.raises(HartError, match=r"model.init_from: .* has encoder_layers \[2\], this run \[1\]"):
        train(other, quiet=True)
    wider = configured("wider", model={**own, "init_from": str(first), "hypernetwork_width": 48})
    with pytest.raises(HartError, match="model.init_from: .* has d_model 32, this run 48; they must be equal"):
        train(wider, quiet=True)


def test_what_is_generated_from_the_main_models_states_is_exported_whole(configured, tmp_path: Path) -> None:
    lora = {"peft": [{"kind": "lora", "rank": 2, "targets": ["q", "v", "wo"]}], **VARIANTS["two layers, narrow"]}
    model = HartModel.from_pretrained(train(configured(model=lora), quiet=True))
    adaptation = model.adapt(TASK)
    ids, mask = model.main.pad([[5, 6, 7, 8, 1], [9, 1]])
    labels = torch.tensor([[5, 6, 1], [7, 8, 1]])
    with torch.no_grad():
        expected = model.main(ids, mask, labels, adaptation.blocks, adaptation.kinds).logits
        bare = model.main(ids, mask, labels).logits
        merged = DecoderOnly(merge(adaptation, model.main), model.main.tokenizer, name="merged")
        torch.testing.assert_close(merged(ids, mask, labels).logits, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(bare, expected, atol=1e-4)
    fronted = {**lora, "memory_in_front": True}
    model = HartModel.from_pretrained(train(configured("fronted", model=fronted), quiet=True))
    with pytest.raises(HartError, match="would lose the memory: the main model no longer attends .* --lossy"):
        merge(model.adapt(TASK), model.main)


@pytest.mark.parametrize(
    "model",
    [
        {"weights": "learned", "hypernetwork_init": None},
        {"weights": "none", "train_main": True, "peft": [], "hypernetwork_init": None},
    ],
    ids=["learned", "fine-tuned"],
)
def test_systems_without_a_hypernetwork(configured, model: dict[str, Any]) -> None:
    config = configured(model=model, data={"demonstrations_to": "main"}, training={"alpha": 0.0, "queries_per_task": 1})
    loaded = HartModel.from_pretrained(train(config, quiet=True))
    assert len(loaded.generate(["one three"], loaded.adapt(TASK), max_new_tokens=3)) == 1


def test_a_chat_template_wraps_the_query(configured, llama_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(HartError, match="chat_template: the base's tokenizer has no chat template"):
        train(configured(data={"chat_template": True}), quiet=True)
    base = shutil.copytree(llama_dir, tmp_path / "chat")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = (
        "{% for m in messages %}the {{ m.content }} cat{% endfor %}{% if add_generation_prompt %} mat{% endif %}"
    )
    tokenizer.save_pretrained(base)
    final = train(configured("chat-run", model={"base": str(base)}, data={"chat_template": True}), quiet=True)
    model = HartModel.from_pretrained(final)
    assert model.input_format.chat_template
    read = encode_queries(model.main.tokenizer, ["one two"], (chat := model.adapt(TASK)), chat.input_format)[0]
    assert tokenizer.decode(read) == "the one two cat mat"
    model.adapt(TASK).save_pretrained(tmp_path / "a")
    assert Adaptation.from_pretrained(tmp_path / "a").input_format.chat_template
    # What is too long loses its end, and the template stays whole.
    cut = model.input_format.encode_query(tokenizer, "one two " * 40)
    assert len(cut) <= 32 and tokenizer.decode(cut).endswith("cat mat")
    around = len(model.input_format.encode_query(tokenizer, "one")) - 1
    with pytest.raises(HartError, match=f"adds {around} tokens to a message, and the limit is {around}"):
        replace(model.input_format, max_query_length=around).encode_query(tokenizer, "one two " * 40)
