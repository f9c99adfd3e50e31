"""Temporary eval mode of modules that several threads use at the same time."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from torch import nn

_lock = threading.Lock()
# Module → number of threads in the context, and the mode of each sub-module before the first one entered.
_users: "WeakKeyDictionary[nn.Module, tuple[int, list[tuple[nn.Module, bool]]]]" = WeakKeyDictionary()


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """A context in which the modules are in eval mode: no dropout, and no checkpointing, which excludes a cache.

    The last thread that leaves restores the mode of each sub-module from before the first one entered.
    """
    with _lock:
        for module in modules:
            count, modes = _users.get(module) or (0, [(part, part.training) for part in module.modules()])
            _users[module] = count + 1, modes
            if not count:
                module.eval()
    try:
        yield
    finally:
        with _lock:
            for module in modules:
                count, modes = _users.pop(module)
                if count > 1:
                    _users[module] = count - 1, modes
                else:
                    for part, training in modes:
                        part.training = training
