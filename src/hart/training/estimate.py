"""Estimates of the cost of a configuration: parameters, tokens, FLOPs and memory.

Parameters are exact: the networks are built on the meta device, without data. FLOPs and memory are formulas over the
sizes of the networks (`hart.training.arithmetic` and below) at the configuration's maximum lengths, so both are upper
estimates.

Memory of one device. Weights, gradients and optimizer states, each divided by the number of devices from the ZeRO
stage on that shards it (1: optimizer states, 2: gradients, 3: weights), DeepSpeed's float32 copy of the trained weights
(always divided) and its buffers, and the activations of one pass that wait for the backward pass.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hart.errors import HartError
from hart.hypernetwork.network import HyperNetwork
from hart.training.arithmetic import activations, operations, tokens_of
from hart.training.blueprint import Parts, build, with_teacher
from hart.training.config import RunConfig
from hart.training.optimizer import EIGHT_BIT, MUON, linear_weights
from hart.training.zero import read_deepspeed

GIB = 2**30
LIVE = 1_000_000_000
"""Most gathered weights in DeepSpeed's stage 3 (stage3_max_live_parameters), unless set in training.deepspeed."""

BLOCKWISE = 1 + 1 / 256 * 4
"""Bytes of an 8-bit optimizer state per weight: one, plus a float32 scale per block of 256."""

BUCKET = 50_000_000
"""Elements of each of DeepSpeed's two communication buckets (reduce_bucket_size), unless set in training.deepspeed."""


@dataclass(frozen=True)
class Estimate:
    """The cost of one optimizer step of a configuration.

    Attributes:
        parameters: part → number of parameters.
        trained, frozen: numbers of trained and of frozen parameters.
        tokens: network → tokens per optimizer step, at the configured limits.
        flops: FLOPs of one optimizer step, over all devices.
        memory: part → GiB on one device.
        devices, zero_stage: number of devices and ZeRO stage of the estimate.
        advice: settings that would lower the memory, largest saving first: (setting, GiB saved).
    """

    parameters: dict[str, int]
    trained: int
    frozen: int
    tokens: dict[str, int]
    flops: float
    memory: dict[str, float]
    devices: int
    zero_stage: int
    advice: tuple[tuple[str, float], ...] = ()

    @property
    def total_memory(self) -> float:
        """Total memory of one device in GiB."""
        return sum(self.memory.values())

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"total_memory": self.total_memory}


def estimate(config: RunConfig, *, devices: int = 1, zero_stage: int = 0) -> Estimate:
    """The cost of one optimizer step.

    Args:
        devices: number of devices that share the batch.
        zero_stage: stage of DeepSpeed's ZeRO, 0 to 3 (3 also for FSDP's full sharding).

    Raises:
        HartError: the sizes of the base are unknown, parts do not fit, or the devices cannot share the batch equally.
    """
    if config.training.batch_size % devices:
        raise HartError(
            f"training.batch_size: {config.training.batch_size} is not divisible by {devices} devices; change one"
        )
    parts = with_teacher(config, build(config))
    parameters = _parameters(parts)
    main = sum(count for name, count in parameters.items() if name.startswith("main"))
    beside = sum(count for name, count in parameters.items() if name != "teacher") - main
    trained = beside + (main if config.model.train_main else 0)
    memory = _memory(config, parts, main, trained, devices, zero_stage)
    if teacher := parameters.get("teacher"):
        memory["weights, teacher"] = teacher * (4 if config.model.dtype == "float32" else 2) / GIB  # never sharded
    return Estimate(
        parameters=parameters,
        trained=trained,
        frozen=sum(parameters.values()) - trained,
        tokens=tokens_of(config, parts),
        flops=operations(config, parts),
        memory=memory,
        devices=devices,
        zero_stage=zero_stage,
    )


def with_advice(config: RunConfig, found: Estimate, *, has_bfloat16: bool = True) -> Estimate:
    """The estimate with settings that would each lower its memory, largest saving first.

    Args:
        has_bfloat16: whether the devices compute in bfloat16.
    """
    model, training = config.model, config.training
    options: dict[str, tuple[RunConfig, int, int]] = {}

    def option(text: str, *, zero: int = found.zero_stage, **changes: Mapping[str, Any]) -> None:
        options[text] = config.changed(**changes), found.devices, zero

    micro = training.micro_batch_size or training.batch_size // found.devices
    smaller = micro // 2
    divides = smaller and training.batch_size % (smaller * found.devices) == 0
    if divides and smaller % training.queries_per_task == 0:
        option(f"training.micro_batch_size: {smaller}", training={"micro_batch_size": smaller})
    if not model.gradient_checkpointing:
        option("model.gradient_checkpointing: true", model={"gradient_checkpointing": True})
    if training.optimizer != EIGHT_BIT and not training.fsdp:
        without = "" if training.muon_rate is None else ", training.muon_rate: null"
        option(f"training.optimizer: adamw_8bit{without}", training={"optimizer": "adamw_8bit", "muon_rate": None})
    if has_bfloat16 and not training.bf16:
        option("training.bf16: true", training={"bf16": True})
    if has_bfloat16 and model.dtype == "float32" and not model.train_main:
        option("model.dtype: bfloat16", model={"dtype": "bfloat16"})
    if found.devices > 1 and training.optimizer != MUON:  # Muon needs unsharded matrices
        for stage in range(found.zero_stage + 1, 4):
            option(f"ZeRO stage {stage} (configs/deepspeed/zero{stage}.json)", zero=stage)
    savings = {
        text: found.total_memory - estimate(changed, devices=devices, zero_stage=zero).total_memory
        for text, (changed, devices, zero) in options.items()
    }
    useful = sorted(((text, saved) for text, saved in savings.items() if saved > 0), key=lambda item: -item[1])
    return dataclasses.replace(found, advice=tuple(useful))


def _parameters(parts: Parts) -> dict[str, int]:
    inputs: Any = parts.main.get_input_embeddings()
    shared = inputs.weight.numel()
    if parts.shape.has_encoder:
        stacks = {name: _count(getattr(parts.main, name)) - shared for name in ("encoder", "decoder")}
    else:
        outputs: Any = parts.main.get_output_embeddings()
        head = 0 if outputs.weight is inputs.weight else _count(outputs)
        stacks = {"decoder": _count(parts.main) - shared - head, "head": head}
    counts = {"main.embedding": shared + parts.untied_head} | {f"main.{name}": n for name, n in stacks.items()}
    if isinstance(parts.peft_source, HyperNetwork):
        counts |= {f"hypernetwork.{name}": n for name, n in parts.peft_source.count_parameters().items()}
    elif parts.peft_source is not None:
        counts["learned"] = _count(parts.peft_source)
    if parts.teacher is not None and parts.teacher is not parts.main:
        counts["teacher"] = _count(parts.teacher) + parts.teacher_head
    return {name: count for name, count in counts.items() if count}


def _trained_embeddings(config: RunConfig, parts: Parts) -> int:
    inputs: Any = parts.main.get_input_embeddings()
    count: int = inputs.weight.numel() if config.model.train_main else 0
    if isinstance(parts.peft_source, HyperNetwork):
        count += parts.peft_source.count_parameters()["embedding"]
    return count


def _trained_linear(config: RunConfig, parts: Parts) -> int:
    modules: list[Any] = [parts.main] if config.model.train_main else []
    if parts.peft_source is not None:
        modules.append(parts.peft_source)
    return sum(weight.numel() for module in modules for weight in linear_weights(module))


def _count(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def zero_stage_of(config: RunConfig) -> int:
    """The ZeRO stage of training.deepspeed, 3 for training.fsdp; 0 without them."""
    return 3 if config.training.fsdp else int(_zero_settings(config).get("stage", 0))


def _zero_settings(config: RunConfig) -> dict[str, Any]:
    path = config.training.deepspeed
    return read_deepspeed(Path(path)).get("zero_optimization", {}) if path is not None else {}


def _memory(
    config: RunConfig, parts: Parts, main: int, trained: int, devices: int, zero_stage: int
) -> dict[str, float]:
    training, model = config.training, config.model

    def shared_from(stage: int) -> int:
        return devices if zero_stage >= stage else 1

    # FSDP cannot shard 8-bit states, so it has none.
    state = 2 * BLOCKWISE if training.optimizer == EIGHT_BIT and not training.fsdp else 8.0
    main_bytes = 4 if model.train_main or model.dtype == "float32" else 2
    beside = trained - (main if model.train_main else 0)
    # With bf16, DeepSpeed holds weights and gradients in bfloat16.
    trained_bytes = 2 if zero_stage and training.bf16 else 4
    if model.train_main:
        main_bytes = trained_bytes
    # States of embeddings stay in float32 (optimizer.py), but not in ZeRO's flat parts.
    embeddings = 0 if zero_stage else _trained_embeddings(config, parts)
    # Muon only keeps a momentum of each linear map.
    momenta = _trained_linear(config, parts) if training.optimizer == MUON else 0
    memory = {
        "weights, main model": main * main_bytes / shared_from(3),
        "weights, adapter": beside * trained_bytes / shared_from(3),
        "gradients": trained * trained_bytes / shared_from(2),
        "optimizer": (trained * state + embeddings * (8 - state) - 4 * momenta) / shared_from(1),
        "activations": activations(config, parts, devices),
    }
    network = parts.peft_source
    if isinstance(network, HyperNetwork) and network.scheme is not None:
        # States of this step and the previous one for the consistency loss, in float32, even if it is only recorded.
        passes = training.batch_size // training.queries_per_task / devices
        memory["layer states"] = 2 * passes * network.scheme.positions * network.config.t5["d_model"] * 4
    if training.bf16 and not zero_stage:
        memory["weights, bfloat16 copy"] = trained * 2  # autocast's cache, during a pass
    if zero_stage:
        memory["optimizer, float32 copy"] = trained * 4 / devices
        settings = _zero_settings(config)
        bucket = settings.get("reduce_bucket_size", BUCKET)
        memory["communication"] = 2 * min(bucket, trained) * trained_bytes
        if zero_stage == 3:
            live = min(1.0, settings.get("stage3_max_live_parameters", LIVE) / (main + beside))
            memory["weights, gathered"] = live * (main * main_bytes + beside * trained_bytes)
    return {name: size / GIB for name, size in memory.items() if size}
