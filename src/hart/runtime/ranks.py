"""Work that the processes of one run share out, and the answers they give each other.

accelerate's `PartialState`, `gather_object` and `broadcast_object_list` are not used here. They are the same calls of
`torch.distributed` with nothing around them: where one process fails, the others wait until they time out, which
`together`, `from_first` and `shared_out` are there to prevent. And their state belongs to the process: a run of
training makes it anew (`hart.training.loop`), long after its processes have first had to agree (on the run's folder,
the data), and `hart evaluate`, which exchanges answers through Gloo on any device, has no use for it.
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
"""How long a process waits for the others of its group."""

Item = TypeVar("Item")
Answer = TypeVar("Answer")


def world_size() -> int:
    """Processes of the group that this one has joined; 1 without a group."""
    return torch.distributed.get_world_size() if _joined() else 1


def rank() -> int:
    """Number of this process, from 0; the first one speaks and writes for all."""
    return torch.distributed.get_rank() if _joined() else 0


def _joined() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


@contextmanager
def joining() -> Iterator[None]:
    """Within, this process belongs to the group that its launcher (torchrun, accelerate) has announced, if any."""
    if not is_one_of_several() or _joined():
        yield
        return
    # Answers are exchanged, never tensors of a device.
    torch.distributed.init_process_group("gloo")
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def join_to_train() -> None:
    """Join the group that this process's launcher has announced, if any, and stay in it.

    Before anything is read or written, so that a failure of any process can be told to all (`together`).
    accelerate takes a group that there is.
    """
    if not is_one_of_several() or _joined():
        return
    if torch.cuda.is_available():
        # Where each task of a cluster's job sees its own GPU alone, that is the first one of all of them.
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)


@contextmanager
def together() -> Iterator[None]:
    """Within, an error of one process becomes an error of all when the block ends; nobody waits for one that is gone.

    All processes of the group must enter it together, and whatever they exchange within must have been exchanged
    before one of them can fail. A process that did not fail itself gets the first failed one's message.

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
    """Whether `flag` is true in some process. All must ask together; cheap enough to be asked in every pass."""
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
    """What `answer` gives in the first process, in all of them. All must call it together.

    Raises:
        HartError: the one that `answer` raised there, in all of them.
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
    """A function that gives what `answer` gives for `items`, each of which only one process works on.

    All processes must call it for the first time together: they then do their shares and exchange the answers.
    An error in one of them is one in all. Alone, a process gets `answer` back.

    Args:
        items: the same in every process; they are told apart by identity.
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
