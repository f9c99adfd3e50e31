"""The networks of a configuration without weights: shapes on the meta device, built without data or downloads."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from hart.errors import HartError
from hart.hypernetwork.config import T5_FIELDS, HyperNetworkConfig, check_beside, new_decoder, no_fusion, no_t5
from hart.hypernetwork.main_states import chosen_layers
from hart.hypernetwork.network import HyperNetwork
from hart.hypernetwork.schemes.base import uses_decoder
from hart.model.base_checkpoint import read_base_config
from hart.model.bundled import resolve_base, resolve_model
from hart.model.folder import MODEL_TYPES, model_type_of, read_config
from hart.model.peft_source import PeftSource
from hart.model.weights import check_model_files, tensor_names
from hart.peft.architectures import architecture
from hart.peft.base import MainShape, build_kinds, row_blocks
from hart.peft.injection import learned_positions
from hart.peft.learned import LearnedWeights
from hart.peft.prefix import prefix_length
from hart.training.config import BASE_TEACHER, ModelConfig, RunConfig

# d_model, d_ff, layers of a stack, heads; d_kv is always 64. Published sizes of T5 1.1, also LM-adapted or Flan.
_SIZES = {
    "small": (512, 1024, 8, 6),
    "base": (768, 2048, 12, 12),
    "large": (1024, 2816, 24, 16),
    "xl": (2048, 5120, 24, 32),
    "xxl": (4096, 10240, 24, 64),
}
_HUB_NAMES = ("google/t5-{}-lm-adapt", "google/t5-v1_1-{}", "google/flan-t5-{}")


def _t5(d_model: int, d_ff: int, layers: int, heads: int, vocabulary: int = 32128) -> dict[str, Any]:
    return {
        "model_type": "t5",
        "vocab_size": vocabulary,
        "d_model": d_model,
        "d_kv": 64,
        "d_ff": d_ff,
        "num_layers": layers,
        "num_heads": heads,
        "feed_forward_proj": "gated-gelu",
    }


# All have tied input and output embeddings.
_QWEN3_06B = {
    "model_type": "qwen3",
    "vocab_size": 151936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": True,
}
_LLAMA_32_1B = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "tie_word_embeddings": True,
}
_SMOLLM2_135M = {
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}
KNOWN: dict[str, dict[str, Any]] = {
    **{name.format(size): _t5(*values) for name in _HUB_NAMES for size, values in _SIZES.items()},
    # T5 1.1 with a vocabulary of 101 languages.
    **{f"google/mt5-{size}": _t5(*values, vocabulary=250112) for size, values in _SIZES.items()},
    **dict.fromkeys(("Qwen/Qwen3-0.6B-Base", "Qwen/Qwen3-0.6B"), _QWEN3_06B),
    **dict.fromkeys(("meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-1B-Instruct"), _LLAMA_32_1B),
    **dict.fromkeys(("HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB/SmolLM2-135M-Instruct"), _SMOLLM2_135M),
}
"""Checkpoint → configuration, for estimates without a download."""


def base_config(name: str) -> Any:
    """The configuration of a base: a known hub name (without a download), a folder, or `mini-base`.

    Raises:
        HartError: the name is neither known, nor a folder, nor in the hub's cache; a file in the folder is damaged; or
            the architecture has no table of sites.
    """
    if name in KNOWN and not Path(name).is_dir():
        return AutoConfig.for_model(**KNOWN[name])
    if Path(resolve_base(name)).is_dir():
        check_model_files(Path(resolve_base(name)))
    try:
        config = read_base_config(resolve_base(name))
    except (OSError, ValueError) as error:
        patterns = [pattern.format("{small,base,large,xl,xxl}") for pattern in (*_HUB_NAMES, "google/mt5-{}")]
        known = ", ".join([*patterns, *(each for each in KNOWN if not each.startswith("google/"))])
        raise HartError(f"{name}: its sizes are unknown; give a folder, mini-base, or one of {known}") from error
    try:
        architecture(config)
    except HartError as error:
        raise HartError(f"{name}: {error}") from None
    return config


def _has_own_head(name: str) -> bool:
    weights = Path(resolve_base(name)) / "model.safetensors"
    if not weights.is_file():
        return name in KNOWN
    return "lm_head.weight" in tensor_names(weights)


@dataclass(frozen=True)
class Parts:
    """The networks of a configuration on the meta device, with shapes but without values.

    Attributes:
        shape: shape of the main model.
        untied_head: number of parameters of a T5 checkpoint's output matrix, which a newly built T5 shares.
        teacher, teacher_head: the main model of a teacher, and its untied head (`with_teacher`).
    """

    main: PreTrainedModel
    shape: MainShape
    untied_head: int
    peft_source: PeftSource | None
    teacher: PreTrainedModel | None = None
    teacher_head: int = 0


def check_trains(model: ModelConfig, shape: MainShape) -> None:
    """Raise `HartError` if the system has nothing to train: no rows, no fusion, and a frozen main model."""
    if model.train_main or model.fusion or model.memory_in_front:
        return
    if not sum(block.layers * block.rows for block in row_blocks(build_kinds(model.peft), shape)):
        raise HartError(
            "model.peft: its kinds have no rows, fusion is off and the main model is frozen, so nothing would be "
            "trained; give a prefix a length of 1 or more, or name another kind"
        )


def check_positions(config: RunConfig, main: PreTrainedModel) -> None:
    """Raise `HartError` if the longest sequences of a configuration exceed the learned positions of `main` (GPT-2).

    The check runs before training, so that no long batch fails later.
    """
    most, data = learned_positions(main), config.data
    if most is None:
        return
    if config.model.encoder == "main_model" and data.max_demonstrations_length > most:
        raise HartError(
            f"data.max_demonstrations_length is {data.max_demonstrations_length}, and {config.model.base}, which "
            f"encodes tasks, has {most} positions; lower it"
        )
    limit = "max_demonstrations_length" if data.demonstrations_to == "main" else "max_query_length"
    prefix = prefix_length(build_kinds(config.model.peft))
    # The last token of an answer is predicted, but not read.
    tokens = prefix + getattr(data, limit) + data.max_target_length - 1
    if tokens > most:
        raise HartError(
            f"data.{limit}: an input and its answer behind a prefix of {prefix} take up to {tokens} positions, and "
            f"{config.model.base} has {most}; lower it or data.max_target_length"
        )


def build(config: RunConfig) -> Parts:
    """All networks of a run, without weights.

    Raises:
        HartError: parts do not fit each other, as in `HartModel.from_config`, or there is nothing to train.
    """
    model, base = config.model, base_config(config.model.base)
    shape = MainShape.from_config(base)
    check_family(model, shape)
    check_trains(model, shape)
    main = _without_weights(base)
    check_positions(config, main)
    with torch.device("meta"):
        peft_source: PeftSource | None = None
        if model.weights == "generated":
            peft_source = HyperNetwork(_hypernetwork_config(model, shape))
        elif model.weights == "learned":
            peft_source = LearnedWeights(model.peft, shape)
    return Parts(main, shape, _untied_head(model.base, base), peft_source)


def with_teacher(config: RunConfig, parts: Parts) -> Parts:
    """The parts with the main model of the run's teacher; if the base is the teacher, this is `parts.main`.

    Raises:
        HartError: the sizes of the teacher are unknown.
    """
    name = config.distillation.teacher
    if name is None or name == BASE_TEACHER:
        return replace(parts, teacher=parts.main) if name else parts
    try:
        saved = Path(resolve_model(name))
        is_system = saved.is_dir() and model_type_of(name) in MODEL_TYPES
        checkpoint = read_config(saved)["system"]["base"] if is_system else name
        base = base_config(checkpoint)
    except HartError as error:
        raise HartError(f"distillation.teacher: {error}") from None
    return replace(parts, teacher=_without_weights(base), teacher_head=_untied_head(checkpoint, base))


def _without_weights(base: PreTrainedConfig) -> PreTrainedModel:
    """The main model of a configuration, on the meta device."""
    builder: Any = T5ForConditionalGeneration if base.is_encoder_decoder else AutoModelForCausalLM.from_config
    with torch.device("meta"):
        return builder(base)


def _untied_head(name: str, base: Any) -> int:
    """Number of parameters of a T5 checkpoint's own output matrix.

    A newly built T5 ties it to the embeddings; many checkpoints do not, whatever their configuration says.
    """
    return base.vocab_size * base.d_model if base.is_encoder_decoder and _has_own_head(name) else 0


def check_family(model: ModelConfig, shape: MainShape) -> None:
    """Raise `HartError` for options that a base of this family does not support."""
    if model.weights != "generated":
        return
    check_beside(
        shape,
        memory_in_front=model.memory_in_front,
        main_states=model.encoder == "main_model",
        tied_encoder=model.tied_encoder,
    )
    if model.fusion and not shape.has_encoder:
        raise HartError(no_fusion(model.base))


def _hypernetwork_config(model: ModelConfig, shape: MainShape) -> HyperNetworkConfig:
    if model.encoder == "main_model":
        t5 = new_decoder(model.hypernetwork_width or shape.d_model, model.decoder_layers)
    else:
        t5 = _checkpoint_sizes(model)
    return HyperNetworkConfig(
        t5=t5,
        decoder_layers=model.decoder_layers,
        scheme=dict(model.scheme),
        peft=[kind.to_config() for kind in build_kinds(model.peft)],
        main=asdict(shape),
        tied_encoder=model.tied_encoder,
        encoder_layers=(
            chosen_layers(model.encoder_layers, shape.decoder_layers) if model.encoder == "main_model" else None
        ),
        memory_in_front=model.memory_in_front,
        head_bias=model.head_bias,
    )


def _checkpoint_sizes(model: ModelConfig) -> dict[str, Any]:
    """The `T5_FIELDS` of the checkpoint from which the hypernetwork is initialised."""
    name = model.hypernetwork_init or model.base
    t5 = base_config(name)
    if not isinstance(t5, T5Config):
        raise HartError(no_t5(name, t5.model_type))
    if model.decoder_layers > (t5.num_decoder_layers or t5.num_layers) and uses_decoder(model.scheme):
        raise HartError(f"model.decoder_layers is {model.decoder_layers}; {name} has fewer")
    return {field: getattr(t5, field) for field in T5_FIELDS}
