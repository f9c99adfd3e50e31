"""Measurement for the benchmarks: variants timed in turn, and counts that do not depend on the machine.

Every repeat times each variant once, so that a slower machine slows all of them; every second repeat runs in reverse
order, so that no variant always comes first. A figure is the median of the ratios within each repeat. FLOPs, operations
and memory are counted in one separate pass.
"""

import gc
import os
import platform
import time
import weakref
from collections import Counter as Tally
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.utils.flop_counter import flop_registry

from hart.runtime.third_party.torch import CPU_ATTENTION, TorchDispatchMode

Run = Callable[[], Any]

# Operation name → FLOP formula. torch's FlopCounterMode has hooks on modules, which fail on expanded parameters
# without gradients.
FORMULAS: dict[str, Callable[..., int]] = {str(name): made for name, made in {**flop_registry, **CPU_ATTENTION}.items()}


def seconds(run: Run, device: str) -> float:
    """Wall time of one call in seconds; on a GPU until its work is done."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - start


def alternate(
    variants: Mapping[str, Run], repeats: int, device: str, *, warm_up: bool = True
) -> dict[str, list[float]]:
    """Seconds of each variant in each repeat."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    in_turn = list(variants.items())
    for repeat in range(-1 if warm_up else 0, repeats):
        for name, run in reversed(in_turn) if repeat % 2 else in_turn:
            elapsed = seconds(run, device)
            if repeat >= 0:
                times[name].append(elapsed)
    return times


def ratios(times: Mapping[str, list[float]], numerator: str, denominator: str) -> list[float]:
    """The ratio of two variants' times in each repeat."""
    return [a / b for a, b in zip(times[numerator], times[denominator], strict=True)]


class Counter(TorchDispatchMode):
    """A context manager that counts the operations, FLOPs and memory of its block.

    Attributes:
        calls: operation name, e.g. `aten.bmm` → number of calls.
        flops: FLOPs of matrix products and attention by torch's formulas, two for each multiplication and addition.
        allocated: bytes of all tensors made by operations.
        live, peak: bytes of those that exist now, and the maximum at any time. Scratch memory inside an operation,
            weights and other earlier tensors are not counted.
        largest: operation name → bytes of the largest tensor that it made.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: Tally[str] = Tally()
        self.flops = self.allocated = self.live = self.peak = 0
        self.largest: dict[str, int] = {}
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = str(func).rpartition(".")[0]
        self.calls[name] += 1
        if name in FORMULAS:
            self.flops += FORMULAS[name](*args, **(kwargs or {}), out_val=out)
        given = {place(each) for each in tensors_in((args, kwargs or {}))}
        for each in tensors_in(out):
            if place(each) not in given | self._known:
                self._note(name, each)
        return out

    def _note(self, name: str, made: Tensor) -> None:
        storage = made.untyped_storage()
        key, size = place(made), storage.nbytes()
        self._known.add(key)
        self.allocated += size
        self.live += size
        self.peak = max(self.peak, self.live)
        self.largest[name] = max(size, self.largest.get(name, 0))
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def place(tensor: Tensor) -> int:
    """The address of a tensor's storage, which views of the same memory share."""
    return tensor.untyped_storage().data_ptr()


def tensors_in(values: Any) -> Iterator[Tensor]:
    """The tensors among (nested) arguments or results of an operation."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, list | tuple | dict):
        for each in values.values() if isinstance(values, dict) else values:
            yield from tensors_in(each)


def count(run: Run) -> Counter:
    """The counts of one call, whose result is dropped."""
    gc.collect()
    counter = Counter()
    with counter:
        run()
    gc.collect()
    return counter


def products(rows: int, inner: int, columns: int, device: str, dtype: torch.dtype) -> tuple[Run, int]:
    """A matrix product of a layer's size, for timing the machine, and its FLOPs."""
    left = torch.randn(rows, inner, device=device, dtype=dtype)
    right = torch.randn(columns, inner, device=device, dtype=dtype)
    return lambda: torch.nn.functional.linear(left, right), 2 * rows * inner * columns


def environment(device: str) -> dict[str, Any]:
    """The machine and versions with which a figure was measured."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "platform": platform.platform(),
        "processor": torch.cuda.get_device_name(device) if device.startswith("cuda") else processor(),
        "threads": torch.get_num_threads(),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def processor() -> str:
    """Name of the CPU, with the features that determine the speed of matrix products."""
    capability = torch.backends.cpu.get_cpu_capability()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = {line.partition(":")[2].strip() for line in file if line.startswith("model name")}
    except OSError:
        names = set()
    return f"{', '.join(sorted(names)) or platform.machine()} ({capability})"
