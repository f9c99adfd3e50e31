"""The device of a command, and the condition for CPU-only optimisations."""

import os
import re

import torch

from hart.errors import HartError


def takes_cpu_paths(tensor: torch.Tensor) -> bool:
    """Whether to use code that is fast on a CPU; on a GPU and under `torch.compile` the libraries' own code runs."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def select_device(name: str | None = None) -> torch.device:
    """The device called `name`; None: a GPU if there is one, else the CPU.

    Raises:
        HartError: this machine has no such device.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name is None:
        # Each process of a machine has its own GPU.
        own = os.environ.get("LOCAL_RANK")
        return torch.device("cpu" if not gpus else "cuda" if own is None else f"cuda:{int(own) % gpus}")
    # Parsed here, because torch.device reads cuda:999 as another number.
    match = re.fullmatch(r"cpu|cuda(:(\d+))?", name)
    if match is None:
        raise HartError(f"--device: '{name}' is not a device that hart knows; give cpu, cuda or cuda:N")
    if name != "cpu" and int(match[2] or 0) >= gpus:
        raise HartError(f"--device: '{name}' is not available, torch finds {gpus} GPUs here; give cpu or another one")
    return torch.device(name)
