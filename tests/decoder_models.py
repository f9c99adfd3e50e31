"""Tiny random decoder-only models of every supported architecture, in which every part has an effect."""

import torch
from torch import nn
from transformers import (
    ApertusConfig,
    ArceeConfig,
    Cohere2Config,
    Ernie4_5_MoeConfig,
    Ernie4_5Config,
    Exaone4Config,
    Gemma2Config,
    Gemma3TextConfig,
    Gemma4TextConfig,
    Gemma4UnifiedTextConfig,
    GemmaConfig,
    Glm4Config,
    Glm4MoeConfig,
    GPT2Config,
    GPTNeoXConfig,
    GptOssConfig,
    GraniteConfig,
    GraniteMoeHybridConfig,
    Lfm2Config,
    Lfm2MoeConfig,
    LlamaConfig,
    Ministral3Config,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    Olmo3Config,
    OlmoeConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3_5MoeTextConfig,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    Qwen3NextConfig,
    SeedOssConfig,
    SmolLM3Config,
    Starcoder2Config,
)
from transformers import AutoModelForCausalLM as Models

from hart.model.decoder_only import DecoderOnly
from hart.model.main_model import MainModel
from hart.peft.base import MainShape
from hart.peft.lora import FEED_FORWARD

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 512,
    "attention_dropout": 0.1,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
# Wider heads than hidden_size / heads, as Qwen 3 and Gemma have them.
WIDE = {**GROUPED, "head_dim": 16}
WINDOW = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
RECURRENT = {
    "layer_types": ["full_attention", "linear_attention", "full_attention"],
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
CONVOLUTIONS = {"layer_types": ["full_attention", "conv", "full_attention"]}
SCALED = {
    "attention_multiplier": 0.2,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.7,
    "logits_scaling": 2.0,
}
GRANITE4 = {
    **GROUPED,
    **SCALED,
    "num_local_experts": 0,
    "shared_intermediate_size": 24,
    "mamba_n_heads": 8,
    "mamba_n_groups": 2,
    "mamba_d_state": 8,
    "mamba_chunk_size": 4,
}
MAMBA = {"layer_types": ["full_attention", "linear_attention", "full_attention"]}
# Layers without a window have wider heads, here fewer of them, and values that are their keys.
GEMMA4 = {
    **WIDE,
    **WINDOW,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    "global_head_dim": 24,
    "num_global_key_value_heads": 1,
    "attention_k_eq_v": True,
    "hidden_size_per_layer_input": 0,
}
GEMMA4_UNIFIED = {name: value for name, value in GEMMA4.items() if name != "hidden_size_per_layer_input"}
EXPERTS = {"num_experts_per_tok": 2}
FINE_EXPERTS = {**EXPERTS, "num_experts": 4, "moe_intermediate_size": 24}
SHARED_EXPERT = {**FINE_EXPERTS, "shared_expert_intermediate_size": 16}
ROTARY = {"rope_type": "default", "rope_theta": 10000.0}
# Long contexts, and queries that grow with their position, behind the sixteenth.
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 32.0,
    "original_max_position_embeddings": 16,
    "max_position_embeddings": 512,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}

CONFIGS: dict[str, tuple[type[PreTrainedConfig], dict]] = {
    "llama": (LlamaConfig, GROUPED),
    "mistral": (MistralConfig, {**GROUPED, "sliding_window": 8}),
    "ministral3": (Ministral3Config, {**WIDE, "rope_parameters": YARN}),
    "mixtral": (MixtralConfig, {**GROUPED, **EXPERTS, "num_local_experts": 4}),
    "qwen2": (Qwen2Config, GROUPED),
    "qwen3": (Qwen3Config, WIDE),
    "qwen3_moe": (Qwen3MoeConfig, {**WIDE, **FINE_EXPERTS}),
    "qwen3_5_text": (Qwen3_5TextConfig, {**WIDE, **RECURRENT}),
    "qwen3_5_moe_text": (Qwen3_5MoeTextConfig, {**WIDE, **RECURRENT, **SHARED_EXPERT}),
    "qwen3_next": (Qwen3NextConfig, {**WIDE, **RECURRENT, **SHARED_EXPERT}),
    "gemma": (GemmaConfig, WIDE),
    "gemma2": (Gemma2Config, {**WIDE, **WINDOW, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 2.0}),
    "gemma3_text": (Gemma3TextConfig, {**WIDE, **WINDOW, "query_pre_attn_scalar": 16}),
    "gemma4_text": (Gemma4TextConfig, GEMMA4),
    # The last layer takes keys and values from the first and has a wider feed-forward; layers have inputs of their own.
    "gemma4_text, shared": (
        Gemma4TextConfig,
        {
            **WIDE,
            **WINDOW,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            "global_head_dim": 24,
            "num_kv_shared_layers": 1,
            "use_double_wide_mlp": True,
            "hidden_size_per_layer_input": 8,
        },
    ),
    "gemma4_text, experts": (
        Gemma4TextConfig,
        {**GEMMA4, "enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 24},
    ),
    "gemma4_unified_text": (Gemma4UnifiedTextConfig, GEMMA4_UNIFIED),
    "smollm3": (SmolLM3Config, {**GROUPED, "no_rope_layer_interval": 3}),
    "granite": (GraniteConfig, {**GROUPED, **SCALED}),
    # Granite 4: hybrids without positions, with experts and without; and a model with attention in all layers.
    "granitemoehybrid": (GraniteMoeHybridConfig, {**GRANITE4, **MAMBA, **EXPERTS, "num_local_experts": 4}),
    "granitemoehybrid, dense": (GraniteMoeHybridConfig, {**GRANITE4, **MAMBA}),
    "granitemoehybrid, attention": (
        GraniteMoeHybridConfig,
        {**GRANITE4, "layer_types": ["full_attention"] * 3, "position_embedding_type": "rope"},
    ),
    "lfm2": (Lfm2Config, {**GROUPED, **CONVOLUTIONS, "block_multiple_of": 8}),
    "lfm2_moe": (Lfm2MoeConfig, {**GROUPED, **CONVOLUTIONS, **FINE_EXPERTS, "num_dense_layers": 1}),
    "glm4": (Glm4Config, WIDE),
    "ernie4_5": (Ernie4_5Config, WIDE),
    "glm4_moe": (
        Glm4MoeConfig,
        {
            **WIDE,
            **EXPERTS,
            "n_routed_experts": 4,
            "moe_intermediate_size": 24,
            "use_qk_norm": True,
            "first_k_dense_replace": 1,
        },
    ),
    "ernie4_5_moe": (
        Ernie4_5_MoeConfig,
        {
            **GROUPED,
            "moe_num_experts": 4,
            "moe_k": 2,
            "moe_intermediate_size": 24,
            "moe_layer_end_index": 2,
        },
    ),
    "exaone4": (Exaone4Config, {**WIDE, **WINDOW}),
    "olmo2": (Olmo2Config, GROUPED),
    "olmo3": (Olmo3Config, {**GROUPED, **WINDOW}),
    "olmoe": (OlmoeConfig, {**GROUPED, **EXPERTS, "num_experts": 4}),
    "gpt_oss": (GptOssConfig, {**WIDE, **WINDOW, **EXPERTS, "num_local_experts": 4, "rope_parameters": ROTARY}),
    "seed_oss": (SeedOssConfig, {**WIDE, "residual_dropout": 0.1}),
    "apertus": (ApertusConfig, {**GROUPED, "rope_parameters": ROTARY}),
    "arcee": (ArceeConfig, GROUPED),
    "cohere2": (Cohere2Config, {**GROUPED, **WINDOW, "logit_scale": 1.0}),
    "starcoder2": (Starcoder2Config, {**GROUPED, "residual_dropout": 0.1, "embedding_dropout": 0.1}),
    "phi": (PhiConfig, GROUPED),
    "phi3": (Phi3Config, {**GROUPED, "sliding_window": 8}),
    "gpt2": (
        GPT2Config,
        {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 512, "bos_token_id": None, "eos_token_id": 1},
    ),
    "gpt_neox": (GPTNeoXConfig, {**SIZES, "use_parallel_residual": True}),
}
"""`model_type` → a configuration; where an architecture is of several kinds, these behind a comma."""


def decoder_model(name: str, vocabulary: int = 64) -> PreTrainedModel:
    """In eval mode. Gains and biases are drawn at random: at their initial values code that forgets them would pass."""
    made, sizes = CONFIGS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = Models.from_config(made(vocab_size=vocabulary, **sizes))
        with torch.no_grad():
            for path, parameter in model.named_parameters():
                if path.endswith("bias"):
                    parameter.normal_(std=0.2)
                elif parameter.dim() == 1:
                    parameter.add_(torch.empty_like(parameter).uniform_(-0.4, 0.4))
                elif parameter.dim() >= 2:
                    # Five times the usual size, so that attention is not flat.
                    parameter.normal_(
                        std=0.1 if isinstance(model.get_submodule(path.rpartition(".")[0]), nn.Embedding) else 0.2
                    )
    return model.eval()


def fitting(peft: list[dict], shape: MainShape) -> list[dict]:
    """Without LoRA at maps that a mixture of experts has not."""
    if not shape.experts:
        return peft
    return [
        {**kind, "targets": [each for each in kind["targets"] if each not in FEED_FORWARD]}
        if "targets" in kind
        else kind
        for kind in peft
    ]


def frozen(name: str, tokenizer: PreTrainedTokenizerFast) -> MainModel:
    """The model as a frozen main model."""
    main = DecoderOnly(decoder_model(name, len(tokenizer)), tokenizer, name=name)
    main.freeze()
    return main
