"""The fingerprint of a base: digests of its weights and its tokenizer, for models, adaptations and servers.

Its form is `WEIGHTS-TOKENIZER`, two hex digests.
"""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from hart.runtime.fingerprints import tokenizer_digest
from hart.runtime.third_party.torch import version_of

SAMPLES = 4096
"""Sample size per tensor in the digest of the weights."""

_QUICK_SAMPLES = 8


def fingerprint(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> str:
    """The fingerprint of the current weights and the tokenizer: 64 and 16 hex digits joined by a dash.

    The digest of the weights covers names, shapes and an evenly spread sample of every tensor, rounded to bfloat16, so
    a checkpoint has the same fingerprint whether it is loaded as float32 or as bfloat16.
    """
    return f"{_weights_digest(model)}-{tokenizer_digest(tokenizer)[:16]}"


def peft_digest(module: nn.Module | None, *settings: Any) -> str:
    """Hex digest of all weights of a source of PEFT parameters (hypernetwork or learned), and of further settings."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, tensor in sorted(module.state_dict().items()) if module is not None else ():
        digest.update(f"{name} {list(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def trace(parameters: Iterable[nn.Parameter]) -> tuple[Any, ...]:
    """A cheap value that changes with the weights, by which an outdated fingerprint is detected.

    In-place operations increment a tensor's version. Some optimizers bypass it, so the value also has a few numbers of
    each trainable tensor.
    """
    seen: list[Any] = []
    trained: list[Tensor] = []
    for parameter in parameters:
        seen.append((parameter.data_ptr(), version_of(parameter)))
        if parameter.requires_grad and parameter.numel():
            numbers = parameter.detach().flatten()
            trained.append(numbers[:: -(-len(numbers) // _QUICK_SAMPLES) | 1][:_QUICK_SAMPLES].float())
    return (*seen, tuple(torch.cat(trained).tolist())) if trained else tuple(seen)


def _weights_digest(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        # An odd stride shares no factor with the usual widths and so visits all columns.
        stride = -(-tensor.numel() // SAMPLES) | 1
        sample = tensor.flatten()[::stride].to(torch.bfloat16).cpu()
        digest.update(f"{name} {list(tensor.shape)}\n".encode())
        digest.update(sample.contiguous().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()
