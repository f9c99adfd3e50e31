"""Adaptations for others: PEFT adapters, a base with the change merged in, and one file to hand on.

PEFT's LoRA and (IA)³ compute what ours do, so these exports are exact. PEFT's prefixes do not: it puts them into the
key/value cache of the decoder alone, where T5 gives them the relative bias of earlier tokens, and ours have none.
Neither format has a place for the fused memory. `what_is_lost` lists it; such an export must be asked for.
"""

import copy
import io
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import ModelCardData
from torch import Tensor, nn
from transformers import T5ForConditionalGeneration

from hart.errors import HartError
from hart.model.adaptation import FIELDS_FILE, TENSORS_FILE, Adaptation
from hart.model.main_model import MainModel
from hart.peft import injection
from hart.peft.ia3 import Ia3
from hart.peft.lora import Lora
from hart.peft.prefix import Prefix
from hart.runtime.files import new_directory
from hart.runtime.third_party.transformers import T5Attention

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

TASK_TYPE = "SEQ_2_SEQ_LM"
_IA3_SITES = {"key": "k", "value": "v", "ff": "wo", "cross_key": "cross_k", "cross_value": "cross_v"}


def what_is_lost(adaptation: Adaptation) -> list[str]:
    """What PEFT has no place for, one phrase each; empty where the export is exact.

    Raises:
        HartError: an adaptation that cannot be exported at all, not even in part.
    """
    kind = _exportable(adaptation)
    lost = []
    if adaptation.memory is not None:
        lost.append("the fused memory: the decoder no longer attends to the encoded demonstrations")
    if isinstance(kind, Prefix):
        lost.append("the prefixes of the encoder, which PEFT does not have for T5")
        lost.append("the bias of the decoder's prefixes: 0 here, T5's relative bias of earlier tokens in PEFT")
        if kind.cross:
            lost.append("the prefixes of cross-attention, which PEFT does not have")
    if adaptation.input_format.in_context:
        lost.append("the demonstrations that the main model reads before each query; put them there yourself")
    return lost


def to_peft(adaptation: Adaptation, main: MainModel, *, lossy: bool = False) -> "PeftModel":
    """The adapted base as a model of the PEFT library, in memory; it shares the weights of `main`.

    Its `save_pretrained` writes what `save_peft` writes, its `merge_and_unload` changes the weights in place.

    Args:
        adaptation: of one task.
        lossy: accept what `what_is_lost` says.

    Raises:
        HartError: PEFT is not installed, another base, a kind that PEFT does not have, or a lossy export not asked for.
    """
    import_peft()
    from peft import get_peft_model
    from peft.utils import set_peft_model_state_dict

    main.check_adaptation(adaptation)
    refuse_loss(adaptation, lossy)
    model = get_peft_model(_stock(main), peft_config(adaptation, main))
    set_peft_model_state_dict(model, peft_tensors(adaptation, main))
    return model.eval()


def merge(adaptation: Adaptation, main: MainModel, *, lossy: bool = False) -> T5ForConditionalGeneration:
    """A plain T5 in `main`'s dtype whose weights have the LoRA or (IA)³ of one task in them; `main` stays as it is.

    Raises:
        HartError: as `to_peft`, or prefixes, which are no change of any weight.
    """
    if any(isinstance(kind, Prefix) for kind in adaptation.kinds):
        raise HartError("prefixes are rows beside keys and values, no change of a weight; they cannot be merged")
    wrapped = to_peft(adaptation, main, lossy=lossy)
    for parameter in wrapped.parameters():
        parameter.data = parameter.data.clone()
    merged: Any = wrapped.merge_and_unload()
    return merged


def save_peft(adaptation: Adaptation, main: MainModel, folder: str | Path, *, lossy: bool = False) -> None:
    """Write adapter_config.json and adapter_model.safetensors, which `PeftModel.from_pretrained` takes.

    Raises:
        HartError: as `to_peft`, or the folder exists with other content, or cannot be written.
    """
    model = to_peft(adaptation, main, lossy=lossy)
    with new_directory(folder, replaces="adapter_config.json") as partial:
        model.save_pretrained(str(partial))
        (partial / "README.md").write_text(_peft_card(adaptation), encoding="utf-8")


def save_merged(adaptation: Adaptation, main: MainModel, folder: str | Path, *, lossy: bool = False) -> None:
    """Write the merged model of `merge` and the tokenizer as a plain T5 checkpoint.

    Raises:
        HartError: as `merge`, or the folder exists with other content, or cannot be written.
    """
    model = merge(adaptation, main, lossy=lossy)
    with new_directory(folder, replaces="config.json") as partial:
        model.save_pretrained(partial)
        main.tokenizer.save_pretrained(partial)


def refuse_loss(adaptation: Adaptation, lossy: bool) -> None:
    """Raise `HartError` where an export would lose something that was not given up."""
    lost = what_is_lost(adaptation)
    if lost and not lossy:
        raise HartError(
            f"this export would lose {'; '.join(lost)}; ask for it with --lossy (lossy=True) if that will do"
        )


def peft_config(adaptation: Adaptation, main: MainModel) -> "PeftConfig":
    """PEFT's configuration of the adaptation's kind; target modules are named in full, one by one."""
    from peft import IA3Config, LoraConfig, PrefixTuningConfig

    kind = _exportable(adaptation)
    common: dict[str, Any] = {"task_type": TASK_TYPE, "base_model_name_or_path": adaptation.base}
    common |= {"revision": adaptation.base_revision, "inference_mode": True}
    if isinstance(kind, Prefix):
        shape = main.shape
        return PrefixTuningConfig(
            **common,
            num_virtual_tokens=kind.length,
            # Layer l of the decoder gets the pieces 4l to 4l + 3, of which T5 uses the first two.
            num_layers=2 * shape.decoder_layers,
            token_dim=shape.inner,
            num_attention_heads=shape.num_heads,
        )
    modules = sorted({path for _, _, path, _ in _maps(adaptation, main)})
    if isinstance(kind, Lora):
        return LoraConfig(**common, r=kind.rank, lora_alpha=kind.alpha, target_modules=modules)  # type: ignore[arg-type]
    return IA3Config(
        **common, target_modules=modules, feedforward_modules=[path for path in modules if path.endswith(".wo")]
    )


def peft_tensors(adaptation: Adaptation, main: MainModel) -> dict[str, Tensor]:
    """The adaptation's parameters under the names and in the shapes of PEFT's adapter_model.safetensors."""
    kind = _exportable(adaptation)
    blocks = adaptation.blocks
    if isinstance(kind, Prefix):
        layers, width = main.shape.decoder_layers, main.shape.inner
        rows = torch.zeros(kind.length, 4 * layers, width)
        for piece, part in enumerate(("key", "value")):
            rows[:, piece::4] = blocks[f"prefix.decoder.{part}"][0].transpose(0, 1)
        return {"prompt_embeddings": rows.flatten(1)}
    tensors = {}
    for name, part, path, layer in _maps(adaptation, main):
        rows = blocks[name][0, layer]
        if isinstance(kind, Lora):
            where, values = f"lora_{part.upper()}.weight", rows if part == "a" else rows.T
        else:
            # A scale of outputs is a column, of inputs (the feed-forward's) a row; we hold differences from 1.
            where, values = "ia3_l", 1 + (rows if part == "ff" else rows.T)
        tensors[f"base_model.model.{path}.{where}"] = values.contiguous()
    return tensors


def bundle(adaptation: Adaptation) -> bytes:
    """What `Adaptation.save_pretrained` writes, as one zip file."""
    packed = io.BytesIO()
    with tempfile.TemporaryDirectory() as temporary, zipfile.ZipFile(packed, "w") as archive:
        folder = Path(temporary) / "adaptation"
        adaptation.save_pretrained(folder)
        for name in (FIELDS_FILE, TENSORS_FILE):
            archive.write(folder / name, name)
    return packed.getvalue()


def unbundle(packed: bytes) -> Adaptation:
    """The adaptation in a zip file of `bundle`.

    Raises:
        HartError: it is no such file, or damaged.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        try:
            with zipfile.ZipFile(io.BytesIO(packed)) as archive:
                # Read by name, so that no name in the file decides where anything is written.
                for name in (FIELDS_FILE, TENSORS_FILE):
                    (folder / name).write_bytes(archive.read(name))
        except (zipfile.BadZipFile, KeyError) as error:
            raise HartError(f"not a zip file of an adaptation ({error})") from error
        return Adaptation.from_pretrained(folder)


def import_peft() -> None:
    """Raise `HartError` unless the PEFT library is installed."""
    try:
        import peft as _  # noqa: F401
    except ImportError:
        raise HartError("this needs the PEFT library: pip install 'hart-hypernet[export]'") from None


def _exportable(adaptation: Adaptation) -> Lora | Ia3 | Prefix:
    if len(adaptation) != 1:
        raise HartError(f"an export is of one task, this adaptation holds {len(adaptation)}; take one: adaptation[0]")
    names = [kind.name for kind in adaptation.kinds]
    if len(names) != 1:
        held = " and ".join(names) or "no parameters"
        raise HartError(f"an adapter of PEFT holds one kind of parameters, this adaptation holds {held}")
    (kind,) = adaptation.kinds
    if not isinstance(kind, Lora | Ia3 | Prefix):
        raise HartError(
            f"PEFT has no {kind.name} kind (beside the feed-forward, as ours are); use --format safetensors"
        )
    return kind


def _maps(adaptation: Adaptation, main: MainModel) -> Iterator[tuple[str, str, str, int]]:
    """(block, part, path of the module, layer) of every row block of LoRA or (IA)³."""
    paths = {module: path for path, module in main.model.named_modules()}
    for name in adaptation.blocks:
        kind, stack, *rest = name.split(".")
        part = rest[-1]
        site = rest[0] if kind == "lora" else _IA3_SITES[part]
        for layer, module in enumerate(injection.sites(main.model, stack, site)):  # type: ignore[arg-type]
            yield name, part, paths[module], layer


def _stock(main: MainModel) -> T5ForConditionalGeneration:
    """A plain T5 with the weights of `main` (the same tensors) and none of our seams."""
    # Not loaded anew: while transformers loads, it changes defaults of the whole process, which other threads use.
    shared: dict[int, Any] = {id(each): nn.Parameter(each.detach()) for each in main.model.parameters()}
    model = copy.deepcopy(main.model, shared | {id(each): each for each in main.model.buffers()})
    model.set_attn_implementation("sdpa")  # what else `binding` has left there does nothing to a copy
    for module in model.modules():  # a frozen model has none
        if isinstance(module, nn.Dropout):
            module.p = model.config.dropout_rate
        elif isinstance(module, T5Attention):
            module.dropout = model.config.dropout_rate
    model.generation_config = copy.deepcopy(main.stock_generation_config)
    model.name_or_path = main.name  # what PEFT writes down as the base
    return model.eval()


def _peft_card(adaptation: Adaptation) -> str:
    lost = what_is_lost(adaptation) or ["nothing; logits are those of the adaptation up to rounding"]
    header = ModelCardData(base_model=adaptation.base, library_name="peft", pipeline_tag="text2text-generation")
    return "\n".join(
        [
            f"---\n{header}\n---",
            "",
            f"Generated by {adaptation.model or 'a HART model'} in one forward pass, exported by `hart export`.",
            "",
            f"Base: `{adaptation.base}`, fingerprint `{adaptation.base_fingerprint}`.",
            "",
            "Lost in the export:",
            "",
            *(f"- {phrase}" for phrase in lost),
            "",
        ]
    )
