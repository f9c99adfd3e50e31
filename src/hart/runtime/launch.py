"""Launching a command in several processes on one machine's CPU cores, each with its share of every batch.

On few cores, two processes of one thread train faster than one process of two threads, as small matrices leave a second
thread little to do. GPUs and clusters use torchrun or accelerate instead, with the same environment variables.
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
"""Exit status of a command ended by SIGTERM, as in the shell."""
INTERRUPTED = 128 + signal.SIGINT
"""Exit status of a command ended by Ctrl-C."""


def cpu_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_one_of_several() -> bool:
    """Whether a launcher (`run_hart`, torchrun, accelerate) has started this process as one of a group."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_first() -> bool:
    """Whether this process has rank 0 in its launcher's environment, or is alone."""
    return os.environ.get("RANK", "0") == "0"


def sensible_processes(batch_groups: int) -> int:
    """The fastest number of processes to train a small model: two on a CPU with at least two cores, else one.

    Args:
        batch_groups: number of hypernetwork passes of a step, which the number of processes must divide.
    """
    import torch

    several = (
        not torch.cuda.is_available() and torch.distributed.is_available() and torch.distributed.is_gloo_available()
    )
    return 2 if several and not is_one_of_several() and cpu_cores() >= 2 and batch_groups % 2 == 0 else 1


def _threads() -> int:
    """Number of threads that this process may use: OMP_NUM_THREADS, or all cores."""
    said = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(said) if said.isdecimal() else cpu_cores()


@contextmanager
def on_sigterm(handle: Callable[[], Any] = lambda: None, *, interrupts: bool = False) -> Iterator[list[int]]:
    """A context in which SIGTERM calls `handle` instead of ending the process, and is appended to the yielded list.

    Schedulers send SIGTERM before they take a machine away. Only the main thread can handle signals; in other threads
    the context has no effect.

    Args:
        interrupts: handle Ctrl-C (SIGINT) in the same way; a second Ctrl-C interrupts the process as usual.
    """
    told: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield told
        return

    # A list, not a threading.Event: a second signal during `Event.set` would deadlock.
    def note(number: int, _: Any) -> None:
        told.append(number)
        if number == signal.SIGINT:
            signal.signal(number, before[number])
        handle()

    numbers = [signal.SIGTERM]
    if interrupts and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # background jobs ignore it
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
    """Run the command `hart WORDS` in a group of `processes` processes (torch's env:// convention).

    Args:
        words: words of the command line, e.g. `["train", "config.yaml"]`; the command must support several processes.
        processes: number of processes; the cores, or OMP_NUM_THREADS, are divided between them.

    Raises:
        HartError: a process failed; its own message is already on stderr, and the others were stopped.
        KeyboardInterrupt: the user stopped the processes.
        SystemExit: SIGTERM was passed on to the processes, which have saved their state (status 143).
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
                break  # the others would wait for it forever
            time.sleep(POLL_SECONDS)

    with on_sigterm(hand_on):
        try:
            wait()
        except KeyboardInterrupt:
            # The terminal has interrupted the processes, too: they finish a step and save. A second Ctrl-C ends all.
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
        raise HartError("training stopped in one of its processes; see the reason above")


def end_with(command: Callable[[], int | None]) -> NoReturn:
    """Run a command and end this process with its exit status.

    A process started by a launcher ends right after Python's exit handlers, without finalising the interpreter, which
    can abort a process whose work is done and saved: a Gloo thread that still holds the tensors of the last collective
    needs the interpreter to release them, and destroying the group does not join that thread while C++ objects (the
    gradients' reducer) refer to the group.

    Args:
        command: returns the status, None for 0. It should itself import the libraries that register exit handlers
            (torch, multiprocessing), as handlers registered before do not run.
    """
    if "WORLD_SIZE" not in os.environ:
        sys.exit(command())
    status = 1  # for an unexpected exception, which the interpreter prints

    def leave() -> None:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # the reader has gone, or the stream is closed
                stream.flush()
        os._exit(status)

    # Handlers run in reverse order: those of libraries that the command imports run before this one.
    atexit.register(leave)
    try:
        status = command() or 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise
    sys.exit(status)


def announce_alone() -> None:
    """Set the environment variables of a launcher for a group of one process, for libraries that require them."""
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    for name, value in {**alone, "MASTER_PORT": str(free_port())}.items():
        os.environ.setdefault(name, value)


def free_port() -> int:
    """A free port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
