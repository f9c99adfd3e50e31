"""The configuration of a hypernetwork, saved with its weights."""

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
"""Fields of a T5 checkpoint's configuration that determine its stacks."""

HEAD_WIDTH = 64
"""Width d_kv of an attention head, in every T5."""


def new_decoder(width: int, layers: int) -> dict[str, Any]:
    """The `T5_FIELDS` of a new decoder without a vocabulary, in the proportions of T5 v1.1."""
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
    """Check options that only one family of main models supports.

    Raises:
        HartError: `tied_encoder` with a decoder-only main model, or `memory_in_front` or `main_states` with a T5.
    """
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
    """The error message for a hypernetwork that shall start from a checkpoint other than a T5."""
    return (
        "model.hypernetwork_init: must name a T5 checkpoint, which the hypernetwork starts from (or set model.encoder "
        f"to main_model); {name} is of the architecture {architecture}"
    )


def no_fusion(name: str) -> str:
    """The error message for fusion with a decoder-only main model."""
    return (
        f"model.fusion: {name} is decoder-only and has no cross-attention for the memory; set it to false "
        "(model.memory_in_front puts the memory before queries)"
    )


class HyperNetworkConfig(PreTrainedConfig):
    """All that is needed to build a `HyperNetwork`.

    Fields:
        t5: the `T5_FIELDS` of the checkpoint that the hypernetwork was initialised from, or of its new decoder.
        decoder_layers: N, the number of decoder layers.
        scheme: generation scheme, `{"name": …, options}` (`hart.hypernetwork.schemes`).
        peft: PEFT kinds to generate, `[{"kind": …, fields}]` (`hart.peft`); may be empty (fusion alone).
        main: the fields of the main model's `MainShape`.
        dropout: dropout rate; None: that of the checkpoint.
        tied_encoder: the encoder is the main model's own (HINT), not part of this network; see `HyperNetwork.use_main`.
        encoder_layers: layers of the frozen main model, counted from 1, whose hidden states replace an encoder; see
            `HyperNetwork.use_main`. None: an encoder of its own, or a tied one.
        memory_in_front: whether the memory is mapped to a decoder-only main model's width, to stand in front of
            queries.
        head_bias: whether a learned bias, the same for all tasks, is added to generated rows.
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
        # Our attention function: it adds position bias and mask once per stack, not once per layer.
        config = T5Config(**{**self.t5, "attn_implementation": ATTENTION["sdpa"]})
        config.is_encoder_decoder = False
        config.use_cache = False
        # The same function in one operation on the hidden units instead of eight.
        if config.dense_act_fn == "gelu_new":
            config.dense_act_fn = "gelu_pytorch_tanh"
        if self.dropout is not None:
            config.dropout_rate = self.dropout
        if decoder:
            config.is_decoder = True
            config.num_layers = self.decoder_layers
            # The decoder's input is states, never tokens: its embedding table is dropped, so it is made minimal.
            config.vocab_size = 1
        return config
