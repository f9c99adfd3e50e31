"""The causal scheme: one pass in which each layer's state depends on those of the layers before it, without feedback.

It has HART's dependency (§3.1: the parameters of a layer are generated from those of the layers before it) without its
recursion. Each layer has a learned input; in every block of the decoder the positions of a layer attend to those of
the same and of earlier layers. So layer l is conditioned on the layers before it as in the autoregressive scheme, but
through their hidden vectors at each depth instead of their final states, in one pass instead of L steps. Without a
recursion, states cannot collapse into its fixed point (comparison in docs/results.md). Not in the paper.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from hart.hypernetwork.decoding import relative_bias
from hart.hypernetwork.schemes.base import register
from hart.hypernetwork.schemes.bidirectional import Bidirectional
from hart.hypernetwork.schemes.order import LayerOrder, Order
from hart.peft.base import RowBlock
from hart.runtime.third_party.transformers import T5Stack


@register
class Causal(Bidirectional):
    """One pass over z `[S·L·m, d]` with a causal mask over layers.

    Args:
        d_model: width of the decoder.
        layers: L.
        blocks: blocks to generate from the states; unused here.
        stacks: S.
        rows: m, the number of vectors of a state, as in `Bidirectional`.
        order: order of the layers: `bottom_up`, `top_down` or `random`, a fixed permutation (Table 7).
        order_seed: seed of the permutation; the result is the same in every process and on every machine.

    Raises:
        HartError: `order` is unknown, the seed is not a whole number ≥ 0, or `rows` is not a whole number ≥ 1.
    """

    name = "causal"

    def __init__(
        self,
        d_model: int,
        layers: int,
        blocks: Sequence[RowBlock],
        stacks: int = 2,
        *,
        rows: int = 1,
        order: Order = "bottom_up",
        order_seed: int = 0,
    ) -> None:
        super().__init__(d_model, layers, blocks, stacks, rows=rows)
        self.layer_order = LayerOrder(self.name, layers, order, order_seed)
        self.order = order
        self.order_seed = order_seed

    def bias(self, decoder: T5Stack) -> Float[Tensor, "1 heads x x"]:
        """The relative bias, with a large negative number for positions of later layers."""
        bias = relative_bias(decoder, self.z.shape[0])
        step = torch.arange(self.layers, device=bias.device).repeat_interleave(self.stacks * self.rows)
        return bias.masked_fill(step[None, :] > step[:, None], torch.finfo(bias.dtype).min)
