"""Random streams that depend on their name or number alone, the same on every machine and in every run."""

import hashlib
from collections.abc import Sequence

import numpy as np


def named_stream(seed: int, *names: str) -> np.random.Generator:
    """A random stream of its own for every (seed, names)."""
    digest = hashlib.sha256("\n".join([str(seed), *names]).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def numbered_stream(seed: int, number: int, counter: Sequence[int] = (0, 0, 0, 0)) -> np.random.Generator:
    """A random stream of its own for every (seed, number), from a place of its own for every counter."""
    key, begin = (np.array(each, dtype=np.uint64) for each in ([seed, number], counter))
    return np.random.Generator(np.random.Philox(key=key, counter=begin))


def in_first_worker() -> bool:
    """Whether this process is the first of those that read data for a loader, or reads them itself."""
    from torch.utils.data import get_worker_info  # not above: data are read without torch, too

    worker = get_worker_info()
    return worker is None or worker.id == 0
