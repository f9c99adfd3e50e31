"""Conversion of a memory in front of a decoder-only model's tokens into prefixes, for which PEFT has a place.

A memory of m tokens has keys and values in every layer, without positions. As m rows of a prefix it moves every token
by m positions. Rotary embedding depends only on differences of positions, so memory keys rotated to position m keep
their relation to the tokens.
"""

import sys
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hart.model.adaptation import Adaptation
from hart.model.main_model import MainModel
from hart.peft import injection
from hart.peft.architectures import architecture
from hart.peft.modules import at
from hart.peft.prefix import Prefix

_FIXED = ("default", "linear", "llama3", "yarn")
"""Types of rotary embedding whose angles do not depend on the length of the input."""


def why_not(adaptation: Adaptation, main: MainModel) -> str | None:
    """The reason why the memory of an adaptation cannot be converted into prefixes exactly; None if it can."""
    if main.shape.has_encoder:
        return "a T5's cross-attention reads it"
    if any(not isinstance(kind, Prefix) for kind in adaptation.kinds):
        return "an adapter of PEFT holds one kind of parameters, and these are not prefixes"
    table, config = architecture(main.model.config), main.model.config
    if main.shape.attention is not None:
        return "PEFT's prefixes are for all layers, and those of the base are for some alone"
    positions = at(main.model, table.positions) if table.positions else None
    if getattr(positions, "rope_type", None) not in _FIXED or table.positions_in_attention:
        return (
            "it takes up no positions, and rows of a prefix would shift the base's, which are learned, change with "
            "the length, or scale its queries"
        )
    if getattr(config, "sliding_window", None) is not None:
        return "the base's sliding window would exclude it"
    return None


@torch.no_grad()
def as_prefixes(adaptation: Adaptation, main: MainModel) -> Adaptation:
    """The equivalent adaptation to one task without a memory: m prefix rows of the memory, then its own p prefix rows.

    Args:
        adaptation: adaptation to one task with a memory, for which `why_not` returns None.
    """
    kept = main.keep_memory(adaptation).kept
    assert kept is not None and adaptation.memory_mask is not None
    read = adaptation.memory_mask[0].bool()
    count = int(read.sum())
    keys, values = (part[:, 0, :, read.to(part.device)].transpose(1, 2).float().cpu() for part in kept)
    rows = {"key": keys, "value": values}
    kind = next((each for each in adaptation.kinds if isinstance(each, Prefix)), None)
    if kind is not None:
        for part, memory in rows.items():
            own = adaptation.blocks[f"prefix.decoder.{part}"][0].float().cpu()
            rows[part] = torch.cat([memory, own.unflatten(-1, (main.shape.heads_in_front, -1))], dim=1)
    rows["key"] = _rotated(rows["key"], count, main)
    length = rows["key"].shape[1]
    longer = replace(kind, length=length) if kind is not None else Prefix(length=length)
    return replace(
        adaptation,
        blocks={f"prefix.decoder.{part}": each.flatten(2)[None] for part, each in rows.items()},
        memory=None,
        memory_mask=None,
        kept=None,
        peft=[longer.to_config()],
    )


def _rotated(keys: Float[Tensor, "L p heads d_kv"], position: int, main: MainModel) -> Float[Tensor, "L p heads d_kv"]:
    """Keys rotated to a position by the base's rotary embedding, without its scaling of queries and keys."""
    path = architecture(main.model.config).positions
    assert path is not None
    rotary = at(main.model, path)
    cos, sin = rotary(keys.to(main.device), torch.tensor([[position]], device=main.device))
    cos, sin = ((part / rotary.attention_scaling).cpu() for part in (cos, sin))
    turned, rest = keys[..., : cos.shape[-1]], keys[..., cos.shape[-1] :]
    # Each architecture has a function of its own: GLM 4 pairs neighbours, others halves.
    stock: Any = sys.modules[type(rotary).__module__]
    moved = torch.cat([stock.apply_rotary_pos_emb(turned, turned, cos, sin, unsqueeze_dim=2)[1], rest], dim=-1)
    # Layers without positions (SmolLM 3) rotate nothing.
    for layer, attention in enumerate(injection.sites(main.model, "decoder", "self_attention")):
        if not getattr(attention, "use_rope", True):
            moved[layer] = keys[layer]
    return moved
