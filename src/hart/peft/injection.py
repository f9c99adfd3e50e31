"""Seam 1: generated key and value rows in the self-attention of a stock transformers T5 (§4.1).

The attention functions `hart_sdpa` and `hart_eager` are the stock ones with prefix rows put in
front of the keys and values. They run after the update of the key/value cache, so prefixes never
enter it, and they receive the relative position bias, so that prefix columns get bias 0 and real
tokens keep theirs. A module without bound rows computes exactly what the stock function computes.

The mask functions registered under the same names always build a mask. The stock SDPA one may
return none where causality is implied; the prefix columns would then shift the implied triangle
and the decoder would silently see the future.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, T5ForConditionalGeneration
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask
from transformers.models.t5.modeling_t5 import eager_attention_forward

from hart.errors import HartError

ATTENTION = {"sdpa": "hart_sdpa", "eager": "hart_eager"}
"""Stock attention implementation → the registered one that takes prefixes."""

_BOUND = "_hart_bound"


class KeyValueRows(NamedTuple):
    """Rows in front of one module's keys and values, each `[batch or 1, rows, inner]`."""

    key: Tensor
    value: Tensor


class Bound:
    """What is bound to the modules of one main model: module → value.

    The mapping is replaced, never changed, on each update. A reference to it is therefore a
    snapshot, which gradient checkpointing needs: a layer recomputed in the backward pass must
    find the rows of its own forward pass, whatever has been bound or cleared since.
    """

    def __init__(self) -> None:
        self.values: Mapping[nn.Module, Any] = {}

    def update(self, values: Mapping[nn.Module, Any]) -> None:
        self.values = {**self.values, **values}

    def remove(self, modules: Iterable[nn.Module]) -> None:
        removed = set(modules)
        self.values = {module: v for module, v in self.values.items() if module not in removed}

    def checkpoint_contexts(self) -> tuple[AbstractContextManager, AbstractContextManager]:
        """`context_fn` for `torch.utils.checkpoint`: recompute under the values bound now."""
        return nullcontext(), self._restored(self.values)

    @contextmanager
    def _restored(self, values: Mapping[nn.Module, Any]) -> Iterator[None]:
        current, self.values = self.values, values
        try:
            yield
        finally:
            self.values = current


def self_attentions(main: T5ForConditionalGeneration, stack: Literal["encoder", "decoder"]) -> list[nn.Module]:
    """The self-attention module of every layer of one stack: the sites of key and value rows."""
    return [block.layer[0].SelfAttention for block in getattr(main, stack).block]


def attach(main: T5ForConditionalGeneration, attention: str) -> Bound:
    """Switch a stock T5 to the attention functions of this module; nothing is bound yet.

    Raises `HartError` for an attention other than those in `ATTENTION`.
    """
    if attention not in ATTENTION:
        raise HartError(f"attention must be one of {', '.join(ATTENTION)}, not {attention!r}")
    main.set_attn_implementation(ATTENTION[attention])
    bound = Bound()
    for module in main.modules():
        # Through __dict__, so that neither parameters nor the state dict see it.
        module.__dict__[_BOUND] = bound
    return bound


def bound_of(module: nn.Module) -> Bound:
    """The bindings of the main model that `module` belongs to (shared by all its modules)."""
    return module.__dict__[_BOUND]


def _for_batch(rows: Tensor, query: Tensor) -> Tensor:
    """`[n, rows, inner]` → `[batch, heads, rows, d_kv]`, in the query's dtype.

    n must be 1 (one prefix for every row of the batch) or divide the batch: beam search and several
    returned sequences repeat each batch row in place, so prefix i serves rows i·k … i·k+k-1.
    """
    batch, heads, _, d_kv = query.shape
    n, length, _ = rows.shape
    rows = rows.to(query.dtype).view(n, length, heads, d_kv).transpose(1, 2)
    if n == 1:
        return rows.expand(batch, -1, -1, -1)
    if batch % n:
        raise ValueError(f"{n} prefixes cannot serve a batch of {batch} rows")
    return rows if batch == n else rows.repeat_interleave(batch // n, dim=0)


def _with_prefix(stock: Callable[..., Any], visible: bool | float) -> Callable[..., Any]:
    """The attention function `stock` with the rows bound to the module in front of keys and values.

    `visible` is what the mask of this implementation holds for a column that may be attended to.
    """

    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        position_bias: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        # Stacks that borrow the implementation without being a main model have no bindings.
        bound = module.__dict__.get(_BOUND)
        prefix = None if bound is None else bound.values.get(module)
        if prefix is not None:
            if attention_mask is None or position_bias is None:
                raise RuntimeError("prefixes need an explicit mask and position bias")
            length = prefix.key.shape[1]
            key = torch.cat([_for_batch(prefix.key, query), key], dim=2)
            value = torch.cat([_for_batch(prefix.value, query), value], dim=2)
            position_bias = F.pad(position_bias, (length, 0), value=0.0)
            attention_mask = F.pad(attention_mask, (length, 0), value=visible)
        return stock(module, query, key, value, attention_mask, position_bias=position_bias, **kwargs)

    return attention


def _never_skipping(stock: Callable[..., Tensor | None]) -> Callable[..., Tensor | None]:
    """The mask function `stock` without its licence to return no mask."""

    def mask(**kwargs: Any) -> Tensor | None:
        skips = {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
        return stock(**{**kwargs, **skips})

    return mask


AttentionInterface.register("hart_sdpa", _with_prefix(sdpa_attention_forward, visible=True))
AttentionInterface.register("hart_eager", _with_prefix(eager_attention_forward, visible=0.0))
AttentionMaskInterface.register("hart_sdpa", _never_skipping(sdpa_mask))
AttentionMaskInterface.register("hart_eager", _never_skipping(eager_mask))
