"""Injection of generated parameters into a stock transformers model (§4.1).

Attention modules take extra keys and values in front of their own, through the functions in `hart.peft.attention` (T5)
and `hart.peft.decoder_attention` (decoder-only models).

Any other module (a linear map, the feed-forward, an activation) takes *changes*: functions of its input and output
that return a new output, called by a forward hook. LoRA, adapters and (IA)³ are such changes. Several changes of one
module act in the order in which they were bound, which is the order of the configuration's list. Each receives the
module's own input and the output of the change before it.

Bindings are local to a thread or asyncio task (`contextvars`), so several of them can use the same modules with
different parameters at the same time.
"""

import functools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, Self

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hart.errors import HartError
from hart.peft.architectures import Stack, architecture
from hart.peft.modules import at, layers_with
from hart.runtime.third_party.torch import forget_compiled

ATTENTION = {"sdpa": "hart_sdpa", "eager": "hart_eager"}
"""Stock attention implementation of a T5 → the registered one that takes extra keys (`hart.peft.attention`)."""

DECODER_ATTENTION = {"sdpa": "hart_decoder_sdpa", "eager": "hart_decoder_eager"}
"""The same for decoder-only models (`hart.peft.decoder_attention`)."""

_HOOKED, _INPUT_HOOKED = "hart_hooked", "hart_input_hooked"

Change = Callable[[Tensor, Tensor], Tensor]
"""(input, output) of a module → its new output; all `[batch, tokens, width]`."""

InputChange = Callable[[Tensor], Tensor]
"""Input of a module → its new input."""


@dataclass(frozen=True)
class Slice:
    """Columns of a module's output that form a map of their own, where a model fuses several maps into one.

    The output consists of `groups` groups of equal width; the slice has columns `start` to `stop` of each group.
    """

    module: nn.Module
    groups: int
    start: int
    stop: int

    def of(self, output: Shaped[Tensor, "*any out"]) -> Shaped[Tensor, "*any part"]:
        """The columns of this slice, those of all groups side by side."""
        return output.unflatten(-1, (self.groups, -1))[..., self.start : self.stop].flatten(-2)

    def put(self, output: Shaped[Tensor, "*any out"], part: Shaped[Tensor, "*any part"]) -> Shaped[Tensor, "*any out"]:
        """The output with `part` in the columns of this slice."""
        whole, new = (each.unflatten(-1, (self.groups, -1)) for each in (output, part))
        return torch.cat([whole[..., : self.start], new, whole[..., self.stop :]], dim=-1).flatten(-2)


@dataclass(frozen=True)
class Input:
    """The input of a module: its first argument of floating-point type, or of integer type (positions)."""

    module: nn.Module
    whole_numbers: bool = False


Site = nn.Module | Slice | Input
"""A place where a binding acts: a module's output, some columns of it, or its input."""


class ExtraKeyValues(NamedTuple):
    """Extra keys and values in front of those of one attention module; n as in `for_batch`.

    Attributes:
        mask: 0 where they are hidden; None: all are visible.
        placeless: number of keys, at the end, that have no position (a memory), so that a sliding window always
            includes them. The keys before them count as a past of as many tokens.
    """

    key: Float[Tensor, "n heads p d_kv"]
    value: Float[Tensor, "n heads p d_kv"]
    mask: Shaped[Tensor, "n p"] | None = None
    placeless: int = 0

    @classmethod
    def from_blocks(cls, key: Float[Tensor, "n p inner"], value: Float[Tensor, "n p inner"], heads: int) -> Self:
        """Split generated rows of width inner = heads · d_kv into heads."""
        split = (each.unflatten(-1, (heads, -1)).transpose(1, 2) for each in (key, value))
        return cls(*split)

    def beside(self, other: "ExtraKeyValues") -> "ExtraKeyValues":
        """Both together, those of `other` last; n is the larger of the two.

        Raises:
            ValueError: this one has keys without a position, which must come last.
        """
        if self.placeless:
            raise ValueError("what is at no position comes last")
        n = max(self.key.shape[0], other.key.shape[0])
        parts = [[repeated(each, n) for each in (extra.key, extra.value)] for extra in (self, other)]
        keys, values = (torch.cat([first, second.to(first.dtype)], dim=2) for first, second in zip(*parts, strict=True))
        masks = [extra.mask for extra in (self, other)]
        if masks == [None, None]:
            return ExtraKeyValues(keys, values, placeless=other.placeless)
        shown = [
            key.new_ones(n, key.shape[2]) if mask is None else repeated(mask, n).to(key.dtype)
            for mask, (key, _) in zip(masks, parts, strict=True)
        ]
        return ExtraKeyValues(keys, values, torch.cat(shown, dim=1), other.placeless)


Binding = ExtraKeyValues | Change | InputChange
"""The action at one site: extra keys and values, or a change of its output or input."""

# Module or `Input` → its current bindings in this thread or asyncio task. The mapping is replaced and never mutated, so
# a reference to it is a snapshot. All main models share this variable, as each module belongs to only one of them.
_bound: ContextVar[Mapping[nn.Module | Input, Any]] = ContextVar("hart_bound", default=MappingProxyType({}))
_hooking = threading.Lock()


@contextmanager
def binding(*parts: Mapping[Site, Binding]) -> Iterator[None]:
    """Context in which `parts` act at their sites, in this thread or asyncio task only, after existing bindings.

    Keys and values of several parts are concatenated; changes act one after the other, in the order of `parts`.
    """
    before = _bound.get()
    values: dict[nn.Module | Input, Any] = dict(before)
    for part in parts:
        for site, value in part.items():
            key = site.module if isinstance(site, Slice) else site
            present = values.get(key)
            if isinstance(value, ExtraKeyValues):
                values[key] = value if present is None else present.beside(value)
            else:
                _hook(key)
                acting: Any = functools.partial(_change_slice, site, value) if isinstance(site, Slice) else value
                values[key] = (*(present or ()), acting)
    _bound.set(values)
    try:
        yield
    finally:
        _bound.set(before)


def _hook(place: nn.Module | Input) -> None:
    """Register the hook by which changes act at `place`. It stays registered, and does nothing without a change."""
    module, mark = (place.module, _INPUT_HOOKED) if isinstance(place, Input) else (place, _HOOKED)
    if getattr(module, mark, False):
        return
    with _hooking:  # another thread may have registered it since
        if not getattr(module, mark, False):
            if isinstance(place, Input):
                hook = _apply_to_whole_numbers if place.whole_numbers else _apply_to_real_numbers
                module.register_forward_pre_hook(hook, with_kwargs=True)
            else:
                module.register_forward_hook(_apply_changes)
            setattr(module, mark, True)  # on the module, since its copies have the hook, too
            forget_compiled()  # compiled code does not notice hooks that are registered later


def checkpoint_contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
    """`context_fn` for `torch.utils.checkpoint`: recomputation uses the bindings of the time of this call.

    A layer that the backward pass recomputes needs the bindings of its forward pass, even if others have replaced them.
    """
    return nullcontext(), _restored(_bound.get())


@contextmanager
def _restored(values: Mapping[nn.Module | Input, Any]) -> Iterator[None]:
    current = _bound.get()
    _bound.set(values)
    try:
        yield
    finally:
        _bound.set(current)


def sites(main: PreTrainedModel, stack: Stack, target: str) -> list[Site]:
    """The sites named `target` in all layers of one stack that have one.

    Raises:
        HartError: this architecture has no such site.
    """
    table = architecture(main.config)
    inner = target == "feed_forward_inner" and target not in table.sites
    place = table.sites.get("wo" if inner else target)
    if place is None:
        raise HartError(f"peft: main models of the architecture {main.config.model_type!r} have no {target}")
    path = place if isinstance(place, str) else place.path
    modules = [at(layer, path) for layer in layers_with(main, stack, target)]
    if inner:
        return [Input(module) for module in modules]
    if isinstance(place, str):
        return list(modules)
    sizes = table.sizes(main.config)
    kv_heads = sizes["kv_heads"] or sizes["num_heads"]
    heads = {"q": sizes["num_heads"], "gate": sizes["num_heads"], "k": kv_heads, "v": kv_heads}
    widths = [heads[part] * sizes["d_kv"] if part in heads else sizes["d_ff"] for part in place.parts]
    groups = sizes["num_heads"] if place.per_head else 1
    before = place.parts.index(target)
    start, stop = (sum(widths[:end]) // groups for end in (before, before + 1))
    return [Slice(module, groups, start, stop) for module in modules]


def positions(main: PreTrainedModel) -> list[Input]:
    """The inputs through which a decoder-only model receives token positions; empty for a T5."""
    table = architecture(main.config)
    told = [] if table.positions is None else [at(main, table.positions)]
    if table.positions_in_attention:
        told += [module_of(each) for each in sites(main, "decoder", "self_attention")]
    return [Input(module, whole_numbers=True) for module in told if module is not None]


def learned_positions(main: PreTrainedModel) -> int | None:
    """Number of positions of a model with learned position embeddings (GPT-2); None for other models."""
    told = positions(main)
    return told[0].module.num_embeddings if told and isinstance(told[0].module, nn.Embedding) else None


def module_of(site: Site) -> nn.Module:
    """The module that a site belongs to."""
    return site if isinstance(site, nn.Module) else site.module


def weight_of(site: Site) -> Float[Tensor, "out in"]:
    """The weights of a linear map in the layout of `nn.Linear`; those of GPT-2 (`Conv1D`) are transposed."""
    module: Any = module_of(site)
    weight = module.weight.T if isinstance(module, Conv1D) else module.weight
    return site.of(weight.T).T if isinstance(site, Slice) else weight


def mapped(chosen: Sequence[Site], inputs: Float[Tensor, "b t in"]) -> list[Float[Tensor, "b t _out"]]:
    """Outputs of several linear maps, or slices of one, for the same inputs, including biases and bindings.

    A module to which several sites belong runs once.
    """
    outputs: dict[nn.Module, Tensor] = {}
    made = []
    for site in chosen:
        module = module_of(site)
        if module not in outputs:
            outputs[module] = module(inputs)
        made.append(site.of(outputs[module]) if isinstance(site, Slice) else outputs[module])
    return made


def for_batch(values: Shaped[Tensor, "n ..."], like: Shaped[Tensor, "b ..."]) -> Shaped[Tensor, "b_or_1 ..."]:
    """Bound values of n sets, repeated for the batch of `like`, in its dtype; a single set stays as it is.

    Beam search and several returned sequences repeat each row of the batch in place, so with k = b / n set i serves the
    rows i·k to i·k + k − 1.

    Raises:
        ValueError: n does not divide the batch.
    """
    batch, n = like.shape[0], values.shape[0]
    if batch % n:
        raise ValueError(f"{n} sets of parameters cannot serve a batch of {batch} rows")
    values = values.to(like.dtype)
    return values if n == 1 else repeated(values, batch)


def repeated(values: Shaped[Tensor, "n ..."], sets: int) -> Shaped[Tensor, "_sets ..."]:
    """Values of n sets, each repeated in place to give `sets` of them; n divides `sets`."""
    return values if values.shape[0] == sets else values.repeat_interleave(sets // values.shape[0], dim=0)


def product(inputs: Float[Tensor, "b t x"], maps: Float[Tensor, "#b x y"]) -> Float[Tensor, "b t y"]:
    """inputs · maps: one matrix product for a single map, a batched one for a map per row of the batch."""
    return inputs @ maps[0] if maps.shape[0] == 1 else torch.bmm(inputs, maps)


def _acting_at(place: nn.Module | Input) -> Any:
    """The current binding at a place, or None."""
    return _looked_up(place) if torch.compiler.is_compiling() else _bound.get().get(place)


@torch.compiler.disable
def _looked_up(place: nn.Module | Input) -> Any:
    # Not compiled: torch 2.15 would trace the answer as a constant and use it for the following layers, too.
    return _bound.get().get(place)


def _apply_changes(module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> Any:
    changes: tuple[Change, ...] | None = _acting_at(module)
    if not changes:
        return None
    if isinstance(output, tuple):  # the experts of gpt-oss return the router's scores, too
        return (_changed(changes, inputs[0], output[0]), *output[1:])
    return _changed(changes, inputs[0], output)


def _changed(changes: tuple[Change, ...], inputs: Tensor, output: Tensor) -> Tensor:
    for change in changes:
        output = change(inputs, output)
    return output


def _change_slice(columns: Slice, change: Any, inputs: Tensor, output: Tensor) -> Tensor:
    return columns.put(output, change(inputs, columns.of(output)))


def _apply_to_real_numbers(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return _changed_input(Input(module), args, kwargs)


def _apply_to_whole_numbers(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return _changed_input(Input(module, whole_numbers=True), args, kwargs)


def _changed_input(place: Input, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    changes: tuple[InputChange, ...] | None = _acting_at(place)
    if not changes:
        return None
    # Arguments are positional or named, depending on how the model calls the module.
    given: dict[Any, Any] = {**dict(enumerate(args)), **kwargs}
    for name, value in given.items():
        # Masks are neither floating-point nor int64, and stay unchanged.
        if isinstance(value, Tensor) and (
            value.dtype == torch.long if place.whole_numbers else value.is_floating_point()
        ):
            for change in changes:
                value = change(value)
            given[name] = value
            break
    return tuple(given[index] for index in range(len(args))), {name: given[name] for name in kwargs}


def attach(main: PreTrainedModel, attention: str) -> None:
    """Switch a stock model to the attention functions that take extra keys; nothing is bound yet.

    A model whose attention is beyond fused kernels (Gemma 2) gets `eager`, as in transformers.

    Raises:
        HartError: `attention` is not a key of `ATTENTION`, or the architecture has no table of sites.
    """
    if attention not in ATTENTION:
        raise HartError(f"attention must be one of {', '.join(ATTENTION)}, not {attention!r}")
    table = architecture(main.config)
    names = ATTENTION if table.has_encoder else DECODER_ATTENTION
    main.set_attn_implementation(names["eager" if table.eager else attention])


def extra_at(module: nn.Module) -> ExtraKeyValues | None:
    """The extra keys and values bound at an attention module; None if there are none."""
    extra: ExtraKeyValues | None = _acting_at(module)
    return extra if extra is not None and extra.key.shape[2] else None


@torch.compiler.disable
def extra_anywhere() -> bool:
    """Whether extra keys and values are bound at any module."""
    return any(isinstance(value, ExtraKeyValues) and value.key.shape[2] for value in _bound.get().values())


def joined(
    extra: Float[Tensor, "n heads p d_kv"], tokens: Float[Tensor, "b heads s d_kv"]
) -> Float[Tensor, "b heads p+s d_kv"]:
    """The extra keys (or values) followed by those of the tokens."""
    return torch.cat([for_batch(extra, tokens).expand(tokens.shape[0], -1, -1, -1), tokens], dim=2)
