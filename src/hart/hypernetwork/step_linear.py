"""Linear maps for decoders with many short steps on a CPU: faster products, one weight gradient for all steps.

A step of one task multiplies two vectors by all weights of the decoder, so its time is that of reading the weights. In
the forward pass, torch's CPU library reads weights two to three times as fast if they are the left operand of a product
with few vectors. In the backward pass, each step would write a gradient as large as the weights and add it to that of
later steps; here inputs and output gradients are kept until the first step is reached, and one product computes the
gradient of all steps. On a GPU, and under `torch.compile`, the maps are torch's own.
"""

from contextlib import nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from hart.runtime.devices import takes_cpu_paths

MOST_FEW = 4
"""Most vectors for which weights on the left are faster: two tasks in steps of two (docs/performance.md)."""


class StepLinear(nn.Linear):
    """A linear map without bias that a decoder calls in each step of a pass (`Steps`)."""

    def forward(self, input: Tensor) -> Tensor:
        if not takes_cpu_paths(input):
            return super().forward(input)
        steps = _current.get()
        if steps is None or not (torch.is_grad_enabled() and self.weight.requires_grad):
            return multiply(input, self.weight)
        return _Product.apply(input, *steps.uses_of(self))


def step_linears(decoder: nn.Module) -> None:
    """Turn the linear maps of a decoder into `StepLinear`s, with the same parameters under the same names."""
    for module in decoder.modules():
        if type(module) is nn.Linear and module.bias is None:
            module.__class__ = StepLinear


class Steps:
    """The steps of one pass through a decoder; each step runs within this context, in its thread.

    The context has no effect without gradients, or on decoders without `StepLinear`s.
    """

    def __init__(self) -> None:
        self._uses: dict[nn.Module, tuple[Tensor, _Uses]] = {}

    def __enter__(self) -> None:
        _current.set(self)

    def __exit__(self, *_: object) -> None:
        _current.set(None)

    def uses_of(self, module: StepLinear) -> "tuple[Tensor, _Uses]":
        """The scalar that connects the gradients of all uses of one map, and the record of these uses."""
        if module not in self._uses:
            uses = _Uses(module)
            self._uses[module] = _Gradient.apply(module.weight, uses), uses
        return self._uses[module]


# The steps in which a decoder's maps are called in this thread; one decoder runs at a time.
_current: ContextVar[Steps | None] = ContextVar("hart_steps", default=None)


class _Uses:
    """The inputs of a map in one pass, and the gradients of its outputs.

    The weight is read from the module each time, because sharded layouts (ZeRO-3, FSDP) gather it there separately for
    the forward and the backward pass.
    """

    def __init__(self, module: StepLinear) -> None:
        self._module = module
        self._cast: Tensor | None = None
        self.inputs: list[Tensor] = []
        self.gradients: list[Tensor] = []

    def weight(self, dtype: torch.dtype) -> Tensor:
        """The weight in `dtype`; if this differs from its own (autocast), a copy that is kept for the pass."""
        weight = self._module.weight
        if weight.dtype == dtype:
            return weight
        if self._cast is None or self._cast.dtype != dtype:
            self._cast = weight.detach().to(dtype)
        return self._cast

    def gradient(self) -> Tensor | None:
        """The gradient of the weight `[out, in]`; the recorded inputs and output gradients are released."""
        if not self.inputs:
            return None
        made = torch.cat(self.gradients).T @ torch.cat(self.inputs)
        self.inputs, self.gradients, self._cast = [], [], None
        return made


class _Gradient(torch.autograd.Function):
    """weight → a scalar that is an input of all uses of the weight, so that its backward node runs after theirs."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, uses: _Uses) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.uses = uses
        return weight.new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Tensor | None) -> tuple[Tensor | None, None]:
        return ctx.uses.gradient(), None


class _Product(torch.autograd.Function):
    """The product `[…, in]` → `[…, out]` with the gradient of its input; `_Gradient` has that of the weight."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, token: Tensor, uses: _Uses) -> Tensor:
        ctx.set_materialize_grads(False)
        # Cast here, because autocast would cache a copy of the weight without a gradient.
        autocast = torch.is_autocast_enabled("cpu")
        ctx.uses, ctx.given = uses, inputs.dtype
        if autocast:
            inputs = inputs.to(torch.get_autocast_dtype("cpu"))
        ctx.save_for_backward(inputs)
        with torch.autocast("cpu", enabled=False) if autocast else nullcontext():
            return multiply(inputs, uses.weight(inputs.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, None, None]:
        if gradient is None:
            return None, None, None
        (inputs,) = ctx.saved_tensors
        uses: _Uses = ctx.uses
        uses.inputs.append(inputs.flatten(0, -2))
        uses.gradients.append(gradient.flatten(0, -2))
        if not ctx.needs_input_grad[0]:
            return None, None, None
        return (gradient @ uses.weight(gradient.dtype)).to(ctx.given), None, None


def multiply(inputs: Float[Tensor, "*any x"], weight: Float[Tensor, "y x"]) -> Float[Tensor, "*any y"]:
    """The linear map of inputs, computed as (W xᵀ)ᵀ for 2 to `MOST_FEW` float32 vectors.

    The result may differ by rounding, as the order of summation may differ.
    """
    few = inputs.numel() // max(1, inputs.shape[-1])
    if (
        not 2 <= few <= MOST_FEW
        or not inputs.dtype == weight.dtype == torch.float32
        or torch.is_autocast_enabled("cpu")
    ):
        return F.linear(inputs, weight)
    # Contiguous, because the product is slow otherwise; the copy is small.
    left = inputs.reshape(few, -1).contiguous()
    return torch.mm(weight, left.T).T.contiguous().unflatten(0, inputs.shape[:-1])
