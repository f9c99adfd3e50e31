"""Estimates: parameters against real networks, FLOPs and memory against consequences of the sizes."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from decoder_models import decoder_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoTokenizer, WhisperConfig

from hart.errors import HartError
from hart.model.bundled import resolve_base
from hart.model.hart_model import HartModel
from hart.training.blueprint import base_config, build
from hart.training.config import RunConfig, load
from hart.training.distillation import make_distillation
from hart.training.estimate import estimate, with_advice, zero_stage_of
from hart.training.losses import prediction_loss

Build = Callable[..., RunConfig]

CONFIGS = Path(__file__).resolve().parents[2] / "configs"

TUNED = {"weights": "none", "train_main": True, "fusion": False, "peft": []}
LEARNED = {"weights": "learned", "fusion": False}
SYSTEMS = {
    "hart": ({}, {}, 1.0),
    "hypertuning": ({"scheme": {"name": "shared"}}, {}, 0.0),
    "causal": ({"scheme": {"name": "causal", "rows": 4}}, {}, 0.0),
    "groups": ({}, {"demonstration_groups": 2}, 1.0),
    "fusion alone": ({"peft": []}, {}, 1.0),
    "tuned": (TUNED, {"demonstrations_to": "main"}, 0.0),
    "learned": (LEARNED, {"demonstrations_to": "main"}, 0.0),
}


@pytest.fixture(params=SYSTEMS)
def config(request: pytest.FixtureRequest, run_config: Build) -> RunConfig:
    model, data, alpha = SYSTEMS[request.param]
    return run_config(model=model, data=data, alpha=alpha)


PREFIX, LORA = {"kind": "prefix", "length": 4}, {"kind": "lora", "rank": 2, "targets": ["q", "v"]}
GENERATED = {"fusion": False, "peft": [PREFIX, LORA]}
DECODER_ONLY: dict[str, tuple[str, dict, dict]] = {
    "generated": ("llama", GENERATED, {}),
    "causal, wide heads": ("qwen3", {**GENERATED, "scheme": {"name": "causal", "rows": 2}}, {}),
    "an output matrix of its own": ("gpt_neox", {**GENERATED, "peft": [LORA]}, {}),
    "learned positions": ("gpt2", GENERATED, {}),
    "its own states": ("llama", {**GENERATED, "encoder": "main_model", "encoder_layers": [1, 2]}, {}),
    "a memory in front": ("qwen3", {**GENERATED, "memory_in_front": True, "head_bias": True}, {}),
    "both, of another width": (
        "gpt2",
        {"fusion": False, "peft": [], "encoder": "main_model", "hypernetwork_width": 64, "memory_in_front": True},
        {},
    ),
    "tuned": ("llama", TUNED, {"demonstrations_to": "main"}),
    "learned": ("gemma2", {**LEARNED, "peft": [LORA]}, {"demonstrations_to": "main"}),
}


@pytest.fixture(params=DECODER_ONLY)
def decoder_only(request: pytest.FixtureRequest, run_config: Build, tiny_base_dir: Path, tmp_path: Path) -> RunConfig:
    """A base whose width, vocabulary and tokenizer are not those of its hypernetwork."""
    architecture, model, data = DECODER_ONLY[request.param]
    tokenizer = AutoTokenizer.from_pretrained(resolve_base("mini-base"))
    decoder_model(architecture, len(tokenizer)).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    model = {**model, "base": str(tmp_path / "base")}
    if model.get("weights") is None and "encoder" not in model:
        model["hypernetwork_init"] = str(tiny_base_dir)
    return run_config(model=model, data=data, alpha=0.0)


def test_operations_are_close_to_those_that_torch_counts(config: RunConfig):
    check_operations(config, "hart_eager")


def test_operations_of_a_decoder_only_base(decoder_only: RunConfig):
    check_operations(decoder_only, "hart_decoder_eager")


def check_operations(config: RunConfig, attention: str) -> None:
    """FlopCounterMode counts matrix products only; gradients that our formula leaves out are a few per cent."""
    system = HartModel.from_config(config.model, config.data).train()
    system.main.model.set_attn_implementation(attention)
    # Fused kernels are not counted.
    if system.hypernetwork is not None and system.hypernetwork.config.has_own_encoder:
        system.hypernetwork.encoder.config._attn_implementation = "eager"
    batch, data = config.training.batch_size, config.data
    query = data.max_demonstrations_length if data.demonstrations_to == "main" else data.max_query_length
    inputs = {
        "query_ids": torch.ones(batch, query, dtype=torch.long),
        "query_mask": torch.ones(batch, query, dtype=torch.long),
        "labels": torch.ones(batch, data.max_target_length, dtype=torch.long),
    }
    if config.model.weights == "generated":
        groups = (data.demonstration_groups,) if data.demonstration_groups > 1 else ()
        inputs["demo_ids"] = torch.ones(batch, *groups, data.max_demonstrations_length, dtype=torch.long)
        inputs["demo_mask"] = inputs["demo_ids"]
    with FlopCounterMode(display=False) as counter:
        prediction_loss(system(**inputs).logits, inputs["labels"])[0].backward()
    assert estimate(config).flops == pytest.approx(counter.get_total_flops(), rel=0.05)


@pytest.mark.parametrize("teacher", ["base", "folder"])
def test_a_teacher_is_counted(teacher: str, run_config: Build, tiny_base_dir: Path, tmp_path: Path) -> None:
    """Its forward pass by torch's count; its weights only where they are not the base's."""
    tuned = run_config(model=TUNED, data={"demonstrations_to": "main"}, alpha=0.0)
    HartModel.from_config(tuned.model, tuned.data).save_pretrained(tmp_path / "tuned")
    name = teacher if teacher == "base" else str(tmp_path / "tuned")
    plain = run_config(alpha=0.0)
    config = plain.changed(distillation={"teacher": name})
    system = HartModel.from_config(config.model, config.data)
    system.main.model.set_attn_implementation("eager")
    taught = make_distillation(config, system)
    assert taught is not None
    taught._teacher.main.model.set_attn_implementation("hart_eager")
    batch, data = config.training.batch_size, config.data
    ids = torch.ones(batch, data.max_demonstrations_length, dtype=torch.long)
    labels = torch.ones(batch, data.max_target_length, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        taught.lesson({"teacher_ids": ids, "teacher_mask": ids, "labels": labels})
    with_teacher, without = estimate(config), estimate(plain)
    assert with_teacher.flops - without.flops == pytest.approx(counter.get_total_flops(), rel=0.05)
    main = sum(p.numel() for p in system.main.model.parameters())
    own = main if teacher == "folder" else 0
    assert with_teacher.frozen - without.frozen == with_teacher.parameters.get("teacher", 0) == own
    assert with_teacher.trained == without.trained
    assert with_teacher.memory.get("weights, teacher", 0) == pytest.approx(own * 4 / 2**30)
    assert with_teacher.memory["activations"] > without.memory["activations"]


def test_parameters_are_those_of_the_real_networks(config: RunConfig):
    check_parameters(config)


def test_parameters_of_a_decoder_only_base(decoder_only: RunConfig):
    check_parameters(decoder_only)


def check_parameters(config: RunConfig) -> None:
    system = HartModel.from_config(config.model, config.data)
    found = estimate(config)
    assert found.trained == sum(p.numel() for p in system.parameters() if p.requires_grad)
    assert found.frozen + found.trained == sum(p.numel() for p in system.parameters())


def test_memory_follows_the_settings(run_config: Build):
    config = run_config(batch_size=32, optimizer="adamw")
    whole = estimate(config)
    assert whole.memory["gradients"] == pytest.approx(whole.trained * 4 / 2**30)
    assert whole.memory["optimizer"] == pytest.approx(whole.trained * 8 / 2**30)

    def changed(**training: object) -> float:
        return estimate(config.changed(training=training)).memory["activations"]

    assert changed(micro_batch_size=8) == pytest.approx(whole.memory["activations"] / 4)
    assert changed(bf16=True) < whole.memory["activations"]
    checkpointed = estimate(config.changed(model={"gradient_checkpointing": True}))
    assert checkpointed.memory["activations"] < whole.memory["activations"]
    shared = [estimate(config, devices=4, zero_stage=stage).memory for stage in range(4)]
    for part, stage in (("optimizer", 1), ("gradients", 2), ("weights, adapter", 3), ("weights, main model", 3)):
        assert shared[stage][part] == pytest.approx(shared[stage - 1][part] / 4)


def test_advice_names_settings_and_what_they_save(run_config: Build):
    config = run_config(batch_size=32, optimizer="adamw")
    found = with_advice(config, estimate(config, devices=2))
    texts = dict(found.advice)
    assert {"training.micro_batch_size: 8", "model.gradient_checkpointing: true", "training.bf16: true"} <= texts.keys()
    assert "training.optimizer: adamw_8bit" in texts
    assert list(texts.values()) == sorted(texts.values(), reverse=True) and min(texts.values()) > 0


def test_a_large_configuration_is_told_about_zero():
    config = load(CONFIGS / "t5-xl" / "hart_sni.yaml", ["--training.optimizer", "adamw"])
    savings = dict(with_advice(config, estimate(config, devices=8)).advice)
    stages = [savings[f"ZeRO stage {n} (configs/deepspeed/zero{n}.json)"] for n in (1, 2, 3)]
    assert stages == sorted(stages) and stages[0] > 0
    small = estimate(config, devices=8, zero_stage=2).memory
    assert small["weights, adapter"] == pytest.approx(estimate(config).memory["weights, adapter"] / 2), "bfloat16"
    assert small["optimizer, float32 copy"] == pytest.approx(estimate(config).trained * 4 / 8 / 2**30)


def test_the_stage_is_that_of_the_configuration(run_config: Build, tmp_path: Path):
    assert zero_stage_of(run_config()) == 0
    assert zero_stage_of(run_config(fsdp=True)) == 3
    for stage in (1, 2, 3):
        config = run_config(deepspeed=str(CONFIGS / "deepspeed" / f"zero{stage}.json"))
        assert zero_stage_of(config) == stage
    small = tmp_path / "zero.json"
    small.write_text(json.dumps({"zero_optimization": {"stage": 2, "reduce_bucket_size": 10}}))
    found = estimate(run_config(deepspeed=str(small)), devices=2, zero_stage=2)
    assert found.memory["communication"] == pytest.approx(2 * 10 * 4 / 2**30)


def test_mistakes(run_config: Build, tmp_path):
    with pytest.raises(HartError, match="distillation.teacher: .*no-such: its sizes are unknown"):
        estimate(run_config(alpha=0.0).changed(distillation={"teacher": str(tmp_path / "no-such")}))
    with pytest.raises(HartError, match="nobody/t5: its sizes are unknown"):
        base_config("nobody/t5")
    with pytest.raises(HartError, match="is not divisible by 3 devices"):
        estimate(run_config(batch_size=8), devices=3)
    with pytest.raises(HartError, match="model.decoder_layers is 9"):
        estimate(run_config(model={"decoder_layers": 9}))
    decoder_only = {"base": "Qwen/Qwen3-0.6B-Base", "fusion": False, "hypernetwork_init": "google/t5-v1_1-small"}
    for changed, told in (
        ({"hypernetwork_init": None}, "hypernetwork_init: must name a T5 checkpoint"),
        ({"hypernetwork_init": "Qwen/Qwen3-0.6B"}, "hypernetwork_init: .* is of the architecture qwen3"),
        ({"fusion": True}, "model.fusion: Qwen/Qwen3-0.6B-Base is decoder-only"),
        ({"decoder_layers": 9}, "model.decoder_layers is 9; google/t5-v1_1-small has fewer"),
    ):
        with pytest.raises(HartError, match=told):
            estimate(run_config(model={**decoder_only, **changed}))
    WhisperConfig().save_pretrained(tmp_path / "speech")
    with pytest.raises(HartError, match="speech: main models of the architecture 'whisper' have no row"):
        base_config(str(tmp_path / "speech"))
    # A scheme without a decoder does not ask for its layers.
    assert estimate(run_config(model={"decoder_layers": 9, "scheme": {"name": "component"}})).trained


def test_advice_can_be_followed() -> None:
    """Nine queries have no half that divides them; FSDP has no 8-bit states to advise."""
    config = load(CONFIGS / "mini" / "hart_procedural.yaml")
    odd = config.changed(training={"batch_size": 9, "queries_per_task": 1, "micro_batch_size": None})
    assert not any("micro_batch_size" in text for text, _ in with_advice(odd, estimate(odd)).advice)
    plain, eight = (
        config.changed(training={"fsdp": True, "optimizer": name, "muon_rate": None})
        for name in ("adamw", "adamw_8bit")
    )
    found = [estimate(each, devices=2, zero_stage=3) for each in (plain, eight)]
    assert found[0].memory["optimizer"] == found[1].memory["optimizer"]
    assert not any("adamw_8bit" in text for text, _ in with_advice(plain, found[0]).advice)
    # Muon's rate goes with it, and it needs each matrix whole.
    large = load(CONFIGS / "t5-large" / "hart_causal_sni.yaml")
    adamw = large.changed(training={"optimizer": "adamw"})
    assert any("ZeRO" in text for text, _ in with_advice(adamw, estimate(adamw, devices=2)).advice)
    muon = large.changed(training={"optimizer": "muon", "muon_rate": 1e-3})
    told = [text for text, _ in with_advice(muon, estimate(muon, devices=2)).advice]
    assert "training.optimizer: adamw_8bit, training.muon_rate: null" in told
    assert not any("ZeRO" in text for text in told)


@pytest.mark.parametrize(
    ("base", "parameters", "layers", "hidden", "queries", "keys"),
    [
        ("Qwen/Qwen3-0.6B-Base", 596_049_920, 28, 1024, 2048, 1024),
        ("meta-llama/Llama-3.2-1B", 1_235_814_400, 16, 2048, 2048, 512),
        ("HuggingFaceTB/SmolLM2-135M", 134_515_008, 30, 576, 576, 192),
    ],
)
def test_known_decoder_only_bases_have_their_published_sizes(
    base: str, parameters: int, layers: int, hidden: int, queries: int, keys: int
) -> None:
    model = {"base": base, "weights": "learned", "fusion": False, "peft": [LORA]}
    found = estimate(RunConfig().changed(model=model, training={"alpha": 0.0}, data={"demonstrations_to": "main"}))
    assert found.frozen == parameters
    assert found.trained == layers * 2 * (hidden + queries + hidden + keys), "heads of keys and values are shared"


def test_activations_of_a_decoder_only_base() -> None:
    """The fused kernel keeps no scores; one sequence has query and answer, so a longer answer costs the same."""
    model = {"base": "Qwen/Qwen3-0.6B", "hypernetwork_init": "google/t5-v1_1-small", **GENERATED}
    config = RunConfig().changed(model=model, training={"alpha": 0.0})
    eager = config.changed(model={"attention": "eager"})
    b, t = 256, 384 + 128 - 1
    scores = 28 * b * 2 * 16 * t * (t + 4) * 4 * 1.05
    more = estimate(eager).memory["activations"] - estimate(config).memory["activations"]
    assert more == pytest.approx(scores / 2**30)
    assert estimate(config).tokens == {"main model": b * t, "hypernetwork": b * 1024}
    small = config.changed(model={"gradient_checkpointing": True})
    assert estimate(small).memory["activations"] < estimate(config).memory["activations"]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_hypernetworks_decoder_is_counted(checkpointing: bool) -> None:
    """Against what autograd saves of it, on the meta device: a causal pass with several rows keeps most."""
    config = load(CONFIGS / "t5-small" / "hart_causal_sni.yaml", [f"--model.gradient_checkpointing={checkpointing}"])
    network = build(config).peft_source.to(torch.bfloat16).train()
    network.decoder.gradient_checkpointing = checkpointing
    micro, read = config.training.micro_batch_size or config.training.batch_size, config.data.max_demonstrations_length
    passes = -(-micro // config.training.queries_per_task)
    memory = torch.empty(passes, read, network.config.t5["d_model"], device="meta", dtype=torch.bfloat16)
    saved: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)  # or its number would be another's
        saved[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    kept: list[torch.Tensor] = []
    mask = torch.ones(passes, read, device="meta", dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        network.generate_blocks(memory.requires_grad_(), mask)
    weights = {each.untyped_storage()._cdata for each in network.parameters()}
    own = sum(size for place, size in saved.items() if place not in weights) / 2**30
    shared = config.changed(model={"scheme": {"name": "shared"}})
    counted = estimate(config).memory["activations"] - estimate(shared).memory["activations"]
    assert 0.8 * own < counted < 1.5 * own, (own, counted)
