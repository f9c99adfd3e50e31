"""Ends of a training run without a bug or wrong input: preemption, and too little memory."""

import signal

import torch

from hart.errors import HartError
from hart.training.config import RunConfig


class Stopped(Exception):
    """Training was stopped by a signal, after saving a checkpoint.

    Attributes:
        status: exit status of a command ended by the signal, as in the shell.
    """

    def __init__(self, message: str, number: int = signal.SIGTERM) -> None:
        super().__init__(message)
        self.status = 128 + number


_SIGNS = ("out of memory", "can't allocate memory", "not enough memory", "cannot allocate memory")


def memory_error(error: BaseException, config: RunConfig) -> HartError | None:
    """A `HartError` with settings that take less memory, if `error` is about memory; else None."""
    about_memory = isinstance(error, MemoryError | torch.OutOfMemoryError)
    if not about_memory and not any(sign in str(error).lower() for sign in _SIGNS):
        return None
    advice, others = [], ["shorter data.max_*_length"]
    micro = config.training.micro_batch_size or config.training.batch_size
    if micro > config.training.queries_per_task:
        advice.append(f"training.micro_batch_size below {micro}")
    if not config.model.gradient_checkpointing:
        advice.append("model.gradient_checkpointing true")
    if not config.training.bf16:
        others.insert(0, "training.bf16 true")
    free = f"set {', '.join(advice)} and give the same command again, or " if advice else ""
    return HartError(
        f"out of memory in training; {free}start anew in another training.output_dir with {', '.join(others)}; "
        "see hart estimate"
    )
