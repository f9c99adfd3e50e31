"""The seams of a stock transformers T5 at which generated parameters act (§4.1).

Keys and values of attention take rows in front, through the attention functions in `hart.peft.attention`.

Any other named module (a linear map, the feed-forward, an activation) takes *changes*: functions of its input and
output that give a new output, called by a forward hook. LoRA, adapters and (IA)³ are such changes. Several kinds may
change one module: they act in the order in which they were bound, which is that of the configuration's list, each on
what the one before it gives. All of them see the module's own input.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn
from transformers import T5ForConditionalGeneration

from hart.errors import HartError

ATTENTION = {"sdpa": "hart_sdpa", "eager": "hart_eager"}
"""Stock attention implementation → the registered one that takes rows (`hart.peft.attention`)."""

_BOUND, _HOOKED = "_hart_bound", "_hart_hooked"

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

    def add_changes(self, owner: str, changes: Mapping[nn.Module, Change]) -> None:
        """Let `changes` act on the outputs of their modules, after those that other owners have added."""
        for module in changes:
            if _HOOKED not in module.__dict__:
                module.register_forward_hook(_apply_changes)
                module.__dict__[_HOOKED] = True
        self.update({module: {**self.values.get(module, {}), owner: change} for module, change in changes.items()})

    def remove_changes(self, owner: str) -> None:
        """Take away all changes that `owner` has added."""
        kept: dict[nn.Module, Any] = {}
        for module, value in self.values.items():
            if isinstance(value, dict):
                value = {name: change for name, change in value.items() if name != owner}
            if value:
                kept[module] = value
        self.values = kept

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
    return rows if n in (1, batch) else rows.repeat_interleave(batch // n, dim=0)


def product(inputs: Tensor, rows: Tensor) -> Tensor:
    """`[b, t, width]` times `[b or 1, width, k]`: one matrix product, batched where rows differ."""
    return inputs @ rows[0] if rows.shape[0] == 1 else torch.bmm(inputs, rows)


def _apply_changes(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
    changes = module.__dict__[_BOUND].values.get(module)
    if not changes:
        return None
    for change in changes.values():
        output = change(inputs[0], output)
    return output


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


def rows_bound_to(module: nn.Module) -> KeyValueRows | None:
    """The rows in front of an attention module's keys and values, if there are any.

    Stacks that borrow the attention functions without being a main model have no bindings.
    """
    bound = module.__dict__.get(_BOUND)
    rows = None if bound is None else bound.values.get(module)
    return rows if rows is not None and rows.key.shape[2] else None
