"""Loading a base checkpoint with its tokenizer, with checks that both are complete and belong together."""

import threading
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.utils.quantization_config import Mxfp4Config

from hart.errors import HartError, first_line
from hart.model.bundled import resolve_base
from hart.model.weights import check_model_files
from hart.peft.architectures import architecture
from hart.runtime.third_party.transformers import forget_renamings

LEAST_VOCABULARY = 3
"""Least number of pieces beside special tokens. If its files are missing, transformers builds a tokenizer with one."""

WITH_IMAGES = ("gemma3", "gemma4", "gemma4_unified", "mistral3", "qwen3_5", "qwen3_5_moe")
"""Architectures that read images and text; only their text part is loaded."""

TEXT_PART = {r"^(model\.)?language_model\.(model\.)?(?!lm_head)": "model.", r"^language_model\.lm_head": "lm_head"}
"""Pattern of weight names in a checkpoint of images and text → replacement in the names of its text part."""

PACKED = tuple(f"{experts}_{part}" for experts in ("gate_up_proj", "down_proj") for part in ("blocks", "scales"))
"""Names of the weights of gpt-oss's experts in a checkpoint that has them in four bits."""


class NoCheckpointError(HartError):
    """There is no checkpoint of the given name."""


# transformers changes defaults of the whole process while it loads (dtype, initialisation).
loading = threading.Lock()


class BaseCheckpoint(NamedTuple):
    """A loaded base. `commit` is the commit on the hub, None for a folder; `is_part`: text part of a checkpoint."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    commit: str | None
    is_part: bool = False


def load_base(name: str, *, revision: str | None = None, dtype: torch.dtype | str | None = None) -> BaseCheckpoint:
    """The checkpoint in a folder, on the hub or in the package (`mini-base`), in eval mode.

    Args:
        revision: branch, tag or commit on the hub; None: the default branch.
        dtype: type of the weights in memory; None or "auto": as stored.

    Raises:
        HartError: there is no such checkpoint (`NoCheckpointError`), its architecture has no table of sites, its
            weights are quantised or in float16 (which overflows), its files are incomplete or damaged, or the tokenizer
            is missing or belongs to another model.
    """
    wanted = _dtype(dtype)
    source = resolve_base(name)
    if Path(source).is_dir():
        check_model_files(Path(source))
    at_revision = _at_revision(source, revision)
    with loading:
        try:
            config, is_part = _read_config(source, **at_revision)
        except (OSError, ValueError) as error:
            raise NoCheckpointError(
                f"{name}: no checkpoint there ({first_line(error)}); give its folder, or a hub name with a "
                "network connection"
            ) from error
        unpacked = _unpacking(name, config)
        try:
            is_t5 = architecture(config).has_encoder
        except HartError as error:
            raise HartError(f"{name}: {error}") from None
        commit = _commit(source, revision)
        if commit is not None:
            at_revision = {"revision": commit}  # a branch may move between two files
        try:
            loader: Any = T5ForConditionalGeneration if is_t5 else AutoModelForCausalLM
            loaded: Any = loader.from_pretrained(
                source,
                config=config,
                dtype=wanted or "auto",
                key_mapping=TEXT_PART if is_part else None,
                output_loading_info=True,
                **unpacked,
                **at_revision,
            )
        except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
            raise HartError(f"{name}: cannot be loaded ({first_line(error)})") from error
        tokenizer = _tokenizer(name, source, at_revision)
    model, report = loaded
    forget_renamings(model, (*TEXT_PART, *PACKED) if is_part else PACKED)
    for what, problem in (("missing_keys", "lacks"), ("mismatched_keys", "has a wrong shape for")):
        if report[what]:
            key = min(each if isinstance(each, str) else each[0] for each in report[what])
            raise HartError(f"{name}: the checkpoint {problem} {key}; download it again")
    if model.dtype == torch.float16:
        raise HartError(f"{name}: is stored in float16, which may overflow; load it with dtype float32 or bfloat16")
    if not is_t5 and tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # padding is masked: any token will do
    _check_tokenizer(name, tokenizer, model)
    if is_t5 and model.config.decoder_start_token_id is None:
        model.config.decoder_start_token_id = tokenizer.pad_token_id  # as every T5 has it
    return BaseCheckpoint(model.eval(), tokenizer, commit, is_part)


def read_base_config(source: str | Path, **at_revision: Any) -> PreTrainedConfig:
    """The configuration of a checkpoint.

    For an mT5 it is a T5 v1.1 configuration, as they differ only in the vocabulary. For a checkpoint that reads images
    and text (Gemma 3 from 4B on) it is the configuration of the text part.

    Raises:
        OSError, ValueError: transformers finds no configuration.
    """
    return _read_config(source, **at_revision)[0]


def _read_config(source: str | Path, **at_revision: Any) -> tuple[PreTrainedConfig, bool]:
    """The result of `read_base_config`, and whether it is that of a text part."""
    config: Any = AutoConfig.from_pretrained(source, **at_revision)
    if config.model_type == "mt5":
        # The output head of an mT5 is not tied to the embeddings, whatever the file says, so its input is not scaled.
        changed = {"model_type": "t5", "architectures": None, "tie_word_embeddings": False}
        return T5Config(**{**config.to_dict(), **changed}), False
    if config.model_type not in WITH_IMAGES:
        return config, False
    text = config.text_config
    # Some checkpoints have the field only in the whole configuration, others in both.
    text.tie_word_embeddings = bool(text.tie_word_embeddings or config.tie_word_embeddings)
    if getattr(config, "quantization_config", None) is not None:
        text.quantization_config = config.quantization_config
    return text, True


def load_tokenizer(name: str, *, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint, without loading its weights.

    Raises:
        HartError: there is no tokenizer, or its files are damaged.
    """
    source = resolve_base(name)
    with loading:
        return _tokenizer(name, source, _at_revision(source, revision))


def _unpacking(name: str, config: PreTrainedConfig) -> dict[str, Any]:
    """The argument with which transformers unpacks gpt-oss's experts, which are stored in four bits (MXFP4).

    No generated parameters act on an expert's maps, so how precise these are stored does not matter here.

    Raises:
        HartError: weights are quantised in another way.
    """
    stored = getattr(config, "quantization_config", None)
    if stored is None:
        return {}
    if stored.get("quant_method") != "mxfp4":
        raise HartError(
            f"{name}: its weights are quantised, and generated parameters need their original scale; "
            "give the unquantised checkpoint, with dtype bfloat16 (model.dtype, --dtype)"
        )
    return {"quantization_config": Mxfp4Config(dequantize=True)}


def _at_revision(source: str, revision: str | None) -> dict[str, Any]:
    """The argument `revision` for transformers, left out for a folder."""
    return {} if revision is None or Path(source).is_dir() else {"revision": revision}


def _tokenizer(name: str, source: str, at_revision: dict[str, Any]) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(source, **at_revision)
    except Exception as error:  # the parsers of its files raise bare ones, too
        raise HartError(
            f"{name}: its tokenizer cannot be loaded ({first_line(error)}); check that tokenizer.json or spiece.model "
            "is complete"
        ) from error


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """The torch dtype, which must be one in which T5 can be computed; None: as stored."""
    if dtype is None or dtype == "auto":
        return None
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if found not in (torch.float32, torch.bfloat16, torch.float64):
        why = ", T5 overflows in float16" if found == torch.float16 else ""
        raise HartError(f"dtype must be float32 or bfloat16, not {str(dtype).removeprefix('torch.')}{why}")
    return found


def _commit(source: str, revision: str | None) -> str | None:
    """The commit that the hub's cache has for a revision; None for a folder."""
    if Path(source).is_dir():
        return None
    found = try_to_load_from_cache(source, "config.json", revision=revision)
    # …/snapshots/COMMIT/config.json
    return Path(found).parent.name if isinstance(found, str) else revision


def _check_tokenizer(name: str, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    special = set(tokenizer.all_special_tokens)
    if len([piece for piece in tokenizer.get_vocab() if piece not in special]) < LEAST_VOCABULARY:
        raise HartError(
            f"{name}: has no tokenizer (tokenizer.json or spiece.model is missing); get the files of the same model"
        )
    for field in ("pad_token_id", "eos_token_id"):
        if getattr(tokenizer, field) is None:
            raise HartError(
                f"{name}: its tokenizer has no {field}, which a main model needs; get the files of the same model"
            )
    embeddings: Any = model.get_input_embeddings()
    count = embeddings.weight.shape[0]
    # Gemma 3 adds tokens for images, for which a text-only model has no embeddings.
    vocabulary, added = tokenizer.get_vocab(), tokenizer.get_added_vocab()
    needed = {str(token) for token in (tokenizer.pad_token, tokenizer.eos_token, tokenizer.bos_token)}
    largest = max(number for piece, number in vocabulary.items() if piece not in added or piece in needed)
    if largest >= count:
        raise HartError(
            f"{name}: its tokenizer has token ids up to {largest}, and the model has {count} embeddings; "
            "get the files of the same model"
        )
