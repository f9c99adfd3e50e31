"""Eval mode for as long as anybody needs it, for several threads that use the same modules."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from torch import nn

_lock = threading.Lock()
# Module → how many are within, and the mode that the first of them found each of its parts in.
_users: "WeakKeyDictionary[nn.Module, tuple[int, list[tuple[nn.Module, bool]]]]" = WeakKeyDictionary()


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Within, the modules are in eval mode: no dropout, and no checkpointing, which would refuse the cache.

    The last thread that leaves restores the modes that the first one found; parts of a module may have their own.
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
