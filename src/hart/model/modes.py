"""Eval mode for as long as anybody needs it, for several threads that use the same modules."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from torch import nn

_lock = threading.Lock()
# Module → how many are within, and the mode that the first of them found.
_users: "WeakKeyDictionary[nn.Module, tuple[int, bool]]" = WeakKeyDictionary()


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Within, the modules are in eval mode: no dropout, and no checkpointing, which would refuse the cache.

    The last thread that leaves restores the mode that the first one found.
    """
    with _lock:
        for module in modules:
            count, training = _users.get(module, (0, module.training))
            _users[module] = count + 1, training
            if not count:
                module.eval()
    try:
        yield
    finally:
        with _lock:
            for module in modules:
                count, training = _users.pop(module)
                if count > 1:
                    _users[module] = count - 1, training
                else:
                    module.train(training)
