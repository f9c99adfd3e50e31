"""The configuration of a hypernetwork, as it is saved with its weights."""

from dataclasses import field
from typing import Any

from transformers import PreTrainedConfig, T5Config

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


class HyperNetworkConfig(PreTrainedConfig):
    """Everything needed to build a `HyperNetwork`.

    Fields:
        t5: the `T5_FIELDS` of the checkpoint that the hypernetwork was initialised from.
        decoder_layers: N, how many decoder layers it keeps.
        scheme: generation scheme, `{"name": …, options}` (`hart.hypernetwork.schemes`).
        peft: what is generated, `[{"kind": …, fields}]` (`hart.peft`); may be empty (fusion alone).
        main: the fields of the main model's `MainShape`.
        dropout: replaces the checkpoint's dropout rate if not None.
        tied_encoder: the encoder is the main model's own (HINT), not part of this network; see `HyperNetwork.tie`.
    """

    model_type = "hart-hypernetwork"

    t5: dict[str, Any] = field(default_factory=dict)
    decoder_layers: int = 8
    scheme: dict[str, Any] = field(default_factory=lambda: {"name": "autoregressive"})
    peft: list[dict[str, Any]] = field(default_factory=lambda: [{"kind": "prefix", "length": 32}])
    main: dict[str, Any] = field(default_factory=dict)
    dropout: float | None = None
    tied_encoder: bool = False

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
