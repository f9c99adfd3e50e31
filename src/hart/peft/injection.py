"""The seams of a stock transformers T5 at which generated parameters act (§4.1).

Keys and values of attention take rows in front, through the attention functions in `hart.peft.attention`.

Any other named module (a linear map, the feed-forward, an activation) takes *changes*: functions of its input and
output that give a new output, called by a forward hook. LoRA, adapters and (IA)³ are such changes. Several kinds may
change one module: they act in the order in which they were bound, which is that of the configuration's list, each on
what the one before it gives. All of them see the module's own input.

What is bound is bound for one thread or asyncio task (`contextvars`): others use the same modules at the same time,
with what they have bound themselves.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn
from transformers import T5ForConditionalGeneration

from hart.errors import HartError

ATTENTION = {"sdpa": "hart_sdpa", "eager": "hart_eager"}
"""Stock attention implementation → the registered one that takes rows (`hart.peft.attention`)."""

_HOOKED = "_hart_hooked"

Change = Callable[[Tensor, Tensor], Tensor]
"""(input, output) of a module → what it shall give instead; all `[batch, tokens, width]`."""

Stack = Literal["encoder", "decoder"]


def _module(layer: int, *path: str) -> Callable[[Any], nn.Module]:
    """From a T5 block to the module at `path` below its `layer`-th sub-layer."""

    def find(block: Any) -> nn.Module:
        module = block.layer[layer]
        for name in path:
            module = getattr(module, name)
        return module

    return find


# What a target is called in configurations → the module of a T5 block. One table per model family; so far T5.
_SITES: dict[str, Callable[[Any], nn.Module]] = {
    **{name: _module(0, "SelfAttention", name) for name in "qkvo"},
    **{f"cross_{name}": _module(1, "EncDecAttention", name) for name in "qkvo"},
    **{name: _module(-1, "DenseReluDense", name) for name in ("wi", "wi_0", "wi_1", "wo")},
    "self_attention": _module(0, "SelfAttention"),
    "cross_attention": _module(1, "EncDecAttention"),
    "feed_forward": _module(-1, "DenseReluDense"),
    # Between activation and second map, in the gated and in the plain form alike.
    "feed_forward_inner": _module(-1, "DenseReluDense", "dropout"),
}


class KeyValueRows(NamedTuple):
    """Rows in front of one module's keys and values, each `[n, heads, rows, d_kv]`; n as in `rows_for`.

    `mask` is `[n, rows]`, 0 for rows that are hidden; None hides none.
    """

    key: Tensor
    value: Tensor
    mask: Tensor | None = None

    @classmethod
    def from_blocks(cls, key: Tensor, value: Tensor, heads: int) -> Self:
        """From generated rows `[n, rows, heads · d_kv]`."""
        split = (each.unflatten(-1, (heads, -1)).transpose(1, 2) for each in (key, value))
        return cls(*split)

    def beside(self, other: "KeyValueRows") -> "KeyValueRows":
        """These rows and then the `other` ones, for as many sets of rows as the larger of the two has."""
        sets = max(self.key.shape[0], other.key.shape[0])
        parts = [[_repeated(each, sets) for each in (rows.key, rows.value)] for rows in (self, other)]
        keys, values = (torch.cat([first, second.to(first.dtype)], dim=2) for first, second in zip(*parts, strict=True))
        masks = [rows.mask for rows in (self, other)]
        if masks == [None, None]:
            return KeyValueRows(keys, values)
        shown = [
            key.new_ones(sets, key.shape[2]) if mask is None else _repeated(mask, sets).to(key.dtype)
            for mask, (key, _) in zip(masks, parts, strict=True)
        ]
        return KeyValueRows(keys, values, torch.cat(shown, dim=1))


Binding = KeyValueRows | Change
"""What acts at one module: rows in front of its keys and values, or a change of its output."""

# Module → what acts there now, in this thread or asyncio task. A mapping is replaced, never changed, so a reference to
# it is a snapshot. One variable for all main models: a module belongs to one of them.
_bound: ContextVar[Mapping[nn.Module, Any]] = ContextVar("hart_bound", default=MappingProxyType({}))
_hooking = threading.Lock()


@contextmanager
def binding(*parts: Mapping[nn.Module, Binding]) -> Iterator[None]:
    """Within, `parts` act at their modules, in this thread (or asyncio task) alone, beside what acts there already.

    Rows of two parts stand side by side; changes act one after the other, in the order of `parts`.
    """
    before = _bound.get()
    values: dict[nn.Module, Any] = dict(before)
    for part in parts:
        for module, value in part.items():
            present = values.get(module)
            if isinstance(value, KeyValueRows):
                values[module] = value if present is None else present.beside(value)
            else:
                _hook(module)
                values[module] = (*(present or ()), value)
    _bound.set(values)
    try:
        yield
    finally:
        _bound.set(before)


def _hook(module: nn.Module) -> None:
    """Let changes act on a module's output. The hook stays; without a change it does nothing."""
    if _HOOKED in module.__dict__:
        return
    with _hooking:  # of two threads one may have been faster
        if _HOOKED not in module.__dict__:
            module.register_forward_hook(_apply_changes)
            # Through __dict__, so that neither parameters nor the state dict see it.
            module.__dict__[_HOOKED] = True


def unhook(main: nn.Module) -> None:
    """Take away what `binding` has left on the modules of a copy that is to be a stock model."""
    for module in main.modules():
        if module.__dict__.pop(_HOOKED, False):
            module._forward_hooks.clear()


def checkpoint_contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
    """`context_fn` for `torch.utils.checkpoint`: recompute under what is bound now.

    A layer recomputed in the backward pass must find the rows of its own forward pass, whatever has been bound since.
    """
    return nullcontext(), _restored(_bound.get())


@contextmanager
def _restored(values: Mapping[nn.Module, Any]) -> Iterator[None]:
    current = _bound.get()
    _bound.set(values)
    try:
        yield
    finally:
        _bound.set(current)


def sites(main: T5ForConditionalGeneration, stack: Stack, target: str) -> list[nn.Module]:
    """The module called `target` in every layer of one stack."""
    return [_SITES[target](block) for block in getattr(main, stack).block]


def rows_for(rows: Tensor, like: Tensor) -> Tensor:
    """Bound rows `[n, …]` as `[batch or 1, …]` for a batch `like`, in its dtype.

    n must be 1 (for every row of the batch) or divide the batch: beam search and several returned sequences repeat
    each batch row in place, so entry i serves rows i·k … i·k+k-1.
    """
    batch, n = like.shape[0], rows.shape[0]
    if batch % n:
        raise ValueError(f"{n} sets of parameters cannot serve a batch of {batch} rows")
    rows = rows.to(like.dtype)
    return rows if n == 1 else _repeated(rows, batch)


def _repeated(rows: Tensor, sets: int) -> Tensor:
    """`[n, …]` as `[sets, …]`, entry i serving neighbours; n divides `sets`."""
    return rows if rows.shape[0] == sets else rows.repeat_interleave(sets // rows.shape[0], dim=0)


def product(inputs: Tensor, rows: Tensor) -> Tensor:
    """`[b, t, width]` times `[b or 1, width, k]`: one matrix product, batched where rows differ."""
    return inputs @ rows[0] if rows.shape[0] == 1 else torch.bmm(inputs, rows)


def _apply_changes(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
    changes: tuple[Change, ...] | None = _bound.get().get(module)
    if not changes:
        return None
    for change in changes:
        output = change(inputs[0], output)
    return output


def attach(main: T5ForConditionalGeneration, attention: str) -> None:
    """Switch a stock T5 to the attention functions that take rows; nothing is bound yet.

    Raises `HartError` for an attention other than those in `ATTENTION`.
    """
    if attention not in ATTENTION:
        raise HartError(f"attention must be one of {', '.join(ATTENTION)}, not {attention!r}")
    main.set_attn_implementation(ATTENTION[attention])


def rows_bound_to(module: nn.Module) -> KeyValueRows | None:
    """The rows in front of an attention module's keys and values, if there are any."""
    rows: KeyValueRows | None = _bound.get().get(module)
    return rows if rows is not None and rows.key.shape[2] else None
