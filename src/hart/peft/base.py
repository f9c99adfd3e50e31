"""The interface of PEFT kinds: the row blocks that a layer of the main model receives, and their effect (§2.2, §4.1).

Every kind is a set of row blocks per layer. A kind declares its blocks, their standard deviation at the start of
training, and the sites of the main model at which they act. Each kind has one file in this package: a frozen dataclass
whose fields are its configuration, decorated with `register` and imported in `__init__.py`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self, TypeVar

from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, T5Config

from hart.errors import HartError
from hart.peft.architectures import Stack as Stack
from hart.peft.architectures import architecture, in_attention
from hart.peft.injection import Binding, Site, sites, weight_of
from hart.runtime.extensions import find

STACKS: tuple[Stack, ...] = ("encoder", "decoder")
"""All stacks in the order of the layer states; `MainShape.stacks` are those of one main model."""

Blocks = dict[str, Float[Tensor, "_n _L _p _width"]]
"""Block name → p rows per layer for each of n tasks; the rows of a single task serve a whole batch."""


@dataclass(frozen=True)
class MainShape:
    """The sizes of a main model that determine the shapes of generated parameters.

    `inner` = heads · d_kv is the width of queries and need not equal `d_model` (T5 v1.1-small: 6 · 64 = 384 against
    512); `kv_inner`, the width of keys and values, is smaller where several heads share them. A decoder-only model has
    no encoder layers.
    """

    d_model: int
    num_heads: int
    d_kv: int
    d_ff: int
    encoder_layers: int
    decoder_layers: int
    gated: bool = True
    """Whether the feed-forward has two input maps, wi_0 and wi_1 (T5 v1.1, Llama), or one (wi)."""
    kv_heads: int | None = None
    """Number of key and value heads if several query heads share one (grouped queries); None: as many as queries."""
    experts: bool = False
    """Whether the feed-forward is a mixture of experts, or of several widths, so that its maps are not sites; `d_ff` is
    then the total width of the experts of one token."""
    attention: tuple[int, ...] | None = None
    """Layers of a decoder-only model in which attention is a site; None: all layers."""

    def __post_init__(self) -> None:
        if self.attention is not None:  # a list, where it comes from a file
            object.__setattr__(self, "attention", tuple(self.attention))

    @property
    def inner(self) -> int:
        return self.num_heads * self.d_kv

    @property
    def heads_in_front(self) -> int:
        """Number of heads of keys and values."""
        return self.kv_heads or self.num_heads

    @property
    def kv_inner(self) -> int:
        return self.heads_in_front * self.d_kv

    @property
    def has_encoder(self) -> bool:
        """Whether the model has an encoder, and cross-attention to it."""
        return self.encoder_layers > 0

    @property
    def stacks(self) -> tuple[Stack, ...]:
        """The stacks of this model, in the order of the layer states."""
        return STACKS if self.has_encoder else ("decoder",)

    @property
    def depths(self) -> tuple[int, ...]:
        """Number of layers of each stack."""
        return tuple(map(self.layers, self.stacks))

    def layers(self, stack: Stack) -> int:
        return self.encoder_layers if stack == "encoder" else self.decoder_layers

    def block(self, name: str, stack: Stack, site: str, rows: int, width: int) -> "RowBlock":
        """A row block for all layers of a stack that have the site."""
        chosen = self.attention if in_attention(site) else None
        return RowBlock(name, stack, self.layers(stack) if chosen is None else len(chosen), rows, width, chosen)

    def widths(self, site: str) -> tuple[int, int]:
        """Input and output width of the linear map with this site name."""
        sizes = {
            "q": (self.d_model, self.inner),
            **dict.fromkeys(("k", "v"), (self.d_model, self.kv_inner)),
            "o": (self.inner, self.d_model),
            **dict.fromkeys(("wi", "wi_0", "wi_1"), (self.d_model, self.d_ff)),
            "wo": (self.d_ff, self.d_model),
        }
        return sizes[site.removeprefix("cross_")]

    @classmethod
    def of(cls, main: PreTrainedModel) -> Self:
        """The shape of a model, checked against the shapes of its linear maps.

        Raises:
            HartError: the architecture has no table of sites, or layers have other widths than the configuration.
        """
        shape = cls.from_config(main.config)
        for stack in shape.stacks:
            feed_forward = () if shape.experts else ("wo", *(("wi_0", "wi_1") if shape.gated else ("wi",)))
            for name in ("q", "k", "v", "o", *feed_forward):
                for layer, site in enumerate(sites(main, stack, name)):
                    found, wanted = tuple(weight_of(site).shape), shape.widths(name)[::-1]
                    if found != wanted:
                        raise HartError(
                            f"{main.config.model_type}: map {name} of {stack} layer {layer} has shape {list(found)} "
                            f"where its configuration says {list(wanted)}; hart needs layers of one width"
                        )
        return shape

    @classmethod
    def from_config(cls, config: PreTrainedConfig) -> Self:
        """The shape of a model from its configuration, without its weights.

        Raises:
            HartError: the architecture has no table of sites.
        """
        table = architecture(config)
        if not isinstance(config, T5Config):
            return cls(**table.sizes(config))
        return cls(
            d_model=config.d_model,
            num_heads=config.num_heads,
            d_kv=config.d_kv,
            d_ff=config.d_ff,
            encoder_layers=config.num_layers,
            decoder_layers=config.num_decoder_layers or config.num_layers,
            gated=config.is_gated_act,
        )


@dataclass(frozen=True)
class RowBlock:
    """One family of generated rows: `rows` rows of `width` numbers in each layer of one stack.

    `name` is `<kind>.<stack>.<part>`, e.g. `prefix.encoder.key`, the family's key in `Blocks`. `of` lists the layers
    that have such rows; None: all layers.
    """

    name: str
    stack: Stack
    layers: int
    rows: int
    width: int
    of: tuple[int, ...] | None = None


@dataclass(frozen=True)
class PeftKind(ABC):
    """One kind of PEFT parameters: its row blocks, their initialisation, and their effect on the main model.

    Concrete kinds are frozen dataclasses; their fields are the keys allowed in the configuration beside `kind`.
    `__post_init__` raises `HartError` for a value out of range.
    """

    name: ClassVar[str]
    identity_at_start: ClassVar[bool]
    """Whether untrained parameters leave the main model's outputs unchanged."""

    @abstractmethod
    def row_blocks(self, shape: MainShape) -> tuple[RowBlock, ...]:
        """The blocks of this kind for a main model of `shape`, in a fixed order.

        Raises:
            HartError: the main model lacks a site of this kind.
        """

    @abstractmethod
    def init_std(self, main: PreTrainedModel | None, shape: MainShape) -> dict[str, Float[Tensor, " _L"]]:
        """Block name → standard deviation of generated rows before training, for each layer.

        The values are computed from the weights of `main`, without data. With `main=None` (shapes only, or weights on
        the meta device) the weights are assumed to have the variance of T5's initialisation.
        """

    @abstractmethod
    def bindings(self, main: PreTrainedModel, blocks: Blocks) -> dict[Site, Binding]:
        """Site of `main` → action of `blocks` at it, with gradients, for `hart.peft.injection.binding`.

        `main` must have been prepared with `hart.peft.injection.attach`.
        """

    def to_config(self) -> dict[str, Any]:
        """The configuration that `build_kinds` turns back into this kind."""
        return {"kind": self.name, **{f.name: getattr(self, f.name) for f in fields(self)}}

    def _needs_cross_attention(self, shape: MainShape, field: str) -> None:
        """Raise `HartError` unless the main model has cross-attention, which `field` requires."""
        if not shape.has_encoder:
            raise HartError(f"peft.{self.name}.{field} is for cross-attention, which a decoder-only base lacks")

    def _needs_dense(self, shape: MainShape, field: str) -> None:
        """Raise `HartError` unless all layers have a dense feed-forward of one width, which `field` requires."""
        if shape.experts:
            raise HartError(
                f"peft.{self.name}.{field}: a mixture of experts, or a feed-forward of several widths, has no maps wi "
                "and wo; leave them out"
            )

    def _whole_number(self, field: str) -> None:
        """Raise `HartError` unless the value of `field` is a whole number ≥ 1."""
        value = getattr(self, field)
        if type(value) is not int or value < 1:
            raise HartError(f"peft.{self.name}.{field} must be a whole number ≥ 1, not {value!r}")


KINDS: dict[str, type[PeftKind]] = {}
"""Every kind by the name used in configurations."""

KindT = TypeVar("KindT", bound=type[PeftKind])


def register(kind: KindT) -> KindT:
    """Class decorator that makes a kind available to configurations under its `name`."""
    KINDS[kind.name] = kind
    return kind


def build_kinds(configs: Sequence[Mapping[str, Any]]) -> tuple[PeftKind, ...]:
    """Kinds from configurations such as `[{"kind": "prefix", "length": 32}]`, in the given order.

    Raises `HartError` for an unknown kind or field, or a kind that is listed twice.
    """
    kinds: list[PeftKind] = []
    for config in configs:
        values = dict(config)
        name = values.pop("kind", None)
        cls = find(KINDS, name)
        if cls is None:
            raise HartError(f"peft: unknown kind {name!r}; choose one of {', '.join(KINDS)}")
        if any(kind.name == name for kind in kinds):
            raise HartError(f"peft: kind {name!r} is given twice; keep one entry")
        known = [field.name for field in fields(cls)]
        unknown = [key for key in values if key not in known]
        if unknown:
            raise HartError(f"peft.{name}: unknown field {unknown[0]!r}; it takes {', '.join(known)}")
        kinds.append(cls(**values))
    return tuple(kinds)


def row_blocks(kinds: Sequence[PeftKind], shape: MainShape) -> tuple[RowBlock, ...]:
    """The blocks of all `kinds` for a main model of `shape`, in the order of the kinds."""
    return tuple(block for kind in kinds for block in kind.row_blocks(shape))


def check_blocks(kinds: Sequence[PeftKind], shape: MainShape, blocks: Mapping[str, Tensor]) -> None:
    """Raise `HartError` unless `blocks` are exactly the blocks of `kinds` for `shape`."""
    declared = {block.name: block for block in row_blocks(kinds, shape)}
    if blocks.keys() != declared.keys():
        raise HartError(f"blocks {sorted(blocks)} do not match the PEFT kinds, which take {sorted(declared)}")
    for name, values in blocks.items():
        block = declared[name]
        expected = (block.layers, block.rows, block.width)
        if values.dim() != 4 or tuple(values.shape[1:]) != expected:
            raise HartError(
                f"block {name} has shape {list(values.shape)}; this base and kind need "
                f"[batch, {', '.join(map(str, expected))}]"
            )
