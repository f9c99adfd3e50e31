"""Shared work and exchanged results of the processes (ranks) of one run.

`together`, `from_first` and `shared_out` prevent that the other processes wait for one that has failed until they time
out. accelerate's `PartialState`, `gather_object` and `broadcast_object_list` are the same calls of `torch.distributed`
without this protection, so they are not used. Their state also belongs to the process: a training run creates it anew
(`hart.training.loop`), long after its processes must first agree (on the run's folder, the data), and `hart evaluate`,
which exchanges results through Gloo on any device, does not need it.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch

from hart.errors import HartError
from hart.runtime.launch import is_one_of_several

PATIENCE = timedelta(minutes=30)
"""Time limit for waiting for the other processes of a group."""

Item = TypeVar("Item")
Answer = TypeVar("Answer")


def world_size() -> int:
    """Number of processes in this process's group; 1 without a group."""
    return torch.distributed.get_world_size() if _joined() else 1


def rank() -> int:
    """Rank of this process, from 0; rank 0 prints and writes for all."""
    return torch.distributed.get_rank() if _joined() else 0


def _joined() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


@contextmanager
def joining() -> Iterator[None]:
    """A context in which this process belongs to the group of its launcher (torchrun, accelerate), if any."""
    if not is_one_of_several() or _joined():
        yield
        return
    # Gloo, because objects are exchanged, not tensors on a device.
    torch.distributed.init_process_group("gloo")
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def join_to_train() -> None:
    """Join the group of this process's launcher, if any, and stay in it.

    Called before anything is read or written, so that a failure of any process reaches all (`together`). accelerate
    uses the existing group.
    """
    if not is_one_of_several() or _joined():
        return
    if torch.cuda.is_available():
        # If each task of a cluster's job sees only its own GPU, this GPU has number 0 in every task.
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)


@contextmanager
def together() -> Iterator[None]:
    """A context that raises an error of one process in all processes when the block ends, so that none waits for it.

    All processes of the group must enter it together, and must complete their exchanges within it before one of them
    can fail. The other processes get the message of the first failed one.

    Raises:
        HartError: another process failed.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    if anywhere(failure is not None) and world_size() > 1:
        told: list[Any] = [None] * world_size()
        torch.distributed.all_gather_object(told, None if failure is None else _in_one_line(failure))
        if failure is None:
            raise HartError(next(text for text in told if text is not None))
    if failure is not None:
        raise failure


def anywhere(flag: bool) -> bool:
    """Whether `flag` is true in any process. All processes must call it together; cheap enough for every pass."""
    if world_size() == 1:
        return flag
    on_gpu = torch.distributed.get_backend() == "nccl"
    said = torch.tensor(float(flag), device="cuda" if on_gpu else "cpu")
    torch.distributed.all_reduce(said, op=torch.distributed.ReduceOp.MAX)
    return bool(said.item())


def _in_one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, HartError) else f"process {rank()} failed: {type(error).__name__}: {text}"


def from_first(answer: Callable[[], Answer]) -> Answer:
    """The result of `answer` in the first process, returned in all processes, which must call it together.

    Raises:
        HartError: `answer` raised it in the first process; it is raised in all.
    """
    if world_size() == 1:
        return answer()
    said: list[Any] = [None, None]
    if rank() == 0:
        try:
            said[0] = answer()
        except HartError as error:
            said[1] = str(error)
    torch.distributed.broadcast_object_list(said)
    if said[1] is not None:
        raise HartError(said[1])
    return said[0]


def shared_out(answer: Callable[[Item], Answer], items: Sequence[Item]) -> Callable[[Item], Answer]:
    """A function with the results of `answer` for `items`, each computed by only one process.

    All processes must make the first call together: they then compute their shares and exchange the results. An error
    in one process is raised in all. A single process gets `answer` itself.

    Args:
        items: the same items in every process, distinguished by identity.
    """
    if world_size() == 1:
        return answer
    answers: dict[int, Answer] = {}

    def look_up(item: Item) -> Answer:
        if not answers:
            with together():
                own = {index: answer(items[index]) for index in range(rank(), len(items), world_size())}
            parts: list[Any] = [None] * world_size()
            torch.distributed.all_gather_object(parts, own)
            answers.update({id(items[index]): made for part in parts for index, made in part.items()})
        return answers[id(item)]

    return look_up
