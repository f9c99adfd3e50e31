"""Every system of the paper's tables: trained and frozen parts, and equal answers after saving."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hart.data.collate import Collator
from hart.data.collections import load_tasks
from hart.data.input_format import InputFormat
from hart.data.tasks import Task
from hart.errors import HartError
from hart.model.adaptation import Adaptation
from hart.model.hart_model import HartModel
from hart.model.main_model import MainModel
from hart.model.scoring import score_choices
from hart.runtime.sections import FieldError
from hart.training.config import RunConfig
from hart.training.losses import prediction_loss
from hart.training.train import train, training_examples

Build = Callable[..., RunConfig]

PREFIX, ADAPTER = {"kind": "prefix", "length": 4}, {"kind": "adapter", "bottleneck": 4}
LORA = {"kind": "lora", "rank": 2, "targets": ["q", "k", "v", "o"]}
LEARNED = {"weights": "learned", "fusion": False}
FINE_TUNED = {"weights": "none", "train_main": True, "fusion": False, "peft": []}
HINT = {
    "scheme": {"name": "component"},
    "peft": [PREFIX, ADAPTER],
    "train_main": True,
    "tied_encoder": True,
}

# name → (model fields, data fields, parts that train)
SYSTEMS: dict[str, tuple[dict[str, Any], dict[str, Any], set[str]]] = {
    "hart": ({}, {}, {"hypernetwork"}),
    "hart, top down": ({"scheme": {"name": "autoregressive", "order": "top_down"}}, {}, {"hypernetwork"}),
    "hart, random order": ({"scheme": {"name": "autoregressive", "order": "random"}}, {}, {"hypernetwork"}),
    "hart, last state only": ({"scheme": {"name": "autoregressive", "history": "last"}}, {}, {"hypernetwork"}),
    "hart, lora": ({"peft": [LORA]}, {}, {"hypernetwork"}),
    "hart, mixed": ({"peft": [PREFIX, LORA, ADAPTER, {"kind": "ia3"}]}, {}, {"hypernetwork"}),
    "hypertuning": ({"scheme": {"name": "shared"}}, {}, {"hypernetwork"}),
    "hypertuning-pt": ({"scheme": {"name": "shared"}, "fusion": False}, {}, {"hypernetwork"}),
    "bidirectional": ({"scheme": {"name": "bidirectional"}}, {}, {"hypernetwork"}),
    "fusion alone": ({"peft": []}, {}, {"hypernetwork"}),
    "hint": (HINT, {}, {"hypernetwork", "main"}),
    "ft-zero-shot": (FINE_TUNED, {"demonstrations_to": "nowhere"}, {"main"}),
    "ft-few-shot": (FINE_TUNED, {"demonstrations_to": "main"}, {"main"}),
    "tk-instruct": (FINE_TUNED, {"demonstrations_to": "main", "explanations": True}, {"main"}),
    "prefix-tuning": ({**LEARNED, "peft": [PREFIX]}, {"demonstrations_to": "main"}, {"learned"}),
    "lora": ({**LEARNED, "peft": [LORA]}, {"demonstrations_to": "main"}, {"learned"}),
}
QUERIES = ["the mat", "one two three one two three", "in order"]
TASKS = [
    Task("Write the words in reverse order.", [("one two", "two one", "backwards"), ("the cat", "cat the")], name="r"),
    Task("Write the first word.", [("cat sat on the mat", "cat")], name="first"),
    Task("Count.", [("a b c", "3"), ("a", "1"), ("left out", "2")], name="count"),
]


def settings(name: str) -> dict[str, Any]:
    model, data, trains = SYSTEMS[name]
    alpha = {} if "hypernetwork" in trains else {"alpha": 0.0}
    return {"model": {"decoder_layers": 2, "dropout": 0.0, **model}, "data": data, **alpha}


@pytest.fixture(params=SYSTEMS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def config(name: str, run_config: Build) -> RunConfig:
    return run_config(**settings(name))


def build(config: RunConfig) -> HartModel:
    return HartModel.from_config(config.model, config.data)


def stepped(system: HartModel, config: RunConfig, steps: int = 2) -> HartModel:
    """After some steps of AdamW, so that what starts at zero (LoRA's B) lets gradient through to the rest."""
    dataset = training_examples(config, load_tasks(config.data, "train"), system.main.tokenizer)
    batch = Collator(system.main.tokenizer.pad_token_id)([dataset[i] for i in range(8)])
    labels = {k: v for k, v in batch.items() if k not in ("slots", "task_index")}
    optimizer = torch.optim.AdamW([p for p in system.parameters() if p.requires_grad], lr=3e-3, weight_decay=0)
    system.train()
    for _ in range(steps):
        output = system(**labels)
        prediction_loss(output.logits, labels["labels"])[0].backward()
        optimizer.step()
        optimizer.zero_grad()
    return system.eval()


def tensors(system: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in system.named_parameters()}


def test_exactly_the_intended_tensors_change(name: str, config: RunConfig):
    system = build(config)
    before = tensors(system)
    after = tensors(stepped(system, config, steps=3))
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {key for key in before if key.split(".")[0] in SYSTEMS[name][2]}
    for part in SYSTEMS[name][2]:
        assert any(key.startswith(part + ".") for key in changed)


def test_saved_system_adapts_and_answers_identically(config: RunConfig, tmp_path: Path):
    system = stepped(build(config), config)
    system.save_pretrained(tmp_path / "model")
    loaded = HartModel.from_pretrained(tmp_path / "model")
    assert loaded.weights == system.weights and loaded.train_main == system.train_main
    expected = system.generate(QUERIES, system.adapt(TASKS), max_new_tokens=5)
    adaptation = loaded.adapt(TASKS)
    assert loaded.generate(QUERIES, adaptation, max_new_tokens=5) == expected
    # And again from files, without the hypernetwork.
    adaptation.save_pretrained(tmp_path / "adaptation")
    adaptation = Adaptation.from_pretrained(tmp_path / "adaptation")
    main = MainModel.from_pretrained(adaptation.base, dtype="float32")
    assert main.generate(QUERIES, adaptation, max_new_tokens=5) == expected
    # Saved once more, it is the same model.
    loaded.save_pretrained(tmp_path / "again")
    again = HartModel.from_pretrained(tmp_path / "again")
    assert again.generate(QUERIES, again.adapt(TASKS), max_new_tokens=5) == expected


def test_half_precision_follows_float32(config: RunConfig, tmp_path: Path):
    """Loaded in bfloat16, a saved system adapts and answers in it; float32 takes its adaptations, and the reverse."""
    stepped(build(config), config).save_pretrained(tmp_path / "model")
    system = HartModel.from_pretrained(tmp_path / "model")
    half = HartModel.from_pretrained(tmp_path / "model", dtype="bfloat16")
    networks = [network for network in (half.main, half.hypernetwork) if network is not None]
    assert {p.dtype for network in networks for p in network.parameters()} == {torch.bfloat16}
    whole, made = system.adapt(TASKS), half.adapt(TASKS)
    for name, rows in whole.blocks.items():
        # 8 significant bits, through six layers and as many steps.
        assert (made.blocks[name].float() - rows).norm() <= 0.03 * rows.norm(), name
    made.save_pretrained(tmp_path / "adaptation")
    made = Adaptation.from_pretrained(tmp_path / "adaptation")
    choices = [["the", "mat the", "in order"]] * 3
    expected = torch.tensor(score_choices(system.main, QUERIES, choices, whole))
    for main, adaptation in ((half.main, made), (half.main, whole), (system.main, made)):
        assert len(main.generate(QUERIES, adaptation, max_new_tokens=5)) == 3
        scores = torch.tensor(score_choices(main, QUERIES, choices, adaptation))
        # Sums of log-probabilities around −20. Without an adaptation they differ by 2 to 10, with another task's by 1.
        torch.testing.assert_close(scores, expected, rtol=0, atol=0.25)


def test_a_batch_that_mixes_tasks_is_answered_like_each_query_alone(config: RunConfig):
    system = stepped(build(config), config)
    mixed = system.adapt(TASKS)
    alone = [system.generate(q, system.adapt(t), max_new_tokens=5)[0] for q, t in zip(QUERIES, TASKS, strict=True)]
    assert system.generate(QUERIES, mixed, max_new_tokens=5) == alone
    assert system.generate(QUERIES, Adaptation.stack([mixed[i] for i in range(3)]), max_new_tokens=5) == alone
    assert system.score(QUERIES[0], ["the", "mat the"], mixed[0]) == pytest.approx(
        system.score(QUERIES[0], ["the", "mat the"], system.adapt(TASKS[0])), abs=1e-5
    )


@pytest.mark.parametrize("name", ["hint", "ft-few-shot", "lora"])
def test_trains_saves_and_goes_on_bit_for_bit(name: str, run_config: Build, monkeypatch: pytest.MonkeyPatch):
    whole = train(run_config("whole", **settings(name), num_threads=1), quiet=True)
    cut = run_config("cut", **settings(name), num_threads=1)
    final = train(cut, quiet=True)
    for folder in (final, final.parent / "checkpoints" / "checkpoint-4"):
        for path in sorted(folder.rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        folder.rmdir()
    resumed = train(cut, quiet=True)
    one, other = HartModel.from_pretrained(whole), HartModel.from_pretrained(resumed)
    for key, value in tensors(one).items():
        assert torch.equal(value, tensors(other)[key]), key


def test_tied_encoder_is_one_module(run_config: Build):
    system = build(run_config(**settings("hint"))).eval()
    assert system.hypernetwork is not None
    assert system.hypernetwork.encoder is system.main.model.encoder
    assert not any(key.startswith("hypernetwork.encoder") for key in system.state_dict())
    memory = system.adapt(TASKS[0]).memory
    assert memory is not None
    ids, mask = system.main.pad([[5, 6, 1]])
    plain = copy.deepcopy(system.main.model).get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(system.hypernetwork(ids, mask).memory, plain)


def test_main_model_reads_the_demonstrations(run_config: Build):
    system = build(run_config(**settings("tk-instruct")))
    adaptation = system.adapt(TASKS[0])
    assert adaptation.input_format.in_context and adaptation.input_format.explanations
    form = InputFormat(max_demonstrations_length=128, explanations=True)
    tokens = form.encode_in_context(system.main.tokenizer, TASKS[0], QUERIES[0])
    assert system.generate(QUERIES[0], adaptation, max_new_tokens=4) == system.main.generate([tokens], max_new_tokens=4)
    zero = build(run_config("zero", **settings("ft-zero-shot")))
    tokens = zero.input_format.encode_query(zero.main.tokenizer, QUERIES[0])
    assert not zero.adapt(TASKS[0]).input_format.in_context
    assert zero.generate(QUERIES[0], zero.adapt(TASKS[0]), max_new_tokens=4) == zero.main.generate(
        [tokens], max_new_tokens=4
    )


def test_fine_tuned_main_model_is_a_plain_checkpoint(run_config: Build, tmp_path: Path):
    config = run_config(**settings("ft-zero-shot"))
    system = stepped(build(config), config)
    system.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model" / "model.safetensors").exists()
    stock = MainModel.from_pretrained(str(tmp_path / "model" / "main"))
    assert stock.generate(QUERIES, max_new_tokens=5) == system.generate(QUERIES, system.adapt(TASKS), max_new_tokens=5)


def test_fine_tuning_starts_from_pre_training(run_config: Build, tmp_path: Path):
    config = run_config(**settings("hint"))
    system = stepped(build(config), config)
    system.save_pretrained(tmp_path / "pretrained")
    hint = settings("hint")
    hint["model"] = {**hint["model"], "init_from": str(tmp_path / "pretrained")}
    started = build(run_config("fine", **hint))
    for key, value in tensors(system).items():
        assert torch.equal(value, tensors(started)[key]), key
    # With the base it was made for, not the pre-trained copy.
    assert started._info()["base"] == system._info()["base"]


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ("hart", "scheme"),
        ("lora", "weights"),
        ("hypertuning-pt", None),
    ],
)
def test_start_from_another_make_is_refused(other: str, named: str | None, run_config: Build, tmp_path: Path):
    build(run_config(**settings("hypertuning"))).save_pretrained(tmp_path / "pretrained")
    changed = settings(other)
    changed["model"] = {**changed["model"], "init_from": str(tmp_path / "pretrained")}
    if named is None:  # fusion has no weights: HyperTuning may start from HyperTuning-PT and the other way round
        build(run_config("fine", **changed))
        return
    with pytest.raises(HartError, match=f"model.init_from: .* has {named}"):
        build(run_config("fine", **changed))


@pytest.mark.parametrize(
    ("model", "data", "field"),
    [
        ({"weights": "none", "fusion": False, "peft": []}, {"demonstrations_to": "main"}, "model.weights"),
        ({"weights": "none", "train_main": True, "peft": []}, {"demonstrations_to": "main"}, "model.fusion"),
        ({"weights": "none", "train_main": True, "fusion": False}, {"demonstrations_to": "main"}, "model.peft"),
        ({"weights": "learned", "fusion": False, "peft": []}, {"demonstrations_to": "main"}, "model.peft"),
        ({"weights": "learned", "fusion": False, "tied_encoder": True}, {}, "model.tied_encoder"),
        ({"tied_encoder": True}, {}, "model.tied_encoder"),
        ({"tied_encoder": True, "train_main": True, "hypernetwork_init": "x"}, {}, "model.hypernetwork_init"),
        ({"train_main": True, "dtype": "bfloat16"}, {}, "model.dtype"),
        ({}, {"demonstrations_to": "main"}, "data.demonstrations_to"),
        ({"weights": "learned", "fusion": False}, {}, "data.demonstrations_to"),
        ({"weights": "learned", "fusion": False}, {"demonstrations_to": "main"}, "training.alpha"),
    ],
)
def test_contradictory_fields_are_refused(model: dict, data: dict, field: str, run_config: Build):
    with pytest.raises(FieldError) as caught:
        run_config(model=model, data=data)
    assert caught.value.field == field


def test_a_memory_in_front_is_not_divided_by_fsdp(run_config: Build):
    model = {"fusion": False, "memory_in_front": True, "encoder": "main_model"}
    with pytest.raises(FieldError, match="training.deepspeed") as caught:
        run_config(model=model, fsdp=True)
    assert caught.value.field == "training.fsdp"


def test_pre_training_may_be_older_than_an_option_of_its_scheme(run_config: Build, tmp_path: Path):
    hart = settings("hart")
    build(run_config(**hart)).save_pretrained(tmp_path / "pretrained")
    config = tmp_path / "pretrained" / "config.json"
    content = json.loads(config.read_text())
    del content["scheme"]["feedback"], content["scheme"]["step_embeddings"]
    config.write_text(json.dumps(content))
    hart["model"] = {**hart["model"], "init_from": str(tmp_path / "pretrained")}
    build(run_config("fine", **hart))
    hart["model"]["scheme"] = {"name": "autoregressive", "feedback": "residual"}
    with pytest.raises(HartError, match="model.init_from: .* has scheme"):
        build(run_config("other", **hart))
