"""The device that a command computes on, and what is made for CPUs alone."""

import os
import re

import torch

from hart.errors import HartError


def takes_cpu_paths(tensor: torch.Tensor) -> bool:
    """Whether to compute as is fast on a CPU; a GPU and `torch.compile` get what torch and transformers have."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def select_device(name: str | None = None) -> torch.device:
    """The device called `name`, or the best one.

    Raises:
        HartError: no such device on this machine.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name is None:
        # Of several processes on one machine, each has its own.
        own = os.environ.get("LOCAL_RANK")
        return torch.device("cpu" if not gpus else "cuda" if own is None else f"cuda:{int(own) % gpus}")
    # Not read by torch.device, which takes cuda:999 for some other number.
    match = re.fullmatch(r"cpu|cuda(:(\d+))?", name)
    if match is None:
        raise HartError(f"--device: '{name}' is not a device that hart knows; give cpu, cuda or cuda:N")
    if name != "cpu" and int(match[2] or 0) >= gpus:
        raise HartError(f"--device: '{name}' is not available, torch finds {gpus} GPUs here; give cpu or another one")
    return torch.device(name)
