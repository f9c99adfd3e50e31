"""Muon for linear maps with AdamW for all other parameters (ours)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

_AT_ONCE = 2**24
"""Most elements of the matrices in one batched product (at least one matrix), which bounds the memory."""


class BatchedMuon(Optimizer):
    """Muon as `torch.optim.Muon` (since torch 2.9), with one batched product for all matrices of a shape.

    It makes the same steps up to rounding in bfloat16 and has the same states, and is about twice as fast for small
    matrices. Steps are scaled as in "Muon is Scalable for LLM Training" (torch's "match_rms_adamw"), so that AdamW's
    learning rates and weight decay apply.

    Args:
        matrices: two-dimensional parameters.
        lr: learning rate.
        weight_decay: decoupled weight decay, as in AdamW.
        momentum: momentum of the running mean of gradients.
        nesterov: use Nesterov momentum (the gradient moved towards the mean) instead of the mean itself.
        ns_coefficients, ns_steps, eps: arguments of `orthogonalised`.
    """

    def __init__(
        self,
        matrices: list[nn.Parameter],
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315),
        ns_steps: int = 5,
        eps: float = 1e-7,
    ) -> None:
        super().__init__(
            matrices,
            {
                "lr": lr,
                "weight_decay": weight_decay,
                "momentum": momentum,
                "nesterov": nesterov,
                "ns_coefficients": ns_coefficients,
                "ns_steps": ns_steps,
                "eps": eps,
            },
        )

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            alike: dict[tuple[Any, ...], list[Tensor]] = {}
            for each in group["params"]:
                if each.grad is not None:
                    alike.setdefault((each.shape, each.dtype, each.device), []).append(each)
            for matrices in alike.values():
                size = max(1, _AT_ONCE // matrices[0].numel())
                for first in range(0, len(matrices), size):
                    self._move(matrices[first : first + size], group)
        return loss

    def _move(self, matrices: list[Tensor], group: dict[str, Any]) -> None:
        """Make one step for matrices of equal shape."""
        for each in matrices:
            if not self.state[each]:
                self.state[each]["momentum_buffer"] = torch.zeros_like(each)
        momentum = group["momentum"]
        directions: list[Tensor] = []
        for each in matrices:
            gradient, mean = each.grad, self.state[each]["momentum_buffer"]
            assert gradient is not None
            mean.lerp_(gradient, 1 - momentum)
            directions.append((gradient.lerp(mean, momentum) if group["nesterov"] else mean).bfloat16())
        updates = orthogonalised(torch.stack(directions), group["ns_coefficients"], group["ns_steps"], group["eps"])
        rate = float(group["lr"])
        # Steps of the size of AdamW's, for any shape.
        scale = 0.2 * max(matrices[0].shape) ** 0.5
        for each, update in zip(matrices, updates, strict=True):
            each.mul_(1 - rate * group["weight_decay"]).add_(update, alpha=-rate * scale)


def orthogonalised(matrices: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Matrices with the same singular vectors and singular values near 1, by Newton-Schulz iteration.

    Args:
        matrices: `[count, rows, columns]`.
        coefficients: coefficients of the first, third and fifth power.
        steps: number of iterations.
        eps: least norm for the division.
    """
    first, third, fifth = coefficients
    tall = matrices.shape[1] > matrices.shape[2]
    found = matrices.mT if tall else matrices
    found = found / found.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = found @ found.mT
        found = torch.baddbmm(found, torch.baddbmm(gram, gram, gram, beta=third, alpha=fifth), found, beta=first)
    return found.mT if tall else found


class MuonAndAdamW(Optimizer):
    """Muon for linear maps and AdamW for all other parameters as one optimizer with common groups and states.

    Args:
        matrices: parameters for Muon, with the weight decay of the first of `groups`.
        groups: parameter groups of AdamW, the decayed one first; `matrices` are left out of them.
        settings: AdamW's learning rate, betas and eps.
        rate: Muon's learning rate.
    """

    def __init__(
        self, matrices: list[nn.Parameter], groups: list[dict[str, Any]], settings: dict[str, Any], rate: float
    ) -> None:
        taken = {id(each) for each in matrices}
        rest = [{**group, "params": [p for p in group["params"] if id(p) not in taken]} for group in groups]
        self._parts: list[Optimizer] = [torch.optim.AdamW([group for group in rest if group["params"]], **settings)]
        if matrices:
            decay = groups[0]["weight_decay"]
            muon = BatchedMuon(matrices, rate, decay)
            self._parts.append(muon)
        super().__init__([group for part in self._parts for group in part.param_groups], {})
        self._share()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()

    def _share(self) -> None:
        """Let both parts share this optimizer's groups and states, which schedules and checkpoints change."""
        groups = iter(self.param_groups)
        for part in self._parts:
            part.param_groups = [next(groups) for _ in part.param_groups]
            part.state = self.state

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = self._parts[0].step(closure)
        for part in self._parts[1:]:
            part.step()
        return loss
