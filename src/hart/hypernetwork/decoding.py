"""Step-by-step decoding of embeddings with the blocks of a stock T5 decoder, several positions per step.

`T5Stack.forward` builds masks and zero biases in every call and only decodes causally, one position at a time. A scheme
makes tens of steps with two positions each, which attend to each other. So this file calls the sub-modules of the stock
blocks (norms, projections, feed-forward, dropout) in the stock order with a precomputed bias; weights and arithmetic
stay in the stock modules. The linear maps of a hypernetwork are `StepLinear`s: the same maps, optimised on a CPU for
many steps.

One deviation: the stock stack ends with dropout, this pass with the final norm, because a state that is fed back passes
the dropout of the next step's input anyway, and the consistency loss is to compare states without noise.
"""

from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from hart.hypernetwork.step_linear import Steps
from hart.runtime.third_party.transformers import T5Attention, T5Stack

MANY = 64
"""Number of positions in a step from which gradient checkpointing recomputes attention weights."""


class DecoderPass:
    """A decoder conditioned on the memories of n tasks, with the keys and values of its past positions.

    Keys and values of cross-attention are computed once, at construction; those of self-attention grow with every
    `step`. All of them carry gradients.

    Args:
        decoder: a stock T5 decoder stack.
        memory: encoded demonstrations.
        memory_mask: 1 for tokens and 0 for padding; each task needs at least one token.

    Attributes:
        attention_weights: weights of the last layer's self-attention in the latest step.
        before_norm: states of the latest step, before the final norm.
    """

    attention_weights: Float[Tensor, "n heads x k"]
    before_norm: Float[Tensor, "n x d"]

    def __init__(self, decoder: T5Stack, memory: Float[Tensor, "n s d"], memory_mask: Shaped[Tensor, "n s"]) -> None:
        self._decoder = decoder
        self._steps = Steps()
        self._recomputes: bool = decoder.gradient_checkpointing
        blocks: Any = decoder.block
        # Self-attention, cross-attention and feed-forward of each block.
        self._layers = [tuple(block.layer) for block in blocks]
        hidden = memory_mask[:, None, None, :] == 0
        self._memory_bias = torch.zeros_like(hidden, dtype=memory.dtype).masked_fill(
            hidden, torch.finfo(memory.dtype).min
        )
        # Made contiguous once; otherwise every step of a batch would copy them for its matrix products.
        self._of_memory: list[tuple[Tensor, Tensor]] = []
        for _, cross_attention, _ in self._layers:
            keys, values = _keys_and_values(cross_attention.EncDecAttention, memory)
            self._of_memory.append((keys.contiguous(), values.contiguous()))
        self._past: list[tuple[Tensor, Tensor] | None] = [None] * len(self._layers)

    def step(self, inputs: Float[Tensor, "n x d"], bias: Float[Tensor, "1 heads x k"]) -> Float[Tensor, "n x d"]:
        """Decode x more positions after the k − x before them.

        Args:
            inputs: embeddings.
            bias: bias of the self-attention scores: the relative bias, with a large negative number for hidden
                positions.

        Returns:
            The states, after the final norm.
        """
        with self._steps:
            return self._step(inputs, bias)

    def _step(self, inputs: Tensor, bias: Tensor) -> Tensor:
        hidden = self._decoder.dropout(inputs)
        for index, (self_attention, cross_attention, feed_forward) in enumerate(self._layers):
            normed = self_attention.layer_norm(hidden)
            keys, values = _keys_and_values(self_attention.SelfAttention, normed)
            past = self._past[index]
            if past is not None:
                keys, values = torch.cat((past[0], keys), 2), torch.cat((past[1], values), 2)
            self._past[index] = keys, values
            attended, self.attention_weights = self._attend(self_attention.SelfAttention, normed, keys, values, bias)
            hidden = hidden + self_attention.dropout(attended)

            normed = cross_attention.layer_norm(hidden)
            keys, values = self._of_memory[index]
            attended, _ = self._attend(cross_attention.EncDecAttention, normed, keys, values, self._memory_bias)
            hidden = hidden + cross_attention.dropout(attended)

            hidden = feed_forward(hidden)
        self.before_norm = hidden
        return self._decoder.final_layer_norm(hidden)

    def _attend(
        self,
        attention: T5Attention,
        hidden: Float[Tensor, "n x d"],
        keys: Float[Tensor, "n heads k d_kv"],
        values: Float[Tensor, "n heads k d_kv"],
        bias: Float[Tensor, "#n #heads #x k"],
    ) -> tuple[Float[Tensor, "n x d"], Float[Tensor, "n heads x k"]]:
        """The output of T5 attention (unscaled scores) after its projection to d, and the attention weights.

        Computed by plain matrix products, as a fused kernel saves little for a few queries and the relative bias needs
        gradients. For many queries, gradient checkpointing recomputes the weights, which take most of the memory.
        """
        queries = _split_heads(attention, attention.q(hidden))
        rate = attention.dropout if attention.training else 0.0
        if self._recomputes and queries.shape[2] >= MANY and torch.is_grad_enabled():
            mixed, weights = checkpoint(_mixed, queries, keys, values, bias, rate, use_reentrant=False)
        else:
            mixed, weights = _mixed(queries, keys, values, bias, rate)
        return attention.o(mixed.transpose(1, 2).flatten(2)), weights

    def forget(self) -> None:
        """Drop the past positions; the next step attends only to itself and the memory."""
        self._past = [None] * len(self._past)


def relative_bias(decoder: T5Stack, length: int) -> Float[Tensor, "1 heads k k"]:
    """The decoder's relative position bias for k = `length` positions, with gradients.

    T5 gives later positions the bias of distance 0; this applies between positions of the same step.
    """
    first: Any = decoder.block[0]
    return first.layer[0].SelfAttention.compute_bias(length, length)


def _keys_and_values(
    attention: T5Attention, hidden: Float[Tensor, "n k d"]
) -> tuple[Float[Tensor, "n heads k d_kv"], Float[Tensor, "n heads k d_kv"]]:
    return _split_heads(attention, attention.k(hidden)), _split_heads(attention, attention.v(hidden))


def _split_heads(attention: T5Attention, wide: Float[Tensor, "n k inner"]) -> Float[Tensor, "n heads k d_kv"]:
    return wide.unflatten(-1, (attention.n_heads, -1)).transpose(1, 2)


def _mixed(
    queries: Float[Tensor, "n heads x d_kv"],
    keys: Float[Tensor, "n heads k d_kv"],
    values: Float[Tensor, "n heads k d_kv"],
    bias: Float[Tensor, "#n #heads #x k"],
    rate: float,
) -> tuple[Float[Tensor, "n heads x d_kv"], Float[Tensor, "n heads x k"]]:
    """Values averaged by attention weights after dropout with a rate, and the weights before dropout."""
    weights = F.softmax(queries @ keys.transpose(-1, -2) + bias, dim=-1).type_as(values)
    return F.dropout(weights, rate) @ values, weights
