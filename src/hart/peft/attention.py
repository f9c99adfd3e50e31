"""Attention functions for a stock transformers T5 that take extra keys and values in front of its own (§4.1).

`hart_sdpa` and `hart_eager` are the stock functions with the extra keys and values that are bound to the calling module
(`injection.ExtraKeyValues`): prefixes in self-attention, the fused memory in cross-attention. They run after the update
of the key/value cache, so extra keys never enter it. Extra keys get relative position bias 0; tokens keep their bias.
Without extra keys a module computes exactly what the stock function computes.

Two optimisations are for CPUs only. The sum of position bias and mask is computed once per stack, not in every layer.
For few queries, as in decoding, the scores of extra keys and of tokens are two products with one softmax: no layer
copies its keys and values to concatenate them, and extra keys shared by several rows of the batch are read once. On a
GPU, and in compiled code, keys and values are concatenated and passed to the stock function.

The mask functions registered under the same names always build a mask. The stock SDPA mask function may return none for
an implied causal mask; the extra columns would then shift the implied triangle, and the decoder would silently attend
to the future.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface

from hart.peft.injection import ExtraKeyValues, extra_at, for_batch, joined
from hart.runtime.devices import takes_cpu_paths
from hart.runtime.third_party.transformers import (
    create_position_bias_mask,
    eager_attention_forward,
    eager_mask,
    sdpa_attention_forward,
    sdpa_mask,
)

_ONCE = "hart_once"


def hart_sdpa(
    module: Any,
    query: Float[Tensor, "b heads t d_kv"],
    key: Float[Tensor, "b heads s d_kv"],
    value: Float[Tensor, "b heads s d_kv"],
    attention_mask: Shaped[Tensor, "#b #heads t s"] | None,
    *,
    position_bias: Float[Tensor, "#b heads t s"] | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "b t heads d_kv"], None]:
    """`sdpa_attention_forward` with extra keys and values."""
    extra = extra_at(module)
    own = attention_mask
    if attention_mask is None or position_bias is None:
        _refuse(extra)
    elif extra is not None or takes_cpu_paths(query):
        own = _tokens_bias(module, position_bias, attention_mask, query, key)
        if extra is not None and takes_cpu_paths(query) and query.shape[2] < 2 * query.shape[3]:
            # With few queries, scores are smaller than copies of keys and values.
            return _two_products(module, query, key, value, own, extra, dropout, scaling), None
        if extra is not None:
            key, value = joined(extra.key, key), joined(extra.value, value)
            own = _joined_bias(module, position_bias, own, extra)
        position_bias = None
    return sdpa_attention_forward(
        module, query, key, value, own, dropout=dropout, scaling=scaling, position_bias=position_bias, **kwargs
    )


def hart_eager(
    module: Any,
    query: Float[Tensor, "b heads t d_kv"],
    key: Float[Tensor, "b heads s d_kv"],
    value: Float[Tensor, "b heads s d_kv"],
    attention_mask: Float[Tensor, "#b #heads t s"] | None,
    *,
    position_bias: Float[Tensor, "#b heads t s"] | None = None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "b t heads d_kv"], Float[Tensor, "b heads t _p_and_s"]]:
    """`eager_attention_forward` with extra keys and values; its attention weights have their columns first."""
    extra = extra_at(module)
    if attention_mask is None or position_bias is None:
        _refuse(extra)
    elif extra is not None:
        key, value = joined(extra.key, key), joined(extra.value, value)
        attention_mask = _joined_bias(module, position_bias, attention_mask, extra)
        position_bias = F.pad(position_bias, (extra.key.shape[2], 0), value=0.0)
    return eager_attention_forward(module, query, key, value, attention_mask, position_bias=position_bias, **kwargs)


def _refuse(extra: ExtraKeyValues | None) -> None:
    if extra is not None:
        raise RuntimeError("keys and values in front need an explicit mask and position bias")


def _two_products(
    module: Any,
    query: Float[Tensor, "b heads t d_kv"],
    key: Float[Tensor, "b heads s d_kv"],
    value: Float[Tensor, "b heads s d_kv"],
    own: Float[Tensor, "#b heads t s"],
    extra: ExtraKeyValues,
    dropout: float,
    scaling: float | None,
) -> Float[Tensor, "b t heads d_kv"]:
    """Attention with one softmax over the scores of extra keys and of tokens, computed as two products."""
    batch = query.shape[0]
    n = extra.key.shape[0]
    if batch % n:
        raise ValueError(f"{n} sets of parameters cannot serve a batch of {batch} rows")
    extra_keys, extra_values = extra.key.to(query.dtype), extra.value.to(query.dtype)
    # The queries of all rows that share a set are adjacent, so that one product reads the set once.
    to_extra = _grouped(query, n) @ extra_keys.transpose(-1, -2)
    to_tokens = query @ key.transpose(-1, -2)
    if scaling is not None and scaling != 1.0:
        to_extra, to_tokens = to_extra * scaling, to_tokens * scaling
    if extra.mask is not None:
        to_extra = to_extra + _hidden(extra.mask, to_extra.dtype)
    scores = torch.cat([_ungrouped(to_extra, batch), to_tokens + own], dim=-1)
    # At least in float32, as in the fused kernels.
    weights = F.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(value.dtype)
    weights = F.dropout(weights, dropout, module.training)
    on_extra, on_tokens = weights.split([extra_keys.shape[2], key.shape[2]], dim=-1)
    attended = on_tokens @ value + _ungrouped(_grouped(on_extra, n) @ extra_values, batch)
    return attended.transpose(1, 2).contiguous()


def _grouped(values: Float[Tensor, "b heads t x"], n: int) -> Float[Tensor, "n heads t_of_set x"]:
    """The values of the b / n neighbouring rows that share a set, concatenated: b / n · t of them for each set."""
    if n == values.shape[0]:
        return values
    return values.unflatten(0, (n, -1)).transpose(1, 2).flatten(2, 3)


def _ungrouped(values: Float[Tensor, "n heads t_of_set x"], batch: int) -> Float[Tensor, "b heads t x"]:
    """The inverse of `_grouped`."""
    n = values.shape[0]
    if n == batch:
        return values
    return values.unflatten(2, (batch // n, -1)).transpose(1, 2).flatten(0, 1)


def _tokens_bias(module: Any, position_bias: Tensor, mask: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """Position bias plus mask for the scores of tokens `[b or 1, heads, queries, tokens]`, as in the stock function."""

    def make() -> Tensor:
        # Only on a CPU: elsewhere the check would wait for the device.
        if mask.dtype == torch.bool and takes_cpu_paths(mask) and bool(mask.all()):
            return position_bias.contiguous()
        return create_position_bias_mask(position_bias, mask, False, query, key)

    return _once(module, position_bias, "tokens", (mask,), make)


def _joined_bias(module: Any, position_bias: Tensor, own: Tensor, extra: ExtraKeyValues) -> Tensor:
    """`own` `[b or 1, heads or 1, t, s]` with columns for the p extra keys: `[…, p + s]`."""

    def make() -> Tensor:
        if extra.mask is None:
            return F.pad(own, (extra.key.shape[2], 0), value=0.0)
        batch = max(own.shape[0], extra.mask.shape[0])
        hidden = for_batch(_hidden(extra.mask, own.dtype), own.expand(batch, -1, -1, -1))
        return torch.cat([hidden.expand(batch, own.shape[1], own.shape[2], -1), own.expand(batch, -1, -1, -1)], dim=-1)

    return _once(module, position_bias, f"behind {extra.key.shape[2]}", (own, extra.mask), make)


def _hidden(mask: Shaped[Tensor, "n p"], dtype: torch.dtype) -> Float[Tensor, "n 1 1 p"]:
    """A mask (0: hidden) as a bias for scores: 0, or a large negative number at hidden keys."""
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask == 0, torch.finfo(dtype).min)[:, None, None, :]


def _once(module: Any, position_bias: Tensor, name: str, parts: tuple[Any, ...], make: Callable[[], Tensor]) -> Tensor:
    """The result of `make`, computed once per pass and stack (on a CPU).

    All layers of a stack share one position bias tensor, with which the result is stored and released. With gradients
    layers share nothing, because a recomputed layer must repeat its forward pass.
    """
    recomputed = torch.is_grad_enabled() and getattr(module, "gradient_checkpointing", False)
    if not takes_cpu_paths(position_bias) or (position_bias.requires_grad and recomputed):
        return make()
    if not hasattr(position_bias, _ONCE):
        setattr(position_bias, _ONCE, {})
    kept: dict[str, tuple[tuple[Any, ...], Tensor | None]] = getattr(position_bias, _ONCE)
    # None stands for the position bias, as a reference to itself would keep it in memory.
    given = tuple(None if part is position_bias else part for part in parts)
    found = kept.get(name)
    if found is None or any(a is not b for a, b in zip(found[0], given, strict=True)):
        made = make()
        kept[name] = found = given, None if made is position_bias else made
    return position_bias if found[1] is None else found[1]


def _never_skipping(stock: Callable[..., Tensor | None]) -> Callable[..., Tensor | None]:
    """The mask function `stock`, which then always returns a mask."""

    def mask(**kwargs: Any) -> Tensor | None:
        skips = {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
        return stock(**{**kwargs, **skips})

    return mask


AttentionInterface.register("hart_sdpa", hart_sdpa)
AttentionInterface.register("hart_eager", hart_eager)
AttentionMaskInterface.register("hart_sdpa", _never_skipping(sdpa_mask))
AttentionMaskInterface.register("hart_eager", _never_skipping(eager_mask))
