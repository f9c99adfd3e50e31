"""The source of a system's PEFT parameters: a hypernetwork that generates them, or one learned set."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedTokenizerBase

from hart.errors import HartError, first_line
from hart.hypernetwork.config import HyperNetworkConfig, no_fusion
from hart.hypernetwork.network import HyperNetwork
from hart.hypernetwork.schemes.base import SCHEMES
from hart.model.base_checkpoint import load_base, loading
from hart.model.config import ModelConfig
from hart.model.main_model import MainModel
from hart.model.weights import check_floats, check_model_files, read_tensors
from hart.peft.learned import LearnedWeights
from hart.runtime.extensions import find

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"

PeftSource = HyperNetwork | LearnedWeights
"""A source of PEFT parameters. None in its place means full fine-tuning of the main model."""


def new_peft_source(model: ModelConfig, main: MainModel) -> tuple[PeftSource | None, PreTrainedTokenizerBase | None]:
    """The untrained source of a configuration, and the tokenizer with which its hypernetwork reads tasks.

    The tokenizer is None if it is the main model's. Random numbers are drawn from torch's generator.

    Raises:
        HartError: there is no such checkpoint, or parts do not fit each other.
    """
    if model.weights == "generated":
        shared: dict[str, Any] = {
            "decoder_layers": model.decoder_layers,
            "scheme": model.scheme,
            "peft": model.peft,
            "dropout": model.dropout,
            "memory_in_front": model.memory_in_front,
            "head_bias": model.head_bias,
        }
        if model.encoder == "main_model":
            layers, width = model.encoder_layers, model.hypernetwork_width
            return HyperNetwork.from_states(main.model, layers=layers, width=width, **shared), None
        init = None if model.hypernetwork_init is None else load_base(model.hypernetwork_init)
        network = HyperNetwork.from_base(
            main.model,
            source=None if init is None else init.model,
            tied_encoder=model.tied_encoder,
            **shared,
        )
        return network, None if init is None or main.shape.has_encoder else init.tokenizer
    if model.weights == "none":
        return None, None
    learned = LearnedWeights(model.peft, main.shape)
    learned.reset_parameters(main.model)
    return learned, None


def check_source(source: PeftSource | None, main: MainModel, *, fusion: bool, name: str = "") -> None:
    """Raise `HartError` if a source was made for another main model, or fusion lacks a cross-attention."""
    if source is not None and source.shape != main.shape:
        raise HartError(
            f"{name or 'hypernetwork'}: was made for a main model of {source.shape}, "
            f"and {main.name} has {main.shape}; use the base it was trained with"
        )
    if not main.shape.has_encoder and fusion and isinstance(source, HyperNetwork):
        raise HartError(no_fusion(main.name))


def load_peft_source(
    folder: Path, config: Mapping[str, Any], main: MainModel, dtype: torch.dtype | str
) -> PeftSource | None:
    """The source of a saved system, with its trained weights; those of a hypernetwork are converted to `dtype`.

    Raises:
        HartError: files are missing or damaged, or do not fit each other.
    """
    weights = config["system"]["weights"]
    if weights == "none":
        return None
    if weights == "learned":
        learned = LearnedWeights(config["peft"], main.shape)
        load_weights(learned, folder)
        return learned
    scheme = config.get("scheme")
    if isinstance(scheme, Mapping) and find(SCHEMES, scheme.get("name")) is None:
        raise HartError(
            f"{folder}: has the scheme {scheme.get('name')!r}, which this version of hart does not have; if it is one "
            "of your own, import its module first, or install its package (CONTRIBUTING.md)"
        )
    check_model_files(folder)
    for path in folder.glob("model*.safetensors"):  # not a checkpoint's random states, which are integers
        check_floats(path)
    try:
        made = HyperNetworkConfig.from_dict(dict(config))
        with loading:
            # transformers knows no names such as "torch.bfloat16", which the base's loader accepts.
            own = dtype.removeprefix("torch.") if isinstance(dtype, str) else dtype
            return HyperNetwork.from_pretrained(folder, config=made, dtype=own)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise HartError(
            f"{folder}: cannot be loaded ({first_line(error)}); check that the download is complete"
        ) from error


def load_weights(module: nn.Module, folder: Path) -> None:
    """Copy all tensors of a saved system's model.safetensors into `module`.

    Raises:
        HartError: the file is missing or damaged, or holds other tensors.
    """
    path = folder / WEIGHTS_FILE
    check_floats(path)
    found = read_tensors(path)
    wanted = module.state_dict()
    wrong = [name for name in wanted if name not in found or found[name].shape != wanted[name].shape]
    wrong += [name for name in found if name not in wanted]
    if wrong:
        raise HartError(f"{path}: does not fit {CONFIG_FILE} at {min(wrong)}; get both files from the same model")
    module.load_state_dict(found)
