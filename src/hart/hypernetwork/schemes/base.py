"""The interface of generation schemes, which produce a state for each layer of the main model (§2.2, §3.1).

Every scheme produces layer states `[n, S, L, m, d]` from the encoded demonstrations of n tasks: axis 1 is the stack of
the main model (for a T5: 0 encoder, 1 decoder), L the number of layers, m the number of vectors of one state. A scheme
owns its learnable inputs; the decoder belongs to the hypernetwork. Each scheme has one file in this package, with a
class decorated with `register` and imported in `__init__.py`.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from jaxtyping import Float, Shaped
from torch import Tensor, nn

from hart.errors import HartError
from hart.peft.base import RowBlock
from hart.runtime.extensions import find
from hart.runtime.third_party.transformers import T5Stack


class GenerationScheme(nn.Module, ABC):
    """Turns encoded demonstrations into layer states by running the hypernetwork's decoder.

    Concrete schemes accept `(d_model, layers, blocks, stacks)` and then keyword-only arguments, which are the keys
    allowed in the configuration beside `name`; each is kept as an attribute of the same name.

    Attributes:
        layers: L, the number of layers of the main model's deepest stack.
        stacks: S, the number of stacks of the main model: 2 for a T5, 1 for a decoder-only model.
        state_vectors: m, the number of vectors of one state.
        uses_decoder: False for a scheme without a T5 decoder; the hypernetwork then has none.
        shared_by_layers: True for a scheme with one state for all layers.
    """

    name: ClassVar[str]
    uses_decoder: ClassVar[bool] = True
    shared_by_layers: ClassVar[bool] = False
    layers: int
    stacks: int
    state_vectors: int

    @property
    def positions(self) -> int:
        """Number of vectors that the decoder computes for one task in all steps."""
        return self.stacks * self.layers * self.state_vectors

    @abstractmethod
    def reset_parameters(self, std: float) -> None:
        """Draw the learnable inputs; `std` is the standard deviation of the embeddings of the decoder's checkpoint."""

    def vectors_of(self, block: RowBlock) -> slice:
        """The vectors of a state, of m, that serve `block`; by default all."""
        return slice(0, self.state_vectors)

    @abstractmethod
    def forward(
        self, decoder: T5Stack | None, memory: Float[Tensor, "n s d"], memory_mask: Shaped[Tensor, "n s"]
    ) -> Float[Tensor, "n S L m d"]:
        """Layer states for a batch of encoded demonstrations.

        Args:
            decoder: a stock T5 decoder stack; the scheme uses its blocks and final norm. None if `uses_decoder` is
                False.
            memory: encoded demonstrations.
            memory_mask: 1 for tokens and 0 for padding.

        Returns:
            The states, after the decoder's final norm.
        """

    @classmethod
    def options(cls) -> dict[str, Any]:
        """Name of each option → its default."""
        parameters = inspect.signature(cls.__init__).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}

    def to_config(self) -> dict[str, Any]:
        """The configuration for `build_scheme`, including defaults."""
        return {"name": self.name, **{name: getattr(self, name) for name in self.options()}}


SCHEMES: dict[str, type[GenerationScheme]] = {}
"""Every scheme by the name used in configurations."""

SchemeT = TypeVar("SchemeT", bound=type[GenerationScheme])


def register(scheme: SchemeT) -> SchemeT:
    """Class decorator that makes a scheme available to configurations under its `name`."""
    SCHEMES[scheme.name] = scheme
    return scheme


def uses_decoder(config: Mapping[str, Any]) -> bool:
    """Whether the scheme of a configuration runs the hypernetwork's decoder; True for an unknown scheme."""
    scheme = find(SCHEMES, config.get("name"))
    return scheme is None or scheme.uses_decoder


def with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """A scheme's configuration, completed with the defaults of missing options."""
    scheme = find(SCHEMES, config.get("name"))
    return {**(scheme.options() if scheme is not None else {}), **config}


def scheme_of(config: Mapping[str, Any]) -> tuple[type[GenerationScheme], dict[str, Any]]:
    """The class of a scheme's configuration, and its options, whose values are not checked.

    Raises:
        HartError: the scheme or an option is unknown.
    """
    options = dict(config)
    name = options.pop("name", None)
    scheme = find(SCHEMES, name)
    if scheme is None:
        raise HartError(f"scheme: unknown name {name!r}; choose one of {', '.join(SCHEMES)}")
    known = scheme.options()
    unknown = [option for option in options if option not in known]
    if unknown:
        takes = f"takes {', '.join(known)}" if known else "has no options"
        raise HartError(f"scheme.{name}: unknown option {unknown[0]!r}; it {takes}")
    return scheme, options


def build_scheme(
    config: Mapping[str, Any], *, d_model: int, layers: int, blocks: Sequence[RowBlock], stacks: int = 2
) -> GenerationScheme:
    """A scheme from a configuration such as `{"name": "autoregressive"}`.

    Args:
        d_model: width of the decoder.
        layers: L, the largest number of layers of the main model's stacks.
        blocks: blocks to generate from the states.
        stacks: S, the number of stacks of the main model.

    Raises:
        HartError: the scheme or an option is unknown, or an option is out of range.
    """
    scheme, options = scheme_of(config)
    built = scheme(d_model, layers, blocks, stacks, **options)
    for block in blocks:
        vectors = built.vectors_of(block)
        if block.rows % (vectors.stop - vectors.start):
            raise HartError(
                f"scheme.{scheme.name}: states of {vectors.stop - vectors.start} rows do not divide the {block.rows} "
                f"rows of {block.name}; choose sizes that do"
            )
    return built
