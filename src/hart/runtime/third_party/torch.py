"""Uses of undocumented parts of `torch`; reasons are in docs/architecture.md."""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode
from torch.utils.flop_counter import sdpa_backward_flop_count, sdpa_flop_count

_FORWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

CPU_ATTENTION: dict[Any, Callable[..., int]] = {
    _FORWARD: lambda q, k, v, *_, **__: sdpa_flop_count(q.shape, k.shape, v.shape),
    _BACKWARD: lambda gradient, q, k, v, *_, **__: sdpa_backward_flop_count(gradient.shape, q.shape, k.shape, v.shape),
}
"""FLOP formulas of the CPU's fused attention, as torch has only those of GPU kernels."""


def version_of(tensor: torch.Tensor) -> int:
    """The version counter of a tensor: its number of in-place writes."""
    return tensor._version


def forget_compiled() -> None:
    """Discard the code that `torch.compile` has compiled; no effect if its compiler was never imported."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
