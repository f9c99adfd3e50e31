"""GPUs known to `hart estimate` by name: usable memory, and peak throughput from their data sheets.

A run's time is the FLOPs of its steps, divided by the peak of all GPUs and by the utilisation, the share of the peak
that is reached. Small batches, short texts and waiting kernels lower it. No formula predicts the utilisation, so it is
a setting (`UTILISATION`) that is printed beside the time.
"""

from dataclasses import dataclass

from hart.errors import HartError
from hart.training.config import RunConfig
from hart.training.estimate import Estimate

UTILISATION = 0.3
"""Default utilisation, the assumed share of the peak. Papers report .3 to .5 for large models; not measured here."""


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU.

    Attributes:
        memory: GiB that a process can use: the driver's value minus half a GiB for CUDA.
        float32: TFLOP/s without tensor cores, PyTorch's default.
        bfloat16: TFLOP/s of dense products with float32 sums; None: the GPU lacks bfloat16.
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
    """The GPU with this name, regardless of case.

    Raises:
        HartError: the name is unknown; the message lists the known names.
    """
    if gpu := GPUS.get(name.lower()):
        return gpu
    raise HartError(f"--gpu {name}: not known; choose one of {', '.join(GPUS)}; for others give --gpu-memory")


def seconds_per_step(config: RunConfig, found: Estimate, name: str, utilisation: float = UTILISATION) -> float:
    """Seconds of one optimizer step on `found.devices` GPUs of this name.

    Raises:
        HartError: the name is unknown, or training.bf16 is set and the GPU lacks bfloat16.
    """
    gpu = named_gpu(name)
    peak = gpu.bfloat16 if config.training.bf16 else gpu.float32
    if peak is None:
        raise HartError(f"--gpu {name}: has no bfloat16; add --training.bf16 false, which takes more memory and time")
    return found.flops / (found.devices * peak * 1e12 * utilisation)
