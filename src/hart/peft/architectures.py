"""Where the sites of each architecture are: one table for all families of main models (§4.1).

A *site* is a place in every layer at which generated parameters act, called by one name in all architectures (`q`,
`wi_0`, `self_attention`). A row of the table says which module of a stock `transformers` model it is
(`hart.peft.modules` finds it). A map that a model has fused with others (GPT-2's `c_attn`, GPT-NeoX's
`query_key_value`, Phi-3's `qkv_proj`) is some columns of one module's output. Another architecture is another row;
`MainShape.of` checks a row against the modules of a model.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from hart.errors import HartError

Stack = Literal["encoder", "decoder"]

ATTENTION = ("q", "k", "v", "o")


@dataclass(frozen=True)
class Fused:
    """A map that is some columns of a module's output.

    Attributes:
        path: of the module.
        parts: the sites whose outputs lie side by side in it, in order.
        per_head: whether they do so within each head (GPT-NeoX) or one after the other.
    """

    path: str
    parts: tuple[str, ...]
    per_head: bool = False


def _own_width(config: Any) -> int:
    """Of a feed-forward, as most configurations give it; GPT-2's only where it is not four times the hidden size."""
    width: int = (
        getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * config.hidden_size
    )
    return width


def _experts_width(expert: str, shared: str | None = None, alike: str | None = None) -> Callable[[Any], int]:
    """The total width of the experts that one token passes.

    Args:
        expert: name of the configuration's field that is the width of one.
        shared: of the field that is the width of what all tokens pass beside them.
        alike: of the field that is the number of experts of the same width that all tokens pass.
    """

    def width(config: Any) -> int:
        beside = getattr(config, shared) if shared is not None else 0
        number = config.num_experts_per_tok + (getattr(config, alike) if alike is not None else 0)
        total: int = number * getattr(config, expert) + beside
        return total

    return width


def _lfm2_width(config: Any) -> int:
    """As LFM 2 makes it of what its configuration says: two thirds, scaled, rounded up to a multiple."""
    width: int = config.intermediate_size
    if not config.block_auto_adjust_ff_dim:
        return width
    width = int(2 * width / 3)
    if config.block_ffn_dim_multiplier is None:
        return width
    multiple: int = config.block_multiple_of
    return -(-int(config.block_ffn_dim_multiplier * width) // multiple) * multiple


def _with_attention(config: Any) -> list[int]:
    """The layers of a hybrid that have attention."""
    return [layer for layer, kind in enumerate(config.layer_types) if kind == "full_attention"]


def _with_own_keys(config: Any) -> list[int]:
    """The layers of a Gemma 4 whose heads are of one width: those with a window that take keys from no layer below."""
    sharing = zip(config.layer_types, config.kv_sharing_modes, strict=True)
    return [layer for layer, (kind, keys) in enumerate(sharing) if kind == "sliding_attention" and keys != "reuse"]


@dataclass(frozen=True)
class Architecture:
    """One row of the table.

    Attributes:
        stacks: stack → path of the list of its layers; a decoder-only model has a `decoder` alone.
        sites: name of a site → path of its module below a layer, or where it lies in a fused one.
        norm: path, below a layer, of the norm that the input of self-attention has passed; None: it has passed none.
        added: where it has passed none, paths of the norms behind attention and feed-forward, of whose outputs and the
            embeddings it is the sum (OLMo 2).
        gain: what is added to the weights of norms before they scale (Gemma's are differences from 1).
        key_norm: path of the norm that keys pass behind their map, each head by itself or all of them together; where
            it leads nowhere, a checkpoint has none (Phi).
        value_norm: the same of values, without gains (Gemma 4).
        positions: path of the module that is told the position of each token; where it is None, tokens have none
            (Granite 4, whose recurrences know their order).
        positions_in_attention: whether attention is told it as well (Ministral 3 scales queries by it).
        dropout: names of the attributes of modules that hold a dropout rate, where it is not a module of its own.
        eager: whether attention does what fused kernels cannot (Gemma 2 caps scores).
        attention_in: the layers, by the configuration, in which attention and its maps are sites, where this is not
            all. Others of a hybrid mix tokens by a recurrence or a convolution (Qwen 3.5, LFM 2).
        experts: whether the feed-forward is a mixture of experts, in all layers or in most, or of several widths; its
            maps are then no sites.
        width: of the feed-forward, or of all experts that one token passes, by the configuration.
        per_token: name of the configuration's field that is the number of experts that one token passes.
    """

    stacks: Mapping[Stack, str]
    sites: Mapping[str, str | Fused]
    norm: str | None
    added: tuple[str, ...] = ()
    gain: float = 0.0
    key_norm: str | None = None
    value_norm: str | None = None
    positions: str | None = None
    positions_in_attention: bool = False
    dropout: tuple[str, ...] = ("attention_dropout",)
    eager: bool = False
    attention_in: Callable[[Any], list[int]] | None = None
    experts: bool = False
    width: Callable[[Any], int] = _own_width
    per_token: str = "num_experts_per_tok"

    @property
    def has_encoder(self) -> bool:
        return "encoder" in self.stacks

    def attention_layers(self, config: Any) -> tuple[int, ...] | None:
        """The layers of a decoder-only model in which attention and its maps are sites; None: all."""
        if self.attention_in is None:
            return None
        found = tuple(self.attention_in(config))
        return None if len(found) == config.num_hidden_layers else found

    def sizes(self, config: Any) -> dict[str, Any]:
        """The fields of `MainShape` for a decoder-only model's configuration."""
        heads, attention = config.num_attention_heads, self.attention_layers(config)
        # Sizes of heads may differ between layers; those with sites are alike.
        own = config.per_layer_config[attention[0]] if attention else config
        kv_heads = getattr(own, "num_key_value_heads", None) or heads
        return {
            "d_model": config.hidden_size,
            "num_heads": heads,
            "d_kv": getattr(own, "head_dim", None) or config.hidden_size // heads,
            "d_ff": self.width(config),
            "encoder_layers": 0,
            "decoder_layers": config.num_hidden_layers,
            "gated": "wi" not in self.sites,
            "experts": self.experts,
            "attention": attention,
            "kv_heads": None if kv_heads == heads else kv_heads,
        }


_T5_SITES: dict[str, str | Fused] = {
    "self_attention": "layer.0.SelfAttention",
    **{name: f"layer.0.SelfAttention.{name}" for name in ATTENTION},
    "cross_attention": "layer.1.EncDecAttention",
    **{f"cross_{name}": f"layer.1.EncDecAttention.{name}" for name in ATTENTION},
    "feed_forward": "layer.-1.DenseReluDense",
    **{name: f"layer.-1.DenseReluDense.{name}" for name in ("wi", "wi_0", "wi_1", "wo")},
    # Between activation and second map, in the gated and in the plain form alike.
    "feed_forward_inner": "layer.-1.DenseReluDense.dropout",
}
_T5 = Architecture(
    stacks={"encoder": "encoder.block", "decoder": "decoder.block"},
    sites=_T5_SITES,
    norm="layer.0.layer_norm",
    dropout=("dropout",),
)

_LLAMA = Architecture(
    stacks={"decoder": "model.layers"},
    sites={
        "self_attention": "self_attn",
        **{name: f"self_attn.{name}_proj" for name in ATTENTION},
        "feed_forward": "mlp",
        "wi_0": "mlp.gate_proj",
        "wi_1": "mlp.up_proj",
        "wo": "mlp.down_proj",
    },
    norm="input_layernorm",
    positions="model.rotary_emb",
)
_QKV = ("q", "k", "v")
_PHI3_QKV, _PHI3_WI = Fused("self_attn.qkv_proj", _QKV), Fused("mlp.gate_up_proj", ("wi_0", "wi_1"))
_PHI3 = replace(_LLAMA, sites={**_LLAMA.sites, **dict.fromkeys(_QKV, _PHI3_QKV), "wi_0": _PHI3_WI, "wi_1": _PHI3_WI})
_GLM4 = replace(_LLAMA, sites={**_LLAMA.sites, "wi_0": _PHI3_WI, "wi_1": _PHI3_WI})
# The feed-forward as a whole, without its maps.
_WHOLE = {name: place for name, place in _LLAMA.sites.items() if name not in ("wi_0", "wi_1", "wo")}
_MIXTURE = replace(_LLAMA, sites=_WHOLE, experts=True, width=_experts_width("intermediate_size"))
# Each head's query lies beside its gate, a map that is no site.
_GATED_Q = Fused("self_attn.q_proj", ("q", "gate"), per_head=True)
_QWEN35 = replace(
    _LLAMA,
    sites={**_LLAMA.sites, "q": _GATED_Q},
    gain=1.0,
    key_norm="self_attn.k_norm",
    attention_in=_with_attention,
)
_QWEN35_MOE = replace(
    _QWEN35,
    sites={**_WHOLE, "q": _GATED_Q},
    experts=True,
    width=_experts_width("moe_intermediate_size", "shared_expert_intermediate_size"),
)
_LFM2 = replace(
    _LLAMA,
    sites={
        **_LLAMA.sites,
        "o": "self_attn.out_proj",
        "feed_forward": "feed_forward",
        "wi_0": "feed_forward.w1",
        "wi_1": "feed_forward.w3",
        "wo": "feed_forward.w2",
    },
    norm="operator_norm",
    key_norm="self_attn.k_layernorm",
    dropout=(),
    attention_in=_with_attention,
    width=_lfm2_width,
)
_LFM2_MOE = replace(
    _LFM2,
    sites={**_WHOLE, "o": "self_attn.out_proj", "feed_forward": "feed_forward"},
    positions="model.pos_emb",
    experts=True,
    width=_experts_width("moe_intermediate_size"),
)
# Experts stand beside a feed-forward that every token passes; both read the same and are added, so an adapter beside
# the one is beside both.
_GRANITE4_WI = Fused("shared_mlp.input_linear", ("wi_0", "wi_1"))
_GRANITE4 = replace(
    _LLAMA,
    sites={
        **_LLAMA.sites,
        "feed_forward": "shared_mlp",
        "wi_0": _GRANITE4_WI,
        "wi_1": _GRANITE4_WI,
        "wo": "shared_mlp.output_linear",
    },
    attention_in=_with_attention,
    width=lambda config: config.shared_intermediate_size,
)
_GRANITE4_MOE = replace(
    _GRANITE4,
    sites={**_WHOLE, "feed_forward": "shared_mlp"},
    experts=True,
    width=_experts_width("intermediate_size", "shared_intermediate_size"),
)
_GEMMA4 = replace(
    _LLAMA,
    key_norm="self_attn.k_norm",
    value_norm="self_attn.v_norm",
    attention_in=_with_own_keys,
)
# With `use_double_wide_mlp` the layers that take keys from below have a wider feed-forward.
_GEMMA4_WIDE = replace(_GEMMA4, sites=_WHOLE, experts=True)
_GEMMA4_MOE = replace(
    _GEMMA4_WIDE,
    width=lambda config: config.intermediate_size + config.top_k_experts * config.moe_intermediate_size,
    per_token="top_k_experts",
)
_OLMO2 = replace(
    _LLAMA,
    norm=None,
    added=("post_attention_layernorm", "post_feedforward_layernorm"),
    key_norm="self_attn.k_norm",
)
# One map in, one out, without a gate.
_ARCEE = replace(_LLAMA, sites={**_WHOLE, "wi": "mlp.up_proj", "wo": "mlp.down_proj"})
_APERTUS = replace(_ARCEE, norm="attention_layernorm", key_norm="self_attn.k_norm")
_STARCODER2 = replace(
    _LLAMA,
    sites={**_WHOLE, "wi": "mlp.c_fc", "wo": "mlp.c_proj"},
    dropout=("attention_dropout", "residual_dropout", "embedding_dropout"),
)
_GLM4_MOE = replace(
    _MIXTURE,
    key_norm="self_attn.k_norm",
    width=_experts_width("moe_intermediate_size", alike="n_shared_experts"),
)
_ERNIE_MOE = replace(_MIXTURE, width=_experts_width("moe_intermediate_size", alike="moe_num_shared_experts"))
_PHI = replace(
    _LLAMA,
    sites={**_WHOLE, "o": "self_attn.dense", "wi": "mlp.fc1", "wo": "mlp.fc2"},
    key_norm="self_attn.k_layernorm",
)
_GPT2 = Architecture(
    stacks={"decoder": "transformer.h"},
    sites={
        "self_attention": "attn",
        **dict.fromkeys(_QKV, Fused("attn.c_attn", _QKV)),
        "o": "attn.c_proj",
        "feed_forward": "mlp",
        "wi": "mlp.c_fc",
        "wo": "mlp.c_proj",
    },
    norm="ln_1",
    positions="transformer.wpe",
    dropout=(),
)
_NEOX = Architecture(
    stacks={"decoder": "gpt_neox.layers"},
    sites={
        "self_attention": "attention",
        **dict.fromkeys(_QKV, Fused("attention.query_key_value", _QKV, per_head=True)),
        "o": "attention.dense",
        "feed_forward": "mlp",
        "wi": "mlp.dense_h_to_4h",
        "wo": "mlp.dense_4h_to_h",
    },
    norm="input_layernorm",
    positions="gpt_neox.rotary_emb",
)


def _granite4(config: Any) -> Architecture:
    return _GRANITE4_MOE if config.num_local_experts else _GRANITE4


def _gemma4(config: Any) -> Architecture:
    if getattr(config, "enable_moe_block", False):
        return _GEMMA4_MOE
    return _GEMMA4_WIDE if config.use_double_wide_mlp and config.num_kv_shared_layers else _GEMMA4


ARCHITECTURES: dict[str, Architecture | Callable[[Any], Architecture]] = {
    "t5": _T5,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "ministral3": replace(_LLAMA, positions_in_attention=True),
    "mixtral": _MIXTURE,
    "qwen2": _LLAMA,
    "qwen3": replace(_LLAMA, key_norm="self_attn.k_norm"),
    "qwen3_moe": replace(_MIXTURE, key_norm="self_attn.k_norm", width=_experts_width("moe_intermediate_size")),
    "qwen3_5_text": _QWEN35,
    "qwen3_5_moe_text": _QWEN35_MOE,
    "qwen3_next": _QWEN35_MOE,
    "gemma": replace(_LLAMA, gain=1.0),
    "gemma2": replace(_LLAMA, gain=1.0, eager=True),
    "gemma3_text": replace(_LLAMA, gain=1.0, key_norm="self_attn.k_norm"),
    "gemma4_text": _gemma4,
    "gemma4_unified_text": _gemma4,
    "smollm3": _LLAMA,  # of its layers every fourth has no positions
    "granite": _LLAMA,
    "granitemoehybrid": _granite4,
    "lfm2": _LFM2,
    "lfm2_moe": _LFM2_MOE,
    "glm4": _GLM4,
    "glm4_moe": _GLM4_MOE,
    "ernie4_5": _LLAMA,
    "ernie4_5_moe": _ERNIE_MOE,
    "exaone4": _OLMO2,
    "olmo2": _OLMO2,
    "olmo3": _OLMO2,
    "olmoe": replace(_MIXTURE, key_norm="self_attn.k_norm"),
    "gpt_oss": replace(_MIXTURE, eager=True),  # attention has sinks
    "seed_oss": replace(_LLAMA, dropout=("attention_dropout", "residual_dropout")),
    "apertus": _APERTUS,
    "arcee": _ARCEE,
    "cohere2": _LLAMA,
    "starcoder2": _STARCODER2,
    "phi": _PHI,
    "phi3": _PHI3,
    "gpt2": _GPT2,
    "gpt_neox": _NEOX,
}
"""`model_type` of a configuration of `transformers` → its row, or a function from the configuration to it."""


def architecture(config: Any) -> Architecture:
    """The row of a model's configuration.

    Raises:
        HartError: there is none.
    """
    found = ARCHITECTURES.get(config.model_type)
    if found is None:
        raise HartError(
            f"main models of the architecture {config.model_type!r} have no row in hart's table of sites; "
            f"supported are {', '.join(ARCHITECTURES)}"
        )
    return found if isinstance(found, Architecture) else found(config)


def in_attention(target: str) -> bool:
    """Whether a site is self-attention, or a map of it."""
    return target == "self_attention" or target in ATTENTION
