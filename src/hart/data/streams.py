"""Random streams that depend only on a seed and a name or number, equal on every machine and in every run."""

import hashlib
from collections.abc import Sequence

import numpy as np


def named_stream(seed: int, *names: str) -> np.random.Generator:
    """The random stream of (seed, names)."""
    digest = hashlib.sha256("\n".join([str(seed), *names]).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def numbered_stream(seed: int, number: int, counter: Sequence[int] = (0, 0, 0, 0)) -> np.random.Generator:
    """The random stream of (seed, number), from the position of a counter."""
    key, begin = (np.array(each, dtype=np.uint64) for each in ([seed, number], counter))
    return np.random.Generator(np.random.Philox(key=key, counter=begin))


def in_first_worker() -> bool:
    """Whether this process is the first worker of a data loader, or reads data itself."""
    from torch.utils.data import get_worker_info  # imported here, as data are also read without torch

    worker = get_worker_info()
    return worker is None or worker.id == 0
