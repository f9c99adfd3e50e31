"""Several processes on one machine's CPU cores, each with its share of every batch.

On few cores, two processes of one thread each train faster than one process of two threads: small matrices leave a
second thread little to do. GPUs and clusters use torchrun or accelerate instead; the environment is the same.
"""

import atexit
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from hart.errors import HartError

POLL_SECONDS = 0.1
TERMINATED = 128 + signal.SIGTERM
"""Exit status of a command that SIGTERM has ended, as the shell has it."""
INTERRUPTED = 128 + signal.SIGINT
"""The same of Ctrl-C."""


def cpu_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_one_of_several() -> bool:
    """Whether a launcher (`run_hart`, torchrun, accelerate) has started this process as one of a group."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_first() -> bool:
    """Whether this process is the first of the group that a launcher has announced, or alone."""
    return os.environ.get("RANK", "0") == "0"


def sensible_processes(batch_groups: int) -> int:
    """How many processes train a small model fastest here: two on a CPU with two cores or more, else one.

    Args:
        batch_groups: hypernetwork passes of a step; they must divide evenly.
    """
    import torch

    several = (
        not torch.cuda.is_available() and torch.distributed.is_available() and torch.distributed.is_gloo_available()
    )
    return 2 if several and not is_one_of_several() and cpu_cores() >= 2 and batch_groups % 2 == 0 else 1


def _threads() -> int:
    """Those that this process may have: what OMP_NUM_THREADS says, or all cores."""
    said = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(said) if said.isdecimal() else cpu_cores()


@contextmanager
def on_sigterm(handle: Callable[[], Any] = lambda: None, *, interrupts: bool = False) -> Iterator[list[int]]:
    """Within, SIGTERM calls `handle` instead of ending the process, and stands in the list that is yielded.

    Schedulers send it before they take a machine away. In another thread than the main one, which alone may handle
    signals, nothing is changed.

    Args:
        interrupts: whether Ctrl-C (SIGINT) does so as well; at the second one the process is interrupted as ever.
    """
    told: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield told
        return

    # A list, not a threading.Event: a second signal within the setting of one would wait for the first for ever.
    def note(number: int, _: Any) -> None:
        told.append(number)
        if number == signal.SIGINT:
            signal.signal(number, before[number])
        handle()

    numbers = [signal.SIGTERM]
    if interrupts and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as of a job in the background
        numbers.append(signal.SIGINT)
    before: dict[int, Any] = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        signal.signal(number, note)
    try:
        yield told
    finally:
        for number in numbers:
            signal.signal(number, before[number])


def run_hart(words: Sequence[str], processes: int) -> None:
    """Run the command `hart WORDS` in `processes` processes that know each other (torch's env:// convention).

    Args:
        words: of the command line, e.g. `["train", "config.yaml"]`; the command must expect to be one of several.
        processes: how many; the cores, or OMP_NUM_THREADS, are shared out between them.

    Raises:
        HartError: one of them failed; its own message is on stderr already, and the others were stopped.
        KeyboardInterrupt: the user stopped them.
        SystemExit: SIGTERM came, was handed on, and they have saved what they did (status 143).
    """
    shared = {
        **os.environ,
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": str(max(1, _threads() // processes)),
    }
    members = [
        subprocess.Popen(
            [sys.executable, "-m", "hart", *words], env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        )
        for rank in range(processes)
    ]

    def hand_on() -> None:
        for member in members:
            member.terminate()

    def wait() -> None:
        while any(member.poll() is None for member in members):
            if any(member.poll() not in (None, 0, TERMINATED, INTERRUPTED) for member in members):
                break  # the others would wait for it for ever
            time.sleep(POLL_SECONDS)

    with on_sigterm(hand_on):
        try:
            wait()
        except KeyboardInterrupt:
            # The terminal has interrupted them too: they finish a step and save. At the second Ctrl-C all end at once.
            hand_on()
            wait()
            raise
        finally:
            for member in members:
                if member.poll() is None:
                    member.kill()
                member.wait()
    if all(member.returncode in (TERMINATED, INTERRUPTED) for member in members):
        sys.exit(TERMINATED)
    if any(member.returncode for member in members):
        raise HartError("training stopped in one of its processes; the reason stands above")


def end_with(command: Callable[[], int | None]) -> NoReturn:
    """Run a command and end this process with its exit status.

    A process that a launcher has started ends right after Python's exit handlers. What would come after them, the
    interpreter taking itself apart, can abort a process whose work is done and saved: a thread of Gloo that still
    holds the tensors of the last collective needs the interpreter to let go of them, and destroying the group does
    not join that thread as long as anything in C++ (the gradients' reducer) refers to the group.

    Args:
        command: returns the status, None for 0. It should import what registers exit handlers (torch, multiprocessing):
            those that were registered before do not run.
    """
    if "WORLD_SIZE" not in os.environ:
        sys.exit(command())
    status = 1  # of an exception that nobody expected: the interpreter prints it

    def leave() -> None:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # a reader that went away, or closed already
                stream.flush()
        os._exit(status)

    # The handler registered first runs last. Libraries are imported, and register theirs, when the command runs.
    atexit.register(leave)
    try:
        status = command() or 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise
    sys.exit(status)


def announce_alone() -> None:
    """Say in the environment what a launcher says, for a library that insists on one: a group of this process only."""
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    for name, value in {**alone, "MASTER_PORT": str(free_port())}.items():
        os.environ.setdefault(name, value)


def free_port() -> int:
    """A port of this machine that nothing listens on as yet."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
