"""What a configuration costs before it is run: parameters, tokens, arithmetic and memory.

Parameters are exact: the networks are built on the meta device, without data. Arithmetic and memory are formulas over
the sizes of T5, stated below; lengths are taken at the configuration's limits, so both are upper ends.

Arithmetic. A matrix product of a token with a map of n weights costs 2n operations; attention of a token to k others
costs 4·k·inner per layer. The backward pass costs twice the forward pass where weights are trained, once where only
activations need gradient (a frozen main model behind generated parameters), nothing where neither does.

Memory of one device. Weights, gradients and optimizer states, each divided by the number of devices from the ZeRO
stage on that shards it (1: optimizer states, 2: gradients, 3: weights), DeepSpeed's float32 copy of the trained weights
(always divided) and its buffers, and the activations of one pass that wait for the backward pass. The latter are
counted per token and layer: inputs and outputs of norms, maps and attention, in 2 bytes with bf16, scores and weights
of self-attention (the position bias keeps the fused kernel away), and only the layers' inputs with gradient
checkpointing, plus one layer in full.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import T5Config

from hart.errors import HartError
from hart.hypernetwork.network import HyperNetwork
from hart.training.blueprint import Parts, build
from hart.training.config import RunConfig
from hart.training.zero import read_deepspeed

GIB = 2**30
OVERHEAD = 1.05
"""Of activations: what the formula leaves out, measured on ten mini and small configurations (docs/scaling.md)."""

LIVE = 1_000_000_000
"""Weights that DeepSpeed's stage 3 keeps whole at most (stage3_max_live_parameters), unless training.deepspeed says."""

BLOCKWISE = 1 + 1 / 256 * 4
"""Bytes of an 8-bit optimizer state per weight: one, and a float32 scale for each block of 256."""

BUCKET = 50_000_000
"""Elements that DeepSpeed gathers before it sends them, twice (reduce_bucket_size), unless training.deepspeed says."""


@dataclass(frozen=True)
class Estimate:
    """What one optimizer step of a configuration costs.

    Attributes:
        parameters: part → number of parameters.
        trained, frozen: their sums.
        tokens: who reads → tokens per optimizer step, at the configured limits.
        flops: operations of one optimizer step, over all devices.
        memory: part → GiB on one device.
        devices, zero_stage: what it was estimated for.
        advice: what would lower the memory, largest saving first: (what to set, GiB saved).
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
        """GiB on one device."""
        return sum(self.memory.values())

    def to_json(self) -> str:
        return json.dumps(asdict(self) | {"total_memory": self.total_memory}, indent=2)


def estimate(config: RunConfig, *, devices: int = 1, zero_stage: int = 0) -> Estimate:
    """The cost of one optimizer step.

    Args:
        devices: over which the batch is spread.
        zero_stage: 0 to 3, of DeepSpeed's ZeRO (3 also stands for FSDP's full sharding).

    Raises:
        HartError: a base of unknown sizes, parts that do not fit, or a batch that the devices cannot share.
    """
    if config.training.batch_size % devices:
        raise HartError(f"training.batch_size {config.training.batch_size} cannot be shared by {devices} devices")
    parts = build(config)
    parameters = _parameters(parts)
    main = sum(count for name, count in parameters.items() if name.startswith("main"))
    beside = sum(parameters.values()) - main
    trained = beside + (main if config.model.train_main else 0)
    tokens = _tokens(config)
    memory = _memory(config, parts, main, trained, devices, zero_stage)
    return Estimate(
        parameters=parameters,
        trained=trained,
        frozen=sum(parameters.values()) - trained,
        tokens=tokens,
        flops=_flops(config, parts, tokens),
        memory=memory,
        devices=devices,
        zero_stage=zero_stage,
    )


def with_advice(config: RunConfig, found: Estimate) -> Estimate:
    """`found` with the settings that would lower its memory, each on its own, largest saving first."""
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
    if training.optimizer == "adamw" and not training.fsdp:
        option("training.optimizer: adamw_8bit", training={"optimizer": "adamw_8bit"})
    if not training.bf16:
        option("training.bf16: true", training={"bf16": True})
    if model.dtype == "float32" and not model.train_main:
        option("model.dtype: bfloat16", model={"dtype": "bfloat16"})
    if found.devices > 1:
        for stage in range(found.zero_stage + 1, 4):
            option(f"ZeRO stage {stage} (configs/deepspeed/zero{stage}.json)", zero=stage)
    savings = {
        text: found.total_memory - estimate(changed, devices=devices, zero_stage=zero).total_memory
        for text, (changed, devices, zero) in options.items()
    }
    useful = sorted(((text, saved) for text, saved in savings.items() if saved > 0), key=lambda item: -item[1])
    return dataclasses.replace(found, advice=tuple(useful))


def _parameters(parts: Parts) -> dict[str, int]:
    shared = parts.main.get_input_embeddings().weight.numel()
    encoder = sum(p.numel() for p in parts.main.encoder.parameters()) - shared
    decoder = sum(p.numel() for p in parts.main.decoder.parameters()) - shared
    counts = {
        "main.embedding": shared + parts.untied_head,
        "main.encoder": encoder,
        "main.decoder": decoder,
    }
    if isinstance(parts.peft_source, HyperNetwork):
        counts |= {f"hypernetwork.{name}": n for name, n in parts.peft_source.count_parameters().items()}
    elif parts.peft_source is not None:
        counts["learned"] = sum(p.numel() for p in parts.peft_source.parameters())
    return {name: count for name, count in counts.items() if count}


def _tokens(config: RunConfig) -> dict[str, int]:
    data, training = config.data, config.training
    query = data.max_demonstrations_length if data.demonstrations_to == "main" else data.max_query_length
    tokens = {"main encoder": training.batch_size * query, "main decoder": training.batch_size * data.max_target_length}
    if config.model.weights == "generated":
        passes = training.batch_size // training.queries_per_task
        tokens["hypernetwork"] = passes * data.max_demonstrations_length
    return tokens


def _flops(config: RunConfig, parts: Parts, tokens: dict[str, int]) -> float:
    t5, data = parts.main.config, config.data
    inner = t5.num_heads * t5.d_kv
    passes = config.training.batch_size // config.training.queries_per_task
    query = tokens["main encoder"] // config.training.batch_size
    target, read = data.max_target_length, data.max_demonstrations_length
    generated = config.model.weights == "generated"
    seen = query + (read if config.model.fusion and generated else 0)
    layer = 2 * (4 * t5.d_model * inner + _ff_maps(t5) * t5.d_model * t5.d_ff)
    layers_down = t5.num_decoder_layers or t5.num_layers

    encoder = tokens["main encoder"] * t5.num_layers * (layer + 4 * query * inner)
    cross = 2 * 2 * t5.d_model * inner
    decoder = tokens["main decoder"] * layers_down * (layer + cross + 4 * (target + seen) * inner)
    decoder += config.training.batch_size * seen * layers_down * cross
    logits = tokens["main decoder"] * 2 * t5.d_model * t5.vocab_size
    trained = config.model.train_main
    # Without blocks in the encoder, no gradient has to go through a frozen one.
    back_encoder = 2 if trained else 1 if config.model.peft else 0
    total: float = encoder * (1 + back_encoder) + (decoder + logits) * (3 if trained else 2)
    if isinstance(parts.peft_source, HyperNetwork):
        reading: float = tokens["hypernetwork"] * t5.num_layers * (layer + 4 * read * inner)
        steps = 0.0
        if parts.peft_source.decoder is not None and parts.peft_source.scheme is not None:
            vectors = parts.peft_source.scheme.positions
            per_vector = layer + cross + 4 * (vectors + read) * inner
            steps = passes * config.model.decoder_layers * (vectors * per_vector + read * cross)
        heads = sum(_head_flops(head) for head in parts.peft_source.heads.heads()) * passes
        total += 3 * (reading + steps + heads)
    if config.model.gradient_checkpointing:
        total += encoder + decoder
    return float(total)


def _head_flops(head: Any) -> float:
    d_model, block = head.first.in_features, head.block
    return 2.0 * block.layers * (head.first.weight.numel() + block.rows * d_model * block.width)


def _ff_maps(t5: T5Config) -> int:
    return 3 if t5.is_gated_act else 2


def _trained_embeddings(config: RunConfig, parts: Parts) -> int:
    count = parts.main.get_input_embeddings().weight.numel() if config.model.train_main else 0
    if isinstance(parts.peft_source, HyperNetwork):
        count += parts.peft_source.count_parameters()["embedding"]
    return count


def zero_stage_of(config: RunConfig) -> int:
    """The stage that training.deepspeed or training.fsdp asks for; 0 without them."""
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

    # FSDP cannot divide 8-bit states, so it has none.
    state = 8.0 if training.optimizer == "adamw" or training.fsdp else 2 * BLOCKWISE
    main_bytes = 4 if model.train_main or model.dtype == "float32" else 2
    beside = trained - (main if model.train_main else 0)
    # DeepSpeed holds weights and gradients in bfloat16 where it computes so.
    trained_bytes = 2 if zero_stage and training.bf16 else 4
    if model.train_main:
        main_bytes = trained_bytes
    # States of embeddings stay in float32 (optimizer.py), but not in ZeRO's flat parts.
    embeddings = 0 if zero_stage else _trained_embeddings(config, parts)
    memory = {
        "weights, main model": main * main_bytes / shared_from(3),
        "weights, adapter": beside * trained_bytes / shared_from(3),
        "gradients": trained * trained_bytes / shared_from(2),
        "optimizer": (trained * state + embeddings * (8 - state)) / shared_from(1),
        "activations": _activations(config, parts, devices),
    }
    if zero_stage:
        memory["optimizer, float32 copy"] = trained * 4 / devices
        settings = _zero_settings(config)
        bucket = settings.get("reduce_bucket_size", BUCKET)
        memory["communication"] = 2 * min(bucket, trained) * trained_bytes
        if zero_stage == 3:
            live = min(1.0, settings.get("stage3_max_live_parameters", LIVE) / (main + beside))
            memory["weights, gathered"] = live * (main * main_bytes + beside * trained_bytes)
    return {name: size / GIB for name, size in memory.items() if size}


def _activations(config: RunConfig, parts: Parts, devices: int) -> float:
    """Bytes that one pass keeps for its backward pass, at the configured lengths."""
    model, training, data, t5 = config.model, config.training, config.data, parts.main.config
    queries = training.micro_batch_size or training.batch_size // devices
    passes = math.ceil(queries / training.queries_per_task)
    size = 2 if training.bf16 else 4
    query = data.max_demonstrations_length if data.demonstrations_to == "main" else data.max_query_length
    read = data.max_demonstrations_length
    generated = isinstance(parts.peft_source, HyperNetwork)
    prefix = sum(kind.get("length", 32) for kind in model.peft if kind["kind"] == "prefix")
    fused = read if model.fusion and generated else 0
    checkpointed = model.gradient_checkpointing
    down = t5.num_decoder_layers or t5.num_layers
    trained = model.train_main
    # A frozen main model has none.
    dropout = trained and t5.dropout_rate > 0
    dropout_read = (t5.dropout_rate if model.dropout is None else model.dropout) > 0

    total = 0.0
    if trained or model.peft:
        total += _stack(t5, queries, query, query + prefix, t5.num_layers, size, checkpointed, dropout=dropout)
    total += _stack(
        t5, queries, data.max_target_length, data.max_target_length + prefix, down, size, checkpointed,
        memory=query + fused, dropout=dropout,
    )  # fmt: skip
    # Logits, their softmax in float32, and its gradient.
    total += queries * data.max_target_length * t5.vocab_size * (size + 8)
    if generated:
        total += _stack(t5, passes, read, read, t5.num_layers, size, checkpointed, dropout=dropout_read)
        assert isinstance(parts.peft_source, HyperNetwork)
        rows = sum(head.block.layers * head.block.rows for head in parts.peft_source.heads.heads())
        total += passes * rows * t5.d_model * 3 * size
        if parts.peft_source.decoder is not None:
            total += passes * model.decoder_layers * read * 2 * t5.num_heads * t5.d_kv * size
    return total * OVERHEAD


def _stack(
    t5: T5Config,
    batch: int,
    tokens: int,
    keys: int,
    layers: int,
    size: int,
    checkpointed: bool,
    *,
    memory: int = 0,
    dropout: bool = False,
) -> float:
    """Bytes of a stack's activations; `memory` is how many tokens a decoder's cross-attention sees."""
    inner = t5.num_heads * t5.d_kv
    # Per token: residual stream and norms (hidden and normed of each sub-layer), q, k, v, the attention's output,
    # and the feed-forward's inner activations (two maps, the activation and the product where gated).
    sublayers = 3 if memory else 2
    per_token: float = sublayers * 3 * t5.d_model + 4 * inner + (4 if t5.is_gated_act else 2) * t5.d_ff
    # With a position bias, self-attention keeps scores and weights; cross-attention has none and runs fused.
    attention: float = 2 * t5.num_heads * tokens * keys
    if dropout:
        # What it gives is kept beside what it was given, with a mask of a byte each.
        kept = 1 + 1 / size
        per_token += kept * (sublayers * t5.d_model + t5.d_ff)
        attention += kept * t5.num_heads * tokens * keys
    per_layer = batch * (tokens * per_token + attention) * size
    if memory:
        per_layer += batch * (2 * memory + 2 * tokens) * inner * size
    if not checkpointed:
        return layers * per_layer
    return per_layer + layers * batch * (tokens + memory) * t5.d_model * size
