"""The configuration of a hypernetwork, as it is saved with its weights."""

from dataclasses import field
from typing import Any

from transformers import PreTrainedConfig, T5Config

from hart.errors import HartError
from hart.peft.base import MainShape
from hart.peft.injection import ATTENTION

T5_FIELDS = (
    "vocab_size",
    "d_model",
    "d_kv",
    "d_ff",
    "num_heads",
    "num_layers",
    "num_decoder_layers",
    "feed_forward_proj",
    "relative_attention_num_buckets",
    "relative_attention_max_distance",
    "layer_norm_epsilon",
    "dropout_rate",
    "initializer_factor",
    "pad_token_id",
)
"""What of a T5 checkpoint's configuration decides its stacks."""

HEAD_WIDTH = 64
"""Of an attention head, in every T5."""


def new_decoder(width: int, layers: int) -> dict[str, Any]:
    """The `T5_FIELDS` of a decoder that starts from no checkpoint, in the proportions of T5 v1.1; without tokens."""
    return {
        "d_model": width,
        "d_kv": HEAD_WIDTH,
        # 8/3 of the width (Large has 2.75 of it, XL 2.5), in whole heads.
        "d_ff": max(1, round(8 / 3 * width / HEAD_WIDTH)) * HEAD_WIDTH,
        "num_heads": max(1, width // HEAD_WIDTH),
        "num_layers": layers,
        "num_decoder_layers": layers,
        "feed_forward_proj": "gated-gelu",
    }


def check_beside(shape: MainShape, *, memory_in_front: bool, main_states: bool, tied_encoder: bool) -> None:
    """Raise `HartError` for a T5 that is to have what only decoder-only main models have, or the other way round."""
    if not shape.has_encoder:
        if tied_encoder:
            raise HartError("model.tied_encoder: a decoder-only base has no encoder to share; set it to false")
        return
    if memory_in_front:
        raise HartError(
            "model.memory_in_front: is for decoder-only bases, this one is a T5, whose decoder attends to the memory "
            "by model.fusion; set it to false"
        )
    if main_states:
        raise HartError(
            "model.encoder: main_model is for decoder-only bases, this one is a T5, which has an encoder; "
            "set it to t5 (model.tied_encoder shares the base's own)"
        )


def no_t5(name: str, architecture: str) -> str:
    """What is said where a hypernetwork is to start from a checkpoint of another architecture than T5."""
    return (
        "model.hypernetwork_init: must name a T5 checkpoint, which the hypernetwork starts from (or set model.encoder "
        f"to main_model); {name} is of the architecture {architecture}"
    )


def no_fusion(name: str) -> str:
    """What is said where a decoder-only main model is to fuse a memory."""
    return (
        f"model.fusion: {name} is decoder-only and has no cross-attention for the memory; set it to false "
        "(model.memory_in_front puts the memory before queries)"
    )


class HyperNetworkConfig(PreTrainedConfig):
    """Everything needed to build a `HyperNetwork`.

    Fields:
        t5: the `T5_FIELDS` of the checkpoint that the hypernetwork was initialised from.
        decoder_layers: N, how many decoder layers it keeps.
        scheme: generation scheme, `{"name": …, options}` (`hart.hypernetwork.schemes`).
        peft: what is generated, `[{"kind": …, fields}]` (`hart.peft`); may be empty (fusion alone).
        main: the fields of the main model's `MainShape`.
        dropout: replaces the checkpoint's dropout rate if not None.
        tied_encoder: the encoder is the main model's own (HINT), not part of this network; see `HyperNetwork.use_main`.
        encoder_layers: the layers of the frozen main model, counted from 1, whose hidden states are read in place of
            an encoder; see `HyperNetwork.use_main`. None: an encoder of its own, or a tied one.
        memory_in_front: whether the memory is mapped to a decoder-only main model's width, to stand before queries.
        head_bias: whether generated rows have a learned part beside them that is the same for all tasks.
    """

    model_type = "hart-hypernetwork"

    t5: dict[str, Any] = field(default_factory=dict)
    decoder_layers: int = 8
    scheme: dict[str, Any] = field(default_factory=lambda: {"name": "autoregressive"})
    peft: list[dict[str, Any]] = field(default_factory=lambda: [{"kind": "prefix", "length": 32}])
    main: dict[str, Any] = field(default_factory=dict)
    dropout: float | None = None
    tied_encoder: bool = False
    encoder_layers: list[int] | None = None
    memory_in_front: bool = False
    head_bias: bool = False

    @property
    def has_own_encoder(self) -> bool:
        """Whether an encoder is part of this network."""
        return not self.tied_encoder and self.encoder_layers is None

    def stack_config(self, *, decoder: bool) -> T5Config:
        """Configuration of one of the two T5 stacks."""
        # Ours: position bias and mask put together once, not in every layer.
        config = T5Config(**{**self.t5, "attn_implementation": ATTENTION["sdpa"]})
        config.is_encoder_decoder = False
        config.use_cache = False
        # The same function as one operation on the hidden units instead of eight.
        if config.dense_act_fn == "gelu_new":
            config.dense_act_fn = "gelu_pytorch_tanh"
        if self.dropout is not None:
            config.dropout_rate = self.dropout
        if decoder:
            config.is_decoder = True
            config.num_layers = self.decoder_layers
            # The decoder is fed states, never tokens: its table is dropped, so none is allocated.
            config.vocab_size = 1
        return config
