"""The folder of a saved system: config.json, model.safetensors and README.md, with main/ and tokenizer/ if needed.

model.safetensors holds the hypernetwork or the learned PEFT parameters. A frozen base is named, not stored; a trained
main model is stored in main/ as a plain checkpoint, which transformers can load. tokenizer/ is the hypernetwork's
tokenizer, if it differs from the main model's.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from hart.data.input_format import InputFormat
from hart.errors import HartError, first_line
from hart.hypernetwork.config import HyperNetworkConfig
from hart.hypernetwork.network import HyperNetwork
from hart.hypernetwork.schemes.base import with_defaults
from hart.model.base_checkpoint import NoCheckpointError, loading
from hart.model.bundled import BASES, MODELS, resolve_base, resolve_model
from hart.model.card import model_card
from hart.model.main_model import MainModel
from hart.model.peft_source import CONFIG_FILE, WEIGHTS_FILE, PeftSource, load_peft_source
from hart.peft.base import PeftKind
from hart.peft.learned import LearnedWeights
from hart.runtime.files import read_json
from hart.runtime.fingerprints import difference

MAIN_FOLDER, READER_FOLDER = "main", "tokenizer"
PLAIN_MODEL_TYPE = "hart-system"
"""model_type of a system without a hypernetwork."""

MODEL_TYPES = (HyperNetworkConfig.model_type, PLAIN_MODEL_TYPE)
"""Values of model_type in the config.json of a saved system; a plain checkpoint has another one."""

FIELDS = ("base", "base_revision", "base_fingerprint", "weights", "fusion", "train_main", "input_format")
"""Fields that config.json must have under `system`."""

MAKE = (
    "weights",
    "train_main",
    "base",
    "scheme",
    "decoder_layers",
    "tied_encoder",
    "encoder_layers",
    "memory_in_front",
    "head_bias",
    "peft",
)
"""Fields that must be equal for one system to start from the other's weights."""

SIZES = ("vocab_size", "d_model", "d_kv", "d_ff", "num_heads", "num_layers")
"""`T5_FIELDS` of both hypernetworks that must be equal, too."""


def model_type_of(name: str) -> str | None:
    """The `model_type` of a folder, hub name or bundled name; None if there is none, which the loader reports."""
    try:
        config, _ = PreTrainedConfig.get_config_dict(resolve_base(resolve_model(name)))
    except (OSError, ValueError):
        return None
    return config.get("model_type")


def fetch(name: str, revision: str | None) -> Path:
    """The local folder of a saved model or of a bundled one; downloads it if `name` is neither.

    Raises:
        HartError: there is nothing of that name.
    """
    name = resolve_model(name)
    folder = Path(name)
    if folder.is_dir():
        return folder
    if name in BASES:
        raise HartError(
            f"{name}: is a base without a hypernetwork; give a HART model, such as {' or '.join(MODELS)} (or, to hart "
            "evaluate, --system base or base-in-context)"
        )
    try:
        return Path(snapshot_download(name, revision=revision))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise HartError(
            f"{name}: no such folder, and no such model on the hub or in its cache; give a folder (without a network, "
            f"one downloaded elsewhere), a hub name, {' or '.join(MODELS)}"
        ) from error


def load_system(
    name: str, *, revision: str | None, base: str | None, dtype: torch.dtype | str, attention: str
) -> tuple[dict[str, Any], bool]:
    """The arguments of `HartModel` for a saved system, and whether its main model was trained.

    Raises:
        HartError: as in `HartModel.from_pretrained`.
    """
    folder = fetch(name, revision)
    config = read_config(folder)
    info = config["system"]
    train_main = info["train_main"]
    if train_main and base is not None:
        raise HartError(f"{name}: contains its own trained main model; leave out the base {base}")
    try:
        main = MainModel.from_pretrained(
            str(folder / MAIN_FOLDER) if train_main else base or info["base"],
            revision=None if train_main or base else info["base_revision"],
            dtype=dtype,
            attention=attention,
        )
    except NoCheckpointError as error:
        if train_main or base:
            raise
        raise HartError(f"{error}; it is the base of {name}; give its folder as base=… (--base)") from error
    if not train_main and info["base_fingerprint"] != main.fingerprint:
        raise HartError(
            f"{folder}: was trained for the base {info['base']}, whose "
            f"{difference(info['base_fingerprint'], main.fingerprint)} from {main.name}; give the right one as base"
        )
    arguments = {
        "main": main,
        "peft_source": load_peft_source(folder, config, main, dtype),
        "fusion": info["fusion"],
        "input_format": read_input_format(folder, info["input_format"]),
        "reader": read_reader(folder, config, main.shape.has_encoder),
        "name": name,
        "origin": {key: info[key] for key in main.identity},
    }
    return arguments, train_main


def read_reader(folder: Path, config: Mapping[str, Any], has_encoder: bool) -> PreTrainedTokenizerBase | None:
    """The hypernetwork's own tokenizer, which every T5 beside a decoder-only base has; None if it has none.

    Args:
        has_encoder: whether the base is an encoder-decoder.

    Raises:
        HartError: the tokenizer is missing or damaged.
    """
    beside = config["model_type"] != PLAIN_MODEL_TYPE and config.get("encoder_layers") is None
    own = beside and not has_encoder
    if not own and not (folder / READER_FOLDER).is_dir():
        return None
    try:
        with loading:
            return AutoTokenizer.from_pretrained(folder / READER_FOLDER)
    except Exception as error:  # the parsers of its files raise bare ones, too
        raise HartError(
            f"{folder / READER_FOLDER}: the hypernetwork's tokenizer cannot be loaded ({first_line(error)}); check "
            "that the download is complete"
        ) from error


def read_config(folder: Path) -> dict[str, Any]:
    """The checked config.json of a saved system.

    Raises:
        HartError: the file cannot be read, does not belong to a saved system, or lacks a field.
    """
    path = folder / CONFIG_FILE
    absent = f"{path}: no such file; give the folder of a saved HART model"
    if (folder / "adaptation.json").is_file():
        absent = f"{folder}: is an adaptation, not a model; use it with hart predict"
    elif (folder / "final" / CONFIG_FILE).is_file():
        absent = f"{folder}: is a run, not a model; give {folder / 'final'}"
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
        HartError: it has fields or values unknown to this version.
    """
    try:
        return InputFormat(**fields)
    except HartError as error:
        raise HartError(f"{folder / CONFIG_FILE}: system.input_format.{error}") from None
    except TypeError as error:
        raise HartError(
            f"{folder / CONFIG_FILE}: system.input_format has fields of another version of hart; use that version"
        ) from error


def check_make(name: str, saved: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Raise `HartError` unless a saved system has the same make (`MAKE`, `SIZES`) as the system in `own`.

    A field that one of the two lacks counts as equal.

    Args:
        name: name of the saved system, as given in `model.init_from`.
        saved: config.json of the saved system.
        own: config.json fields of the system that shall start from its weights.
    """
    said, own = {**saved.get("t5", {}), **saved, **saved["system"]}, {**own.get("t5", {}), **own}
    if "scheme" in said:
        said["scheme"] = with_defaults(said["scheme"])  # older files lack newer options
    for key in (*MAKE, *SIZES):
        if key in said and key in own and said[key] != own[key]:
            raise HartError(f"model.init_from: {name} has {key} {said[key]}, this run {own[key]}; they must be equal")


def write_folder(
    folder: Path,
    source: PeftSource | None,
    main: MainModel | None,
    info: Mapping[str, Any],
    kinds: Sequence[PeftKind],
    card: str | None = None,
    about: str = "",
    weights: Mapping[str, Tensor] | None = None,
    reader: PreTrainedTokenizerBase | None = None,
) -> None:
    """Write the files of a system into an existing folder.

    Args:
        source: the hypernetwork or learned parameters.
        main: the main model if it was trained; None stores only the name of the base.
        info: the fields under `system` in config.json, at least `FIELDS`.
        kinds: the PEFT kinds that the source produces.
        card: text of README.md; None writes one from config.json.
        about: Markdown appended to that card.
        weights: trained values of source and main model, by their names in the system; None: the modules' own.
        reader: the hypernetwork's tokenizer, if it has its own.
    """
    if isinstance(source, HyperNetwork):
        source.config.system = dict(info)
        source.save_pretrained(folder, state_dict=_below("hypernetwork.", weights))
        config = source.config.to_dict()
        if reader is not None:
            reader.save_pretrained(folder / READER_FOLDER)
    else:
        config = {"model_type": PLAIN_MODEL_TYPE, "peft": [kind.to_config() for kind in kinds], "system": info}
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if isinstance(source, LearnedWeights):
        values = _below("learned.", weights) or source.state_dict()
        save_file({name: value.contiguous() for name, value in values.items()}, folder / WEIGHTS_FILE)
    if main is not None:
        main.model.save_pretrained(folder / MAIN_FOLDER, state_dict=_below("main.model.", weights))
        main.tokenizer.save_pretrained(folder / MAIN_FOLDER)
    (folder / "README.md").write_text(card if card is not None else model_card(config, about), encoding="utf-8")


def _below(prefix: str, weights: Mapping[str, Tensor] | None) -> dict[str, Tensor] | None:
    if weights is None:
        return None
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def upload(folder: Path, repo_id: str, *, private: bool, revision: str | None) -> str:
    """Upload the files of a saved system to the hub; returns the address of the commit.

    Raises:
        HartError: the hub refuses, or cannot be reached.
    """
    try:
        api = HfApi()
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=repo_id, folder_path=folder, revision=revision)
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise HartError(f"{repo_id}: upload failed ({first_line(error)})") from error
    return str(commit)
