"""FLOPs of one optimizer step, and memory of the activations of a pass: formulas over the sizes of layers.

Operations. A matrix product of a token with a map of n weights costs 2n operations; attention of a token to k others
costs 4·k·inner per layer, causal or not. The backward pass costs twice the forward pass for trained weights and for
attention, which has two inputs; as much as the forward pass for the maps of a frozen main model after generated
parameters, where only activations need gradients; nothing where no gradient is needed.

Activations of one pass, per token and layer: inputs and outputs of norms, maps and attention, in 2 bytes with bf16;
scores and weights of self-attention without a fused kernel (a T5's position bias prevents it); with gradient
checkpointing only the layers' inputs, plus one full layer. In the hypernetwork's decoder, whose cross-attention also
keeps scores and weights, gradient checkpointing saves only scores and weights (`hart.hypernetwork.decoding`). Keys and
values that several heads share are repeated for each head before the kernel, so they take as much as the queries.
"""

import math
from dataclasses import dataclass
from typing import Any, Self

from transformers import T5Config

from hart.hypernetwork.decoding import MANY
from hart.hypernetwork.network import HyperNetwork
from hart.peft.architectures import architecture
from hart.peft.base import MainShape, build_kinds
from hart.peft.prefix import prefix_length
from hart.training.blueprint import Parts
from hart.training.config import RunConfig

OVERHEAD = 1.05
"""Factor for activations that the formula omits, measured on ten mini and small configurations (docs/scaling.md)."""


@dataclass(frozen=True)
class Layer:
    """The sizes of one layer of a stack.

    Attributes:
        inner, kv_inner: widths of queries, and of keys and values.
        scores_kept: whether self-attention keeps its scores and weights for the backward pass.
        dropout: dropout rate of the stack in training.
        experts: number of experts per token; 0 for a dense feed-forward.
    """

    d_model: int
    heads: int
    inner: int
    kv_inner: int
    d_ff: int
    gated: bool
    scores_kept: bool
    dropout: float
    experts: int = 0

    @classmethod
    def of_t5(cls, t5: T5Config) -> Self:
        inner = t5.num_heads * t5.d_kv
        return cls(t5.d_model, t5.num_heads, inner, inner, t5.d_ff, t5.is_gated_act, True, t5.dropout_rate)

    @classmethod
    def of_decoder_only(cls, config: Any, attention: str) -> Self:
        shape = MainShape.from_config(config)
        kept = attention == "eager" or architecture(config).eager
        dropout: Any = getattr(config, "attention_dropout", None) or getattr(config, "resid_pdrop", 0.0)
        return cls(
            shape.d_model, shape.num_heads, shape.inner, shape.kv_inner, shape.d_ff, shape.gated, kept, dropout,
            getattr(config, architecture(config).per_token, 0) if shape.experts else 0,
        )  # fmt: skip

    @property
    def operations(self) -> int:
        """FLOPs of one token in all linear maps of a layer, without cross-attention."""
        attention = 2 * self.d_model * (self.inner + self.kv_inner)
        return 2 * (attention + (3 if self.gated else 2) * self.d_model * self.d_ff)

    @property
    def cross(self) -> int:
        """FLOPs of one token in half of cross-attention's maps: queries and output, or keys and values."""
        return 2 * 2 * self.d_model * self.inner


def tokens_of(config: RunConfig, parts: Parts) -> dict[str, int]:
    """Network → tokens per optimizer step, at the configured limits."""
    data, training = config.data, config.training
    query, target = training.batch_size * _query(config), training.batch_size * data.max_target_length
    # Query and answer are one sequence; the last token of an answer is predicted, but not read.
    tokens = (
        {"main encoder": query, "main decoder": target}
        if parts.shape.has_encoder
        else {"main model": query + target - training.batch_size}
    )
    if parts.teacher is not None:
        tokens["teacher"] = training.batch_size * (data.max_demonstrations_length + data.max_target_length)
    if config.model.weights == "generated":
        tokens["hypernetwork"] = training.batch_size // training.queries_per_task * _read(config)
    return tokens


def operations(config: RunConfig, parts: Parts) -> float:
    """FLOPs of one optimizer step, over all devices."""
    model = config.model
    fused = _read(config) if model.fusion and _generated(parts) else 0
    main = _forward(config, parts.main, _Beside(_query(config), fused, _in_front(config), _prefix(config)))
    trained = model.train_main
    if parts.shape.has_encoder:
        # Without row blocks, a frozen encoder needs no backward pass.
        back = trained or bool(model.peft)
        total = _both_ways(*main.encoder, trained) if back else sum(main.encoder)
    else:
        total = 0.0
    total += _both_ways(main.decoder[0] + main.logits, main.decoder[1], trained)
    if model.gradient_checkpointing:
        total += main.total - main.logits
    return float(total + _of_hypernetwork(config, parts) + _of_teacher(config, parts))


@dataclass(frozen=True)
class _Forward:
    """FLOPs of a main model's forward pass over a batch: (maps, attention) of each stack, and of the logits."""

    encoder: tuple[float, float]
    decoder: tuple[float, float]
    logits: float

    @property
    def total(self) -> float:
        return sum(self.encoder) + sum(self.decoder) + self.logits


@dataclass(frozen=True)
class _Beside:
    """Tokens of a main model's input, and of a fused memory, a memory in front, and a prefix."""

    query: int
    fused: int = 0
    front: int = 0
    prefix: int = 0


def _forward(config: RunConfig, main: Any, beside: _Beside) -> _Forward:
    """FLOPs of a main model's forward pass over one batch."""
    batch, target, query, front = config.training.batch_size, config.data.max_target_length, beside.query, beside.front
    if main.config.is_encoder_decoder:
        t5 = main.config
        layer = Layer.of_t5(t5)
        seen = query + beside.fused
        encoder = (
            batch * query * t5.num_layers * layer.operations,
            batch * query * t5.num_layers * 4 * query * layer.inner,
        )
        rows = batch * _decoder_layers(t5)
        maps = rows * (target * (layer.operations + layer.cross) + seen * layer.cross)
        attention = rows * target * 4 * (target + seen) * layer.inner
        return _Forward(encoder, (maps, attention), batch * target * 2 * t5.d_model * t5.vocab_size)
    layer, shape = Layer.of_decoder_only(main.config, config.model.attention), MainShape.from_config(main.config)
    length, rows = query + target - 1, batch * _with_attention(shape)
    # Keys and values of a memory in front are computed per query. Layers without attention count like maps of one with.
    maps = batch * shape.decoder_layers * length * layer.operations
    maps += rows * front * 2 * 2 * layer.d_model * layer.kv_inner
    attention = rows * length * 4 * (length + front + beside.prefix) * layer.inner
    return _Forward((0, 0), (maps, attention), batch * target * 2 * layer.d_model * main.config.vocab_size)


def _of_teacher(config: RunConfig, parts: Parts) -> float:
    """FLOPs of the teacher's forward pass, with the whole task before each query."""
    if parts.teacher is None:
        return 0.0
    return _forward(config, parts.teacher, _Beside(config.data.max_demonstrations_length)).total


def _both_ways(maps: float, attention: float, trained: bool) -> float:
    """FLOPs of forward and backward pass, from those of the forward pass."""
    return maps * (3 if trained else 2) + 3 * attention


def _of_hypernetwork(config: RunConfig, parts: Parts) -> float:
    network = parts.peft_source
    if not isinstance(network, HyperNetwork):
        return 0.0
    t5 = T5Config(**network.config.t5)
    layer, read, group = Layer.of_t5(t5), _read(config), config.data.max_demonstrations_length
    once, total = 0.0, 0.0
    if network.config.encoder_layers is not None:
        # A forward pass up to the highest read layer; neither it nor the map's input, frozen states, needs gradients.
        base = Layer.of_decoder_only(parts.main.config, config.model.attention)
        once = read * max(network.config.encoder_layers) * (base.operations + 4 * group * base.inner)
        once += 2 * 2 * read * base.d_model * t5.d_model
    else:
        total = read * t5.num_layers * (layer.operations + 4 * group * layer.inner)
    if network.to_front is not None:
        total += 2 * read * network.to_front.weight.numel()
    if network.decoder is not None and network.scheme is not None:
        vectors = network.scheme.positions
        per_vector = layer.operations + layer.cross + 4 * (vectors + read) * layer.inner
        total += config.model.decoder_layers * (vectors * per_vector + read * layer.cross)
    total += sum(_of_head(head) for head in network.heads.heads())
    return (once + 3 * total) * (config.training.batch_size // config.training.queries_per_task)


def _of_head(head: Any) -> float:
    d_model, block = head.first.in_features, head.block
    return 2.0 * block.layers * (head.first.weight.numel() + block.rows * d_model * block.width)


def activations(config: RunConfig, parts: Parts, devices: int) -> float:
    """Bytes of the activations that one pass keeps for its backward pass, at the configured lengths."""
    model, training = config.model, config.training
    queries = training.micro_batch_size or training.batch_size // devices
    size = 2 if training.bf16 else 4
    total = (_of_t5_pass if parts.shape.has_encoder else _of_decoder_only_pass)(config, parts, queries, size)
    # Logits, their softmax in float32, and its gradient; with a teacher those of both, and their divergence.
    logits = queries * config.data.max_target_length * parts.main.config.vocab_size
    total += logits * (size + 8) + (logits * (size + 12) if parts.teacher is not None else 0)
    network = parts.peft_source
    if isinstance(network, HyperNetwork):
        t5 = T5Config(**network.config.t5)
        layer, read = Layer.of_t5(t5), _read(config)
        group, groups = config.data.max_demonstrations_length, config.data.demonstration_groups
        passes = math.ceil(queries / training.queries_per_task)
        dropout = (layer.dropout if model.dropout is None else model.dropout) > 0
        checkpointed = model.gradient_checkpointing
        if network.config.encoder_layers is None:
            total += _stack(layer, passes * groups, group, group, t5.num_layers, size, checkpointed, dropout=dropout)
        else:
            # From the frozen base, only the states that are read, in float32: original, normed and summed.
            total += passes * read * (2 * len(network.config.encoder_layers) + 1) * parts.shape.d_model * 4
        if network.to_front is not None:
            total += passes * read * network.to_front.weight.shape[0] * size
        rows = sum(head.block.layers * head.block.rows for head in network.heads.heads())
        total += passes * rows * t5.d_model * 3 * size
        if network.decoder is not None and network.scheme is not None:
            vectors, layers = network.scheme.positions, model.decoder_layers
            recomputed = checkpointed and vectors >= MANY
            keys = 0 if recomputed else vectors
            total += _stack(layer, passes, vectors, keys, layers, size, False, memory=read, dropout=dropout)
            # Cross-attention also keeps its scores and weights; with recomputation only those of one attention.
            weights = max(vectors, read) if recomputed else layers * read
            total += passes * layer.heads * vectors * weights * (2 * size + (size + 1 if dropout else 0))
    return total * OVERHEAD


def _of_t5_pass(config: RunConfig, parts: Parts, queries: int, size: int) -> float:
    model, data = config.model, config.data
    t5: Any = parts.main.config
    layer, prefix, query = Layer.of_t5(t5), _prefix(config), _query(config)
    # A frozen main model has no dropout.
    dropout = model.train_main and layer.dropout > 0
    total = 0.0
    if model.train_main or model.peft:
        total += _stack(
            layer, queries, query, query + prefix, t5.num_layers, size, model.gradient_checkpointing, dropout=dropout
        )
    fused = _read(config) if model.fusion and _generated(parts) else 0
    return total + _stack(
        layer, queries, data.max_target_length, data.max_target_length + prefix, _decoder_layers(t5), size,
        model.gradient_checkpointing, memory=query + fused, dropout=dropout,
    )  # fmt: skip


def _of_decoder_only_pass(config: RunConfig, parts: Parts, queries: int, size: int) -> float:
    model = config.model
    layer = Layer.of_decoder_only(parts.main.config, model.attention)
    length, front = _query(config) + config.data.max_target_length - 1, _in_front(config)
    # For a memory in front each layer keeps its normed states, keys and values, and the latter repeated per head.
    memory = queries * _with_attention(parts.shape) * front * (layer.d_model + 2 * layer.kv_inner + 2 * layer.inner)
    return memory * size + _stack(
        layer, queries, length, length + front + _prefix(config), parts.shape.decoder_layers, size,
        model.gradient_checkpointing, dropout=model.train_main and layer.dropout > 0,
    )  # fmt: skip


def _stack(
    layer: Layer,
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
    """Bytes of a stack's activations; `memory` is the number of tokens that a decoder's cross-attention reads."""
    # Per token: residual stream and norms (hidden and normed of each sub-layer), q, k, v, the attention's output,
    # and the feed-forward's inner activations (if gated: two maps, the activation and the product).
    sublayers = 3 if memory else 2
    per_token: float = sublayers * 3 * layer.d_model + 4 * layer.inner + (4 if layer.gated else 2) * layer.d_ff
    # Input and output of each expert.
    per_token += 2 * layer.experts * layer.d_model
    attention: float = 2 * layer.heads * tokens * keys if layer.scores_kept else 0
    if dropout:
        # Dropout keeps its output beside its input, and a mask of one byte per element.
        kept = 1 + 1 / size
        per_token += kept * (sublayers * layer.d_model + layer.d_ff)
        attention += kept * layer.heads * tokens * keys
    per_layer = batch * (tokens * per_token + attention) * size
    if memory:
        per_layer += batch * (2 * memory + 2 * tokens) * layer.inner * size
    if not checkpointed:
        return layers * per_layer
    return per_layer + layers * batch * (tokens + memory) * layer.d_model * size


def _query(config: RunConfig) -> int:
    """Most tokens of one input of the main model."""
    data = config.data
    return data.max_demonstrations_length if data.demonstrations_to == "main" else data.max_query_length


def _read(config: RunConfig) -> int:
    """Most tokens of one task in the hypernetwork's input, in all groups."""
    return config.data.max_demonstrations_length * config.data.demonstration_groups


def _in_front(config: RunConfig) -> int:
    """Most tokens of a memory in front of each query."""
    return _read(config) if config.model.memory_in_front else 0


def _prefix(config: RunConfig) -> int:
    return prefix_length(build_kinds(config.model.peft))


def _generated(parts: Parts) -> bool:
    return isinstance(parts.peft_source, HyperNetwork)


def _with_attention(shape: MainShape) -> int:
    """Number of layers with attention in a decoder-only model."""
    return shape.decoder_layers if shape.attention is None else len(shape.attention)


def _decoder_layers(t5: T5Config) -> int:
    return t5.num_decoder_layers or t5.num_layers
