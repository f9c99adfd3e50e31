"""Attention functions for stock decoder-only models that take extra keys and values in front of their own.

`hart_decoder_sdpa` and `hart_decoder_eager` are the stock functions with extra keys and values
(`injection.ExtraKeyValues`). Prefixes follow the convention of the PEFT library: a prefix of length p is a past of p
tokens. Its keys are used unchanged, as keys after rotary embedding and any norm; the first token is at position p
(`injection.positions`); a sliding window excludes prefix rows as it would tokens at their positions. A memory has no
position: its keys are not rotated, the tokens' positions stay the same, and no window excludes it. The functions run
after the update of the key/value cache, so extra keys never enter it. Without extra keys a module computes exactly what
the stock function computes.

The mask functions registered under the same names build a mask whenever extra keys are bound: the stock SDPA mask
function may return none for an implied causal mask, and the extra columns would shift the implied triangle.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from hart.peft.injection import ExtraKeyValues, extra_anywhere, extra_at, for_batch, joined
from hart.runtime.third_party.transformers import eager_mask, sdpa_attention_forward, sdpa_mask


def hart_decoder_sdpa(
    module: Any,
    query: Float[Tensor, "b heads t d_kv"],
    key: Float[Tensor, "b kv_heads s d_kv"],
    value: Float[Tensor, "b kv_heads s d_kv"],
    attention_mask: Shaped[Tensor, "#b 1 t s"] | None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "b t heads d_kv"], None]:
    """`sdpa_attention_forward` with extra keys and values."""
    extra = extra_at(module)
    if extra is not None:
        attention_mask = _joined_mask(extra, attention_mask, key, kwargs.get("sliding_window"))
        key, value = joined(extra.key, key), joined(extra.value, value)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


def hart_decoder_eager(
    module: Any,
    query: Float[Tensor, "b heads t d_kv"],
    key: Float[Tensor, "b kv_heads s d_kv"],
    value: Float[Tensor, "b kv_heads s d_kv"],
    attention_mask: Float[Tensor, "#b 1 t s"] | None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "b t heads d_kv"], Float[Tensor, "b heads t _p_and_s"]]:
    """The architecture's own `eager_attention_forward` with extra keys and values; its weights have them first."""
    extra = extra_at(module)
    if extra is not None:
        attention_mask = _joined_mask(extra, attention_mask, key, kwargs.get("sliding_window"))
        key, value = joined(extra.key, key), joined(extra.value, value)
    # Each architecture has its own function (GPT-2 without scale, Gemma 2 with a cap).
    stock: Any = sys.modules[type(module).__module__]
    return stock.eager_attention_forward(module, query, key, value, attention_mask, **kwargs)


def _joined_mask(
    extra: ExtraKeyValues, own: Shaped[Tensor, "#b 1 t s"] | None, key: Tensor, window: int | None
) -> Shaped[Tensor, "b 1 t _p_and_s"]:
    """The mask of tokens, with columns for the extra keys in front of them."""
    if own is None:
        raise RuntimeError("keys and values in front need an explicit mask")
    length, batch = extra.key.shape[2], key.shape[0]
    own = own.expand(batch, -1, -1, -1)
    seen = own if own.dtype == torch.bool else own == 0
    front = seen.new_ones(batch, 1, own.shape[2], length)
    if extra.mask is not None:
        front = front & (for_batch(extra.mask[:, None, None, :], own) != 0)
    if window is not None:
        past = length - extra.placeless
        # A query that sees c tokens of its window is at position p + c - 1, or later if the window is full.
        position = past - 1 + seen.sum(dim=-1, keepdim=True)
        places = torch.arange(length, device=own.device)
        front = front & ((position - places < window) | (places >= past))
    if own.dtype != torch.bool:
        front = torch.zeros_like(front, dtype=own.dtype).masked_fill(~front, torch.finfo(own.dtype).min)
    return torch.cat([front, own], dim=-1)


def _skipping_without_prefix(stock: Callable[..., Tensor | None]) -> Callable[..., Tensor | None]:
    """The mask function `stock`, which then always returns a mask while extra keys are bound."""

    def mask(**kwargs: Any) -> Tensor | None:
        if extra_anywhere():
            kwargs["allow_is_causal_skip"] = False
        return stock(**kwargs)

    return mask


AttentionInterface.register("hart_decoder_sdpa", hart_decoder_sdpa)
AttentionInterface.register("hart_decoder_eager", hart_decoder_eager)
AttentionMaskInterface.register("hart_decoder_sdpa", _skipping_without_prefix(sdpa_mask))
AttentionMaskInterface.register("hart_decoder_eager", _skipping_without_prefix(eager_mask))
