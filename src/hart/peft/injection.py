"""The seams of a stock transformers T5 at which generated parameters act (§4.1).

Attention takes further keys and values in front of its own, through the functions in `hart.peft.attention`.

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
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from transformers import T5ForConditionalGeneration

from hart.errors import HartError

ATTENTION = {"sdpa": "hart_sdpa", "eager": "hart_eager"}
"""Stock attention implementation → the registered one with seams (`hart.peft.attention`)."""

_HOOKED = "hart_hooked"

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


class ExtraKeyValues(NamedTuple):
    """Keys and values in front of one module's own; n as in `for_batch`.

    `mask` is 0 where they are hidden; None hides none.
    """

    key: Float[Tensor, "n heads p d_kv"]
    value: Float[Tensor, "n heads p d_kv"]
    mask: Shaped[Tensor, "n p"] | None = None

    @classmethod
    def from_blocks(cls, key: Float[Tensor, "n p inner"], value: Float[Tensor, "n p inner"], heads: int) -> Self:
        """From generated rows of heads · d_kv numbers."""
        split = (each.unflatten(-1, (heads, -1)).transpose(1, 2) for each in (key, value))
        return cls(*split)

    def beside(self, other: "ExtraKeyValues") -> "ExtraKeyValues":
        """These and then the `other` ones, in as many sets as the larger of the two has."""
        n = max(self.key.shape[0], other.key.shape[0])
        parts = [[_repeated(each, n) for each in (extra.key, extra.value)] for extra in (self, other)]
        keys, values = (torch.cat([first, second.to(first.dtype)], dim=2) for first, second in zip(*parts, strict=True))
        masks = [extra.mask for extra in (self, other)]
        if masks == [None, None]:
            return ExtraKeyValues(keys, values)
        shown = [
            key.new_ones(n, key.shape[2]) if mask is None else _repeated(mask, n).to(key.dtype)
            for mask, (key, _) in zip(masks, parts, strict=True)
        ]
        return ExtraKeyValues(keys, values, torch.cat(shown, dim=1))


Binding = ExtraKeyValues | Change
"""What acts at one module: keys and values in front of its own, or a change of its output."""

# Module → what acts there now, in this thread or asyncio task. A mapping is replaced, never changed, so a reference to
# it is a snapshot. One variable for all main models: a module belongs to one of them.
_bound: ContextVar[Mapping[nn.Module, Any]] = ContextVar("hart_bound", default=MappingProxyType({}))
_hooking = threading.Lock()


@contextmanager
def binding(*parts: Mapping[nn.Module, Binding]) -> Iterator[None]:
    """Within, `parts` act at their modules, in this thread (or asyncio task) alone, beside what acts there already.

    Keys and values of two parts stand side by side; changes act one after the other, in the order of `parts`.
    """
    before = _bound.get()
    values: dict[nn.Module, Any] = dict(before)
    for part in parts:
        for module, value in part.items():
            present = values.get(module)
            if isinstance(value, ExtraKeyValues):
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
    if getattr(module, _HOOKED, False):
        return
    with _hooking:  # of two threads one may have been faster
        if not getattr(module, _HOOKED, False):
            module.register_forward_hook(_apply_changes)
            setattr(module, _HOOKED, True)  # on the module, so that a copy, which has the hook, knows it too


def checkpoint_contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
    """`context_fn` for `torch.utils.checkpoint`: recompute under what is bound now.

    A layer recomputed in the backward pass must find what acted in its own forward pass, whatever has been bound since.
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


def for_batch(values: Shaped[Tensor, "n ..."], like: Shaped[Tensor, "b ..."]) -> Shaped[Tensor, "b_or_1 ..."]:
    """Bound values of n sets for a batch `like`, in its dtype.

    n must be 1 (for every row of the batch) or divide the batch: beam search and several returned sequences repeat
    each row of the batch in place, so set i serves rows i·k … i·k+k-1.
    """
    batch, n = like.shape[0], values.shape[0]
    if batch % n:
        raise ValueError(f"{n} sets of parameters cannot serve a batch of {batch} rows")
    values = values.to(like.dtype)
    return values if n == 1 else _repeated(values, batch)


def _repeated(values: Tensor, sets: int) -> Tensor:
    """`[n, …]` as `[sets, …]`, each one serving neighbours; n divides `sets`."""
    return values if values.shape[0] == sets else values.repeat_interleave(sets // values.shape[0], dim=0)


def product(inputs: Float[Tensor, "b t x"], maps: Float[Tensor, "#b x y"]) -> Float[Tensor, "b t y"]:
    """One matrix product, batched where the maps differ."""
    return inputs @ maps[0] if maps.shape[0] == 1 else torch.bmm(inputs, maps)


def _apply_changes(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
    changes: tuple[Change, ...] | None = _bound.get().get(module)
    if not changes:
        return None
    for change in changes:
        output = change(inputs[0], output)
    return output


def attach(main: T5ForConditionalGeneration, attention: str) -> None:
    """Switch a stock T5 to the attention functions with seams; nothing is bound yet.

    Raises `HartError` for an attention other than those in `ATTENTION`.
    """
    if attention not in ATTENTION:
        raise HartError(f"attention must be one of {', '.join(ATTENTION)}, not {attention!r}")
    main.set_attn_implementation(ATTENTION[attention])


def extra_at(module: nn.Module) -> ExtraKeyValues | None:
    """The keys and values in front of an attention module's own, if there are any."""
    extra: ExtraKeyValues | None = _bound.get().get(module)
    return extra if extra is not None and extra.key.shape[2] else None
