"""Export of adaptations: adapters for the PEFT library, and bases with the adaptation merged into their weights.

LoRA, (IA)³ and the prefixes of a decoder-only model are exported exactly, as PEFT computes the same. Prefixes of a T5
are not exact: PEFT puts them only into the decoder's key/value cache, where T5 gives them the relative bias of earlier
tokens, while ours have bias 0. A memory in front of a decoder-only model becomes rows of a prefix
(`hart.model.memory_prefix`) if the positions allow it; PEFT has no other place for a memory. `what_is_lost` lists the
losses; a lossy export must be requested.

A model may fuse several maps into one (GPT-2's `c_attn`). Each map has its own LoRA here; PEFT has one for the fused
map, in which their ranks are concatenated, with zeros for the outputs of the other maps.
"""

import copy
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hart.errors import HartError
from hart.model.adaptation import Adaptation
from hart.model.export_card import export_card
from hart.model.main_model import MainModel
from hart.model.memory_prefix import as_prefixes, why_not
from hart.peft import injection
from hart.peft.architectures import architecture
from hart.peft.base import MainShape
from hart.peft.ia3 import Ia3
from hart.peft.lora import Lora
from hart.peft.prefix import Prefix
from hart.runtime.files import new_directory, read_json, write_json

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

_IA3_SITES = {"key": "k", "value": "v", "ff": "wo", "cross_key": "cross_k", "cross_value": "cross_v"}


def what_is_lost(adaptation: Adaptation, main: MainModel | None = None) -> list[str]:
    """The losses of an export to PEFT, one phrase each; empty if the export is exact.

    Args:
        main: the base, which decides whether a memory can be kept. Without it, a memory that some bases can keep is not
            listed.

    Raises:
        HartError: no part of the adaptation can be exported.
    """
    if main is not None:
        adaptation = _without_memory(adaptation, main)
    elif adaptation.memory is not None and not adaptation.kinds:
        return []
    kind = _exportable(adaptation)
    lost = []
    undecided = main is None and isinstance(kind, Prefix) and not _of_encoder(adaptation)
    if adaptation.memory is not None and not undecided:
        reason = "" if main is None else f" ({why_not(adaptation, main)})"
        lost.append(f"the memory: the main model no longer attends to the encoded demonstrations{reason}")
    if isinstance(kind, Prefix) and _of_encoder(adaptation):
        lost.append("the prefixes of the encoder, which PEFT lacks for T5")
        lost.append("the bias of the decoder's prefixes: 0 here, T5's relative bias of earlier tokens in PEFT")
        if kind.cross:
            lost.append("the prefixes of cross-attention, which PEFT lacks")
    if adaptation.input_format.in_context:
        lost.append("the demonstrations that the main model reads before each query; put them there yourself")
    return lost


def to_peft(adaptation: Adaptation, main: MainModel, *, lossy: bool = False) -> "PeftModel":
    """The adapted base as a model of the PEFT library, in memory.

    The result shares the weights of `main`, except those of adapted modules, which are copied: PEFT merges in place,
    which would silently change `main`. Its `save_pretrained` writes the same files as `save_peft`.

    Args:
        adaptation: an adaptation to one task.
        lossy: accept the losses that `what_is_lost` lists.

    Raises:
        HartError: PEFT is not installed or lacks the kind, the base is another one, or the export would be lossy and
            `lossy` is False.
    """
    model = _wrapped(adaptation, main, lossy)
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            for parameter in module.get_base_layer().parameters():
                parameter.data = parameter.data.clone()
    return model


def _wrapped(adaptation: Adaptation, main: MainModel, lossy: bool) -> "PeftModel":
    """As `to_peft`, but sharing all weights of `main`."""
    import_peft()
    from peft import get_peft_model
    from peft.utils import set_peft_model_state_dict

    main.check_adaptation(adaptation)
    if main.shape.attention is not None and any(isinstance(kind, Prefix) for kind in adaptation.kinds):
        raise HartError(
            "PEFT's prefixes are for all layers, and those of this base are for some alone; use --format safetensors"
        )
    refuse_loss(adaptation, lossy, main)
    model = get_peft_model(_stock(main), peft_config(adaptation, main))
    set_peft_model_state_dict(model, peft_tensors(adaptation, main))
    return model.eval()


def merge(adaptation: Adaptation, main: MainModel, *, lossy: bool = False) -> PreTrainedModel:
    """A plain model in `main`'s dtype with the LoRA or (IA)³ of one task merged into its weights; `main` is unchanged.

    Raises:
        HartError: as in `to_peft`, or the adaptation has only prefixes or a memory, which change no weight.
    """
    refuse_unmergeable(adaptation)
    wrapped = _wrapped(adaptation, main, lossy)
    for parameter in wrapped.parameters():
        parameter.data = parameter.data.clone()
    merged: Any = wrapped.merge_and_unload()
    return merged


def save_peft(
    adaptation: Adaptation, main: MainModel, folder: str | Path, *, lossy: bool = False, overwrite: bool = False
) -> None:
    """Write adapter_config.json and adapter_model.safetensors, which `PeftModel.from_pretrained` loads.

    Args:
        overwrite: replace a folder with the export of another adaptation.

    Raises:
        HartError: as in `to_peft`, or the folder exists with other content, or cannot be written.
    """
    model = _wrapped(adaptation, main, lossy)
    with _new_export(adaptation, folder, "peft", overwrite) as partial:
        model.save_pretrained(str(partial))
        (partial / "README.md").write_text(
            export_card(adaptation, main, "peft", what_is_lost(adaptation, main)), encoding="utf-8"
        )


def save_merged(
    adaptation: Adaptation, main: MainModel, folder: str | Path, *, lossy: bool = False, overwrite: bool = False
) -> None:
    """Write the merged model of `merge` and the tokenizer as a plain checkpoint.

    Args:
        overwrite: replace a folder with the export of another adaptation.

    Raises:
        HartError: as in `merge`, or the folder exists with other content, or cannot be written.
    """
    model = merge(adaptation, main, lossy=lossy)
    if model.generation_config is not None:
        model.generation_config = _savable(model.generation_config)
    with _new_export(adaptation, folder, "merged", overwrite) as partial:
        model.save_pretrained(partial)
        main.tokenizer.save_pretrained(partial)
        (partial / "README.md").write_text(
            export_card(adaptation, main, "transformers", what_is_lost(adaptation, main)), encoding="utf-8"
        )


def _savable(config: GenerationConfig) -> GenerationConfig:
    """A base's generation configuration, without its sampling options if transformers refuses to save them."""
    try:
        config.validate(strict=True)
    except ValueError:
        config = copy.deepcopy(config)
        config.update(**dict.fromkeys(("temperature", "top_p", "top_k", "min_p", "typical_p")))
    return config


EXPORT_FILE = "hart_export.json"
"""The file that marks a folder as an export of ours and records base, model and tasks."""


@contextmanager
def _new_export(adaptation: Adaptation, folder: str | Path, form: str, overwrite: bool) -> Iterator[Path]:
    """A context that yields a new folder to fill, with `EXPORT_FILE` in it.

    An earlier export of the same adaptation is replaced; with `overwrite` also one of another adaptation.

    Raises:
        HartError: the folder exists with other content, or cannot be written.
    """
    folder = Path(folder)
    names = ("base", "base_fingerprint", "model")
    # A digest instead of the tasks, as demonstrations may be private.
    tasks = hashlib.sha256(json.dumps(adaptation.tasks, sort_keys=True).encode()).hexdigest()
    about = {"format": form, **{name: getattr(adaptation, name) for name in names}, "tasks_sha256": tasks}
    found: dict[str, Any] = {}
    if (folder / EXPORT_FILE).is_file():
        content = read_json(folder / EXPORT_FILE, "what hart export wrote")
        found = content if isinstance(content, dict) else {}
    files = found.pop("files", [])
    files = files if isinstance(files, list) else []
    if found and found != about and not overwrite:
        raise HartError(f"{folder}: holds the export of another adaptation; give a new folder, or --overwrite")
    with new_directory(folder, replaces=EXPORT_FILE, drops=[str(name) for name in files]) as partial:
        yield partial
        names_written = sorted(each.name for each in partial.iterdir())
        write_json(partial / EXPORT_FILE, {**about, "files": names_written}, indent=1)


def refuse_unmergeable(adaptation: Adaptation) -> None:
    """Raise `HartError` if no part of an adaptation changes weights of the base."""
    if all(isinstance(kind, Prefix) for kind in adaptation.kinds):
        raise HartError(
            "prefixes and a memory change no weights and cannot be merged; use --format peft or safetensors"
        )


def refuse_loss(adaptation: Adaptation, lossy: bool, main: MainModel | None = None) -> None:
    """Raise `HartError` if an export would be lossy and `lossy` is False; `main` as in `what_is_lost`."""
    lost = what_is_lost(adaptation, main)
    if lost and not lossy:
        raise HartError(f"this export would lose {'; '.join(lost)}; accept this with --lossy (lossy=True)")


def peft_config(adaptation: Adaptation, main: MainModel) -> "PeftConfig":
    """PEFT's configuration of the adaptation's kind, with the full name of every target module."""
    from peft import IA3Config, LoraConfig, PrefixTuningConfig

    adaptation = _without_memory(adaptation, main)
    kind, shape = _exportable(adaptation), main.shape
    common: dict[str, Any] = {
        "task_type": "SEQ_2_SEQ_LM" if shape.has_encoder else "CAUSAL_LM",
        "base_model_name_or_path": adaptation.base,
        "revision": adaptation.base_revision,
        "inference_mode": True,
    }
    if isinstance(kind, Prefix):
        return PrefixTuningConfig(
            **common,
            num_virtual_tokens=kind.length,
            # Layer l of a T5's decoder gets the pieces 4l to 4l + 3, of which it uses the first two.
            num_layers=2 * shape.decoder_layers if shape.has_encoder else shape.decoder_layers,
            token_dim=shape.kv_inner,
            num_attention_heads=shape.heads_in_front,
        )
    maps = _maps(adaptation, main)
    common["target_modules"] = sorted(maps)
    # The weights of GPT-2's maps are transposed.
    common["fan_in_fan_out"] = any(isinstance(main.model.get_submodule(path), Conv1D) for path in maps)
    if isinstance(kind, Lora):
        joined = {path: len(parts) // 2 for path, parts in maps.items() if len(parts) > 2}
        return LoraConfig(
            **common,
            r=kind.rank,
            lora_alpha=kind.alpha,  # type: ignore[arg-type]
            rank_pattern={path: count * kind.rank for path, count in joined.items()},
            alpha_pattern={path: count * kind.alpha for path, count in joined.items()},
        )
    scaled = [path for path, parts in sorted(maps.items()) if parts[0].part == "ff"]
    return IA3Config(**common, feedforward_modules=scaled)


def peft_tensors(adaptation: Adaptation, main: MainModel) -> dict[str, Tensor]:
    """The adaptation's parameters with the names and shapes of PEFT's adapter_model.safetensors."""
    adaptation = _without_memory(adaptation, main)
    kind = _exportable(adaptation)
    if isinstance(kind, Prefix):
        return {"prompt_embeddings": _prompt_embeddings(adaptation, main.shape, kind.length)}
    tensors = {}
    for path, parts in _maps(adaptation, main).items():
        module = main.model.get_submodule(path)
        if isinstance(kind, Lora):
            tensors[f"{path}.lora_A.weight"] = torch.cat([each.rows for each in parts if each.part == "a"])
            tensors[f"{path}.lora_B.weight"] = torch.cat([_wide(each, module) for each in parts if each.part == "b"]).T
        elif parts[0].part == "ff":
            tensors[f"{path}.ia3_l"] = 1 + parts[0].rows  # of inputs: a row; we hold differences from 1
        else:
            changes: Any = sum(_wide(each, module) for each in parts)
            tensors[f"{path}.ia3_l"] = 1 + changes.T  # of outputs: a column
    return {f"base_model.model.{name}": values.contiguous() for name, values in tensors.items()}


def _prompt_embeddings(adaptation: Adaptation, shape: MainShape, length: int) -> Tensor:
    """Prefixes in PEFT's layout: for each prefix token, keys and values of every layer side by side."""
    pieces = 4 if shape.has_encoder else 2
    rows = torch.zeros(length, pieces * shape.decoder_layers, shape.kv_inner)
    for piece, part in enumerate(("key", "value")):
        rows[:, piece::pieces] = adaptation.blocks[f"prefix.decoder.{part}"][0].transpose(0, 1)
    return rows.flatten(1)


def _wide(each: "_Rows", module: nn.Module) -> Tensor:
    """Rows for some outputs of a module, with zeros for its other outputs."""
    if not isinstance(each.site, injection.Slice):
        return each.rows
    outputs = injection.weight_of(module).shape[0]
    return each.site.put(each.rows.new_zeros(len(each.rows), outputs), each.rows)


def import_peft() -> None:
    """Raise `HartError` unless the PEFT library is installed."""
    try:
        import peft as _  # noqa: F401
    except ImportError:
        raise HartError("this needs the PEFT library: pip install 'hart-hypernet[export]'") from None


def _exportable(adaptation: Adaptation) -> Lora | Ia3 | Prefix:
    if len(adaptation) != 1:
        raise HartError(
            f"an export is of one task, and this adaptation has {len(adaptation)}; choose one, e.g. adaptation[0]"
        )
    names = [kind.name for kind in adaptation.kinds]
    if len(names) != 1:
        held = " and ".join(names) or "no parameters"
        raise HartError(f"an adapter of PEFT holds one kind of parameters, this adaptation holds {held}")
    (kind,) = adaptation.kinds
    if not isinstance(kind, Lora | Ia3 | Prefix):
        raise HartError(f"PEFT has no {kind.name} beside the feed-forward, as hart has; use --format safetensors")
    return kind


def _of_encoder(adaptation: Adaptation) -> bool:
    return any(name.startswith("prefix.encoder.") for name in adaptation.blocks)


def _without_memory(adaptation: Adaptation, main: MainModel) -> Adaptation:
    """The adaptation with its memory as prefixes if that is exact, else unchanged."""
    if adaptation.memory is None or len(adaptation) != 1 or why_not(adaptation, main):
        return adaptation
    return as_prefixes(adaptation, main)


class _Rows(NamedTuple):
    """One row block of one layer: part of its kind, site, and rows."""

    part: str
    site: injection.Site
    rows: Tensor


def _maps(adaptation: Adaptation, main: MainModel) -> dict[str, list[_Rows]]:
    """Path of a module → the row blocks of LoRA or (IA)³ that act on it; several if maps are fused."""
    paths = {module: path for path, module in main.model.named_modules()}
    maps: dict[str, list[_Rows]] = {}
    for name, values in adaptation.blocks.items():
        kind, stack, *rest = name.split(".")
        part = rest[-1]
        target = rest[0] if kind == "lora" else _IA3_SITES[part]
        for layer, site in enumerate(injection.sites(main.model, stack, target)):  # type: ignore[arg-type]
            path = paths[injection.module_of(site)]
            maps.setdefault(path, []).append(_Rows(part, site, values[0, layer]))
    return maps


def _stock(main: MainModel) -> PreTrainedModel:
    """A stock model that shares the weight tensors of `main`, without our attention functions and hooks."""
    # Copied, not loaded: while transformers loads, it changes defaults of the whole process, which other threads use.
    shared: dict[int, Any] = {id(each): nn.Parameter(each.detach()) for each in main.model.parameters()}
    model: Any = copy.deepcopy(main.model, shared | {id(each): each for each in main.model.buffers()})
    # What else `binding` has left there does nothing to a copy.
    model.set_attn_implementation("eager" if architecture(model.config).eager else "sdpa")
    main.restore_dropout(model)  # a frozen model has none
    model.generation_config = copy.deepcopy(main.stock_generation_config)
    model.name_or_path = main.name  # PEFT saves this as the name of the base
    plain: PreTrainedModel = model.eval()
    return plain
