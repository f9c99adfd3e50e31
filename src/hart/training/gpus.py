"""Graphics cards that `hart estimate` knows by name: usable memory, and peak arithmetic as their data sheets say.

A run's time is the operations of its steps, divided by the peak of all cards and by the share of it that is reached.
Small batches, short texts and kernels that wait for each other lower that share; what a card really reaches is in no
formula, so the share is a setting (`UTILISATION`) that is printed beside the time.
"""

from dataclasses import dataclass

from hart.errors import HartError
from hart.training.config import RunConfig
from hart.training.estimate import Estimate

UTILISATION = 0.3
"""Share of the peak that a step is taken to reach. Papers report .3 to .5 for large models; none was measured here."""


@dataclass(frozen=True)
class Gpu:
    """One card.

    Attributes:
        memory: GiB that a process can fill: what the driver shows, less half a GiB for CUDA itself.
        float32: TFLOP/s without tensor cores, as PyTorch computes by default.
        bfloat16: TFLOP/s of dense products with float32 sums; None: the card has none.
    """

    memory: float
    float32: float
    bfloat16: float | None


GPUS = {
    "t4": Gpu(14, 8.1, None),
    "v100": Gpu(15, 15.7, None),
    "rtx-3090": Gpu(23, 35.6, 71),
    "rtx-4090": Gpu(23, 82.6, 165),
    "a10g": Gpu(21.5, 35, 70),
    "l4": Gpu(21.5, 30.3, 121),
    "l40s": Gpu(44, 91.6, 362),
    "a100-40gb": Gpu(39, 19.5, 312),
    "a100-80gb": Gpu(78.5, 19.5, 312),
    "h100": Gpu(78.5, 67, 989),
    "h200": Gpu(139, 67, 989),
}


def named_gpu(name: str) -> Gpu:
    """The card of that name, in any case.

    Raises:
        HartError: it is not known; with those that are.
    """
    if gpu := GPUS.get(name.lower()):
        return gpu
    raise HartError(f"--gpu {name}: not known; choose one of {', '.join(GPUS)}; for others give --gpu-memory")


def seconds_per_step(config: RunConfig, found: Estimate, name: str, utilisation: float = UTILISATION) -> float:
    """Time of one optimizer step on `found.devices` cards of that name.

    Raises:
        HartError: the card has no bfloat16, and training.bf16 asks for it.
    """
    gpu = named_gpu(name)
    peak = gpu.bfloat16 if config.training.bf16 else gpu.float32
    if peak is None:
        raise HartError(f"--gpu {name}: has no bfloat16; add --training.bf16 false, which takes more memory and time")
    return found.flops / (found.devices * peak * 1e12 * utilisation)
