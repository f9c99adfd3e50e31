"""Attention functions for a stock transformers T5 that take rows in front of keys and values (§4.1).

`hart_sdpa` and `hart_eager` are the stock functions, with the rows that are bound to the calling module
(`injection.KeyValueRows`) in front: prefix rows in self-attention, the fused memory in cross-attention. They run after
the update of the key/value cache, so rows never enter it, and they receive the relative position bias: columns of rows
get bias 0, real tokens keep theirs. A module without bound rows computes exactly what the stock function computes.

Two things make them fast. What is added to the scores (position bias and mask) is put together once per stack, where
the stock function does so in every layer. And for few queries, as in decoding, the scores of rows and of tokens are two
products with one softmax: no layer copies its keys and values to join them, and a set of rows that serves several batch
rows is read once for all of them.

The mask functions registered under the same names always build a mask. The stock SDPA one may return none where
causality is implied; the rows' columns would then shift the implied triangle and the decoder would silently see the
future.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import create_position_bias_mask, sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask
from transformers.models.t5.modeling_t5 import eager_attention_forward

from hart.peft.injection import KeyValueRows, rows_bound_to, rows_for

_ONCE = "_hart_once"


def hart_sdpa(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    position_bias: Tensor | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """As `sdpa_attention_forward`; all of `[b, heads, tokens, d_kv]`."""
    rows = rows_bound_to(module)
    if attention_mask is None or position_bias is None:
        _refuse(rows)
        own = attention_mask
    else:
        own = _tokens_bias(module, position_bias, attention_mask, query, key)
        if rows is not None and query.shape[2] < 2 * query.shape[3]:
            # The scores are smaller than copies of keys and values would be.
            return _two_products(module, query, key, value, own, rows, dropout, scaling), None
        if rows is not None:
            key, value = _joined(rows.key, key), _joined(rows.value, value)
            own = _joined_bias(module, position_bias, own, rows)
        position_bias = None
    return sdpa_attention_forward(
        module, query, key, value, own, dropout=dropout, scaling=scaling, position_bias=position_bias, **kwargs
    )


def hart_eager(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """As `eager_attention_forward`, which also gives the attention weights; rows' columns come first in them."""
    rows = rows_bound_to(module)
    if attention_mask is None or position_bias is None:
        _refuse(rows)
    elif rows is not None:
        key, value = _joined(rows.key, key), _joined(rows.value, value)
        attention_mask = _joined_bias(module, position_bias, attention_mask, rows)
        position_bias = F.pad(position_bias, (rows.key.shape[2], 0), value=0.0)
    return eager_attention_forward(module, query, key, value, attention_mask, position_bias=position_bias, **kwargs)


def _refuse(rows: KeyValueRows | None) -> None:
    if rows is not None:
        raise RuntimeError("rows before keys and values need an explicit mask and position bias")


def _two_products(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    own: Tensor,
    rows: KeyValueRows,
    dropout: float,
    scaling: float | None,
) -> Tensor:
    """Attention to rows and tokens `[b, queries, heads, d_kv]`, in one softmax over both."""
    batch, heads, queries, d_kv = query.shape
    sets = _sets(rows, batch)
    row_keys, row_values = rows.key.to(query.dtype), rows.value.to(query.dtype)
    # The queries of all batch rows that share a set of rows lie together: one product reads the set once.
    to_rows = _grouped(query, sets) @ row_keys.transpose(-1, -2)
    to_tokens = query @ key.transpose(-1, -2)
    if scaling is not None and scaling != 1.0:
        to_rows, to_tokens = to_rows * scaling, to_tokens * scaling
    if rows.mask is not None:
        to_rows = to_rows + _hidden(rows.mask, to_rows.dtype)
    scores = torch.cat([_ungrouped(to_rows, batch), to_tokens + own], dim=-1)
    # In float32 at least, as the fused kernels do.
    weights = F.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(value.dtype)
    weights = F.dropout(weights, dropout, module.training)
    on_rows, on_tokens = weights.split([row_keys.shape[2], key.shape[2]], dim=-1)
    attended = on_tokens @ value + _ungrouped(_grouped(on_rows, sets) @ row_values, batch)
    return attended.transpose(1, 2).contiguous()


def _grouped(values: Tensor, sets: int) -> Tensor:
    """`[b, heads, q, x]` → `[sets, heads, b / sets · q, x]`: what neighbouring batch rows have, one after the other."""
    if sets == values.shape[0]:
        return values
    return values.unflatten(0, (sets, -1)).transpose(1, 2).flatten(2, 3)


def _ungrouped(values: Tensor, batch: int) -> Tensor:
    """The inverse of `_grouped`."""
    sets = values.shape[0]
    if sets == batch:
        return values
    return values.unflatten(2, (batch // sets, -1)).transpose(1, 2).flatten(0, 1)


def _sets(rows: KeyValueRows, batch: int) -> int:
    """How many sets of rows there are for a batch."""
    if batch % rows.key.shape[0]:
        raise ValueError(f"{rows.key.shape[0]} sets of parameters cannot serve a batch of {batch} rows")
    return rows.key.shape[0]


def _joined(rows: Tensor, tokens: Tensor) -> Tensor:
    """Rows `[n, heads, rows, d_kv]` in front of `[b, heads, tokens, d_kv]`."""
    return torch.cat([rows_for(rows, tokens).expand(tokens.shape[0], -1, -1, -1), tokens], dim=2)


def _tokens_bias(module: Any, position_bias: Tensor, mask: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """What is added to the scores of tokens: `[b or 1, heads, queries, tokens]`, with the stock function's values."""

    def make() -> Tensor:
        # Asked on the CPU only: elsewhere the answer would wait for the device.
        if mask.dtype == torch.bool and mask.device.type == "cpu" and bool(mask.all()):
            return position_bias.contiguous()
        return create_position_bias_mask(position_bias, mask, False, query, key)

    return _once(module, position_bias, "tokens", (mask,), make)


def _joined_bias(module: Any, position_bias: Tensor, own: Tensor, rows: KeyValueRows) -> Tensor:
    """`own` of `[b or 1, heads or 1, queries, tokens]` with columns for the rows in front."""

    def make() -> Tensor:
        if rows.mask is None:
            return F.pad(own, (rows.key.shape[2], 0), value=0.0)
        batch = max(own.shape[0], rows.mask.shape[0])
        hidden = rows_for(_hidden(rows.mask, own.dtype), own.expand(batch, -1, -1, -1))
        return torch.cat([hidden.expand(batch, own.shape[1], own.shape[2], -1), own.expand(batch, -1, -1, -1)], dim=-1)

    return _once(module, position_bias, f"with {rows.key.shape[2]} rows", (own, rows.mask), make)


def _hidden(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Mask `[n, rows]`, 0 where hidden, as what is added to scores: `[n, 1, 1, rows]`."""
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask == 0, torch.finfo(dtype).min)[:, None, None, :]


def _once(module: Any, position_bias: Tensor, name: str, parts: tuple[Any, ...], make: Callable[[], Tensor]) -> Tensor:
    """What `make` gives, the first time that a stack asks for it in a pass.

    The layers of a stack hand on one position bias, so the result is kept with it, and goes when it goes. With
    gradients, a recomputed layer must do what it did in its forward pass, so nothing is shared with other layers then.
    """
    if position_bias.requires_grad and torch.is_grad_enabled() and getattr(module, "gradient_checkpointing", False):
        return make()
    kept: dict[str, tuple[tuple[Any, ...], Tensor | None]] = position_bias.__dict__.setdefault(_ONCE, {})
    # None stands for the position bias itself, which would else hold itself in memory.
    given = tuple(None if part is position_bias else part for part in parts)
    found = kept.get(name)
    if found is None or any(a is not b for a, b in zip(found[0], given, strict=True)):
        made = make()
        kept[name] = found = given, None if made is position_bias else made
    return position_bias if found[1] is None else found[1]


def _never_skipping(stock: Callable[..., Tensor | None]) -> Callable[..., Tensor | None]:
    """The mask function `stock` without its licence to return no mask."""

    def mask(**kwargs: Any) -> Tensor | None:
        skips = {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
        return stock(**{**kwargs, **skips})

    return mask


AttentionInterface.register("hart_sdpa", hart_sdpa)
AttentionInterface.register("hart_eager", hart_eager)
AttentionMaskInterface.register("hart_sdpa", _never_skipping(sdpa_mask))
AttentionMaskInterface.register("hart_eager", _never_skipping(eager_mask))
