"""Work that the processes of one run share out, and the answers they give each other."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from hart.errors import HartError

Item = TypeVar("Item")
Answer = TypeVar("Answer")


def world_size() -> int:
    """Processes of the group that this one has joined; 1 without a group."""
    return torch.distributed.get_world_size() if _joined() else 1


def rank() -> int:
    """Number of this process, from 0; the first one speaks and writes for all."""
    return torch.distributed.get_rank() if _joined() else 0


def speaks_first() -> bool:
    """Whether this process is the first of its group, joined or only announced by the launcher's environment."""
    return rank() == 0 if _joined() else os.environ.get("RANK", "0") == "0"


def _joined() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


@contextmanager
def joining() -> Iterator[None]:
    """Within, this process belongs to the group that its launcher (torchrun, accelerate) has announced, if any."""
    announced = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if not announced or _joined():
        yield
        return
    # Answers are exchanged, never tensors of a device.
    torch.distributed.init_process_group("gloo")
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


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
    Alone, a process gets `answer` back.

    Args:
        items: the same in every process; they are told apart by identity.
    """
    if world_size() == 1:
        return answer
    answers: dict[int, Answer] = {}

    def look_up(item: Item) -> Answer:
        if not answers:
            own = {index: answer(items[index]) for index in range(rank(), len(items), world_size())}
            parts: list[Any] = [None] * world_size()
            torch.distributed.all_gather_object(parts, own)
            answers.update({id(items[index]): made for part in parts for index, made in part.items()})
        return answers[id(item)]

    return look_up
