"""The folder of a saved system: config.json, model.safetensors, README.md, and main/ where the main model was trained.

model.safetensors holds what was trained beside the main model: a hypernetwork, or learned PEFT parameters. A frozen
base is named, not stored. A trained main model lies in main/ as a plain T5 checkpoint, which transformers can load.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from hart.data.input_format import InputFormat
from hart.errors import HartError
from hart.hypernetwork.network import HyperNetwork, HyperNetworkConfig
from hart.model.card import model_card
from hart.model.main_model import MainModel
from hart.model.weights import check_floats, check_model_files, read_tensors
from hart.peft import PeftKind
from hart.peft.learned import LearnedWeights
from hart.runtime.files import read_json

CONFIG_FILE, WEIGHTS_FILE, MAIN_FOLDER = "config.json", "model.safetensors", "main"
PLAIN_MODEL_TYPE = "hart-system"
"""model_type of a system without a hypernetwork."""

MODEL_TYPES = (HyperNetworkConfig.model_type, PLAIN_MODEL_TYPE)
"""model_type of a saved system, by which it is told from a plain T5."""

FIELDS = ("base", "base_revision", "base_fingerprint", "fusion", "input_format")
"""What config.json must say under `system`."""


def fetch(name: str, revision: str | None) -> Path:
    """The local folder of a saved model; downloads it if `name` is no folder.

    Raises:
        HartError: there is nothing of that name.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder
    try:
        return Path(snapshot_download(name, revision=revision))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise HartError(
            f"{name}: neither a folder nor a model that the hub has or that lies in its cache; "
            "give a folder, a hub name or mini"
        ) from error


def read_config(folder: Path) -> dict[str, Any]:
    """The checked config.json of a saved system.

    Raises:
        HartError: it cannot be read, is that of something else, or lacks a field.
    """
    path = folder / CONFIG_FILE
    absent = f"{path}: no such file; is {folder} the folder of a saved HART model?"
    config: Any = read_json(path, "the configuration of a model", missing=absent)
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind not in MODEL_TYPES:
        raise HartError(
            f"{path}: model_type is {kind!r}, not {HyperNetworkConfig.model_type!r}; "
            "give the folder of a saved HART model (a run's final/), not of a base"
        )
    info = config.get("system")
    missing = [name for name in FIELDS if name not in info] if isinstance(info, dict) else ["base"]
    if missing:
        raise HartError(f"{path}: field system.{missing[0]} is missing; the model was not saved by HartModel")
    return config


def read_input_format(folder: Path, fields: Any) -> InputFormat:
    """The input format in a config.json.

    Raises:
        HartError: it has fields or values that this version does not know.
    """
    try:
        return InputFormat(**fields)
    except HartError as error:
        raise HartError(f"{folder / CONFIG_FILE}: system.input_format.{error}") from None
    except TypeError as error:
        raise HartError(
            f"{folder / CONFIG_FILE}: system.input_format has other fields than this version of hart knows"
        ) from error


def check_make(name: str, saved: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Raise `HartError` unless the system in a config.json is made as `own` says; what it does not say is equal.

    Args:
        name: of the saved system, as the user gave it in `model.init_from`.
        saved: its config.json.
        own: what the system that takes over its weights is made of.
    """
    said = {**saved, **saved["system"]}
    for key, value in own.items():
        if said.get(key, value) != value:
            raise HartError(f"model.init_from: {name} has {key} {said[key]}, this run {value}; they must be equal")


def write_folder(
    folder: Path,
    adapter: HyperNetwork | LearnedWeights | None,
    main: MainModel | None,
    info: Mapping[str, Any],
    kinds: Sequence[PeftKind],
    card: str | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Put the files of a system into a folder that exists.

    Args:
        adapter: what was trained beside the main model.
        main: the main model, where it was trained; None names the base only.
        info: what config.json says under `system`, with at least `FIELDS`.
        kinds: the PEFT kinds that the adapter makes.
        card: text of README.md; None writes one from config.json.
        weights: trained values of both, under their names in the system; None takes those in the modules.
    """
    if isinstance(adapter, HyperNetwork):
        adapter.config.system = dict(info)
        adapter.save_pretrained(folder, state_dict=_below("hypernetwork.", weights))
        config = adapter.config.to_dict()
    else:
        config = {"model_type": PLAIN_MODEL_TYPE, "peft": [kind.to_config() for kind in kinds], "system": info}
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if isinstance(adapter, LearnedWeights):
        values = _below("learned.", weights) or adapter.state_dict()
        save_file({name: value.contiguous() for name, value in values.items()}, folder / WEIGHTS_FILE)
    if main is not None:
        main.model.save_pretrained(folder / MAIN_FOLDER, state_dict=_below("main.model.", weights))
        main.tokenizer.save_pretrained(folder / MAIN_FOLDER)
    (folder / "README.md").write_text(card if card is not None else model_card(config), encoding="utf-8")


def _below(prefix: str, weights: Mapping[str, Tensor] | None) -> dict[str, Tensor] | None:
    if weights is None:
        return None
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def load_adapter(
    folder: Path, config: Mapping[str, Any], main: MainModel, dtype: torch.dtype | str
) -> HyperNetwork | LearnedWeights | None:
    """What adapts, with its trained weights. Those of a hypernetwork are in `dtype`, however the file holds them.

    Raises:
        HartError: files are missing or damaged, or do not fit each other.
    """
    weights = config["system"].get("weights", "generated")
    if weights == "none":
        return None
    if weights == "learned":
        learned = LearnedWeights(config["peft"], main.shape)
        load_weights(learned, folder)
        return learned
    check_model_files(folder)
    for path in folder.glob("*.safetensors"):
        check_floats(path)
    try:
        made = HyperNetworkConfig.from_dict(dict(config))
        return HyperNetwork.from_pretrained(folder, config=made, dtype=dtype)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise HartError(f"{folder}: cannot be loaded ({reason}); is the download complete?") from error


def load_weights(module: nn.Module, folder: Path) -> None:
    """Copy model.safetensors of a saved system into `module`, every tensor of it.

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


def upload(folder: Path, repo_id: str, *, private: bool, revision: str | None) -> str:
    """Put the files of a saved system on the hub; returns the address of the commit.

    Raises:
        HartError: the hub refuses, or cannot be reached.
    """
    try:
        api = HfApi()
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=repo_id, folder_path=folder, revision=revision)
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise HartError(f"{repo_id}: upload failed ({reason})") from error
    return str(commit)
