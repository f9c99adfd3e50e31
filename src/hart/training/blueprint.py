"""The networks of a configuration without weights: shapes on the meta device, built without data or downloads."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, T5Config, T5ForConditionalGeneration

from hart.errors import HartError
from hart.hypernetwork.config import T5_FIELDS, HyperNetworkConfig
from hart.hypernetwork.network import HyperNetwork
from hart.hypernetwork.schemes.base import uses_decoder
from hart.model.bundled import resolve_base
from hart.model.peft_source import PeftSource
from hart.model.weights import check_model_files, tensor_names
from hart.peft.base import MainShape, build_kinds, row_blocks
from hart.peft.learned import LearnedWeights
from hart.training.config import ModelConfig, RunConfig

# d_model, d_ff, layers of a stack, heads; d_kv is 64 throughout. T5 1.1, LM-adapted or instruction-tuned, as published.
_SIZES = {
    "small": (512, 1024, 8, 6),
    "base": (768, 2048, 12, 12),
    "large": (1024, 2816, 24, 16),
    "xl": (2048, 5120, 24, 32),
    "xxl": (4096, 10240, 24, 64),
}
_HUB_NAMES = ("google/t5-{}-lm-adapt", "google/t5-v1_1-{}", "google/flan-t5-{}")
KNOWN = {name.format(size): values for name in _HUB_NAMES for size, values in _SIZES.items()}
"""Checkpoints whose sizes need no download."""


def base_config(name: str) -> T5Config:
    """The configuration of a base: of a known hub name without a download, of a folder, or of `mini-base`.

    Raises:
        HartError: neither known, nor a folder, nor in the hub's cache; or a damaged file in the folder.
    """
    if name in KNOWN and not Path(name).is_dir():
        d_model, d_ff, layers, heads = KNOWN[name]
        return T5Config(
            vocab_size=32128, d_model=d_model, d_kv=64, d_ff=d_ff, num_layers=layers, num_heads=heads,
            feed_forward_proj="gated-gelu",
        )  # fmt: skip
    if Path(resolve_base(name)).is_dir():
        check_model_files(Path(resolve_base(name)))
    try:
        config = AutoConfig.from_pretrained(resolve_base(name))
    except (OSError, ValueError) as error:
        known = ", ".join(pattern.format("{small,base,large,xl,xxl}") for pattern in _HUB_NAMES)
        raise HartError(f"{name}: its sizes are not known here; give a folder, mini-base, or one of {known}") from error
    if not isinstance(config, T5Config):
        raise HartError(f"{name}: is a {config.model_type} model; estimates are of T5 checkpoints alone")
    return config


def _has_own_head(name: str) -> bool:
    weights = Path(resolve_base(name)) / "model.safetensors"
    if not weights.is_file():
        return name in KNOWN
    return "lm_head.weight" in tensor_names(weights)


@dataclass(frozen=True)
class Parts:
    """The networks of a configuration on the meta device; shapes without numbers."""

    main: T5ForConditionalGeneration
    untied_head: int
    peft_source: PeftSource | None


def check_trains(model: ModelConfig, shape: MainShape) -> None:
    """Raise `HartError` if no weight of such a system can learn: no rows, no fusion, and a frozen main model."""
    if model.train_main or model.fusion or model.memory_in_front:
        return
    if not sum(block.layers * block.rows for block in row_blocks(build_kinds(model.peft), shape)):
        raise HartError(
            "model.peft: its kinds have no rows, fusion is off and the main model is frozen, so nothing would be "
            "trained; give a prefix a length of 1 or more, or name another kind"
        )


def build(config: RunConfig) -> Parts:
    """All networks of a run, without weights.

    Raises:
        HartError: parts that do not fit each other, as `HartModel.from_config` says, or nothing to train.
    """
    t5 = base_config(config.model.base)
    shape = MainShape.from_config(t5)
    check_trains(config.model, shape)
    with torch.device("meta"):
        main = T5ForConditionalGeneration(t5)
        peft_source: PeftSource | None = None
        if config.model.weights == "generated":
            layers = config.model.decoder_layers
            if layers > (t5.num_decoder_layers or t5.num_layers) and uses_decoder(config.model.scheme):
                raise HartError(f"model.decoder_layers is {layers}; {config.model.base} has fewer")
            peft_source = HyperNetwork(
                HyperNetworkConfig(
                    t5={name: getattr(t5, name) for name in T5_FIELDS},
                    decoder_layers=config.model.decoder_layers,
                    scheme=dict(config.model.scheme),
                    peft=[kind.to_config() for kind in build_kinds(config.model.peft)],
                    main=shape.to_config(),
                    tied_encoder=config.model.tied_encoder,
                )
            )
        elif config.model.weights == "learned":
            peft_source = LearnedWeights(config.model.peft, shape)
    # A newly built T5 shares its output matrix; many checkpoints do not, whatever their configuration says.
    untied = t5.vocab_size * t5.d_model if _has_own_head(config.model.base) else 0
    return Parts(main, untied, peft_source)
