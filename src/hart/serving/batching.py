"""Batching of requests: rows wait in a queue, and one thread runs the model on batches of them.

The next batch consists of the oldest row and all waiting rows with the same key, whatever their tasks. Rows for the
next batch arrive while the model works, so the deliberate wait (`max_wait`) only matters for an idle model.
"""

import asyncio
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from hart.serving.metrics import Metrics
from hart.serving.settings import Settings

logger = logging.getLogger(__name__)


class Busy(Exception):
    """The queue is full; `retry_after` is the estimated time in seconds until it is empty."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"too many requests are waiting; try again in {retry_after} s")
        self.retry_after = retry_after


class Stopped(Exception):
    """The batcher is not running, or was closed."""


@dataclass(eq=False)
class Job:
    """One row of work. Jobs with equal `kind` and `key` may share a batch.

    Attributes:
        payload: the model's input, read by `run` of the batcher.
        task: the row's task, for counting the tasks of a batch, and for separating tasks without mixing.
        weight: number of rows that it counts as.
        alone: whether it must have its own batch.
        result: the result, set by the batcher.
        abandoned: whether no caller waits for the result any more; the model's thread checks it.
        queue: the queue in which it waits.
    """

    kind: str
    key: Hashable
    payload: Any
    task: str | None = None
    weight: int = 1
    alone: bool = False
    result: asyncio.Future[Any] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    abandoned: bool = False
    since: float = field(default_factory=time.monotonic)
    queue: "_Queue | None" = None

    def abandon(self) -> None:
        self.abandoned = True
        self.result.cancel()
        if self.queue is not None:
            self.queue.remove(self)


class _Group:
    """Jobs that may share a batch, and their number of rows."""

    def __init__(self) -> None:
        self.jobs: OrderedDict[Job, None] = OrderedDict()
        self.rows = 0


class _Queue:
    """Waiting jobs in order of arrival and by group; no operation scans jobs that it does not return."""

    def __init__(self, mixing: bool, metrics: Metrics) -> None:
        self.rows = 0
        self._mixing = mixing
        self._metrics = metrics
        # OrderedDicts, because finding the first entry of a plain dict scans all removed entries before it.
        self._jobs: OrderedDict[Job, Hashable] = OrderedDict()
        self._groups: dict[Hashable, _Group] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    def add(self, job: Job) -> None:
        of_one_task = not self._mixing and job.kind != "adapt"
        key = job if job.alone else (job.kind, job.key, job.task if of_one_task else None)
        group = self._groups.setdefault(key, _Group())
        group.jobs[job] = None
        group.rows += job.weight
        self._jobs[job] = key
        self.rows += job.weight
        job.queue = self
        self._metrics.waiting.set(self.rows)

    def first(self) -> Job:
        return next(iter(self._jobs))

    def rows_with(self, job: Job) -> int:
        """Number of rows that may share a batch with a waiting job, including its own."""
        return self._groups[self._jobs[job]].rows

    def take(self, most: int) -> list[Job]:
        """Remove and return the oldest job and those that may share its batch, up to `most` rows."""
        batch: list[Job] = []
        if not self._jobs:
            return batch
        for job in self._groups[self._jobs[self.first()]].jobs:
            most -= job.weight
            if batch and most < 0:
                break
            batch.append(job)
        for job in batch:
            self._take_out(job)
        return batch

    def remove(self, job: Job) -> None:
        """Remove an abandoned job."""
        self._take_out(job)
        self._metrics.abandoned.inc(job.weight)

    def _take_out(self, job: Job) -> None:
        key = self._jobs.pop(job)
        group = self._groups[key]
        del group.jobs[job]
        group.rows -= job.weight
        if not group.jobs:
            del self._groups[key]
        self.rows -= job.weight
        job.queue = None
        self._metrics.waiting.set(self.rows)


class Batcher:
    """Runs batches of jobs in a separate thread.

    Args:
        run: returns the results of a batch, in order. If it fails, each job is tried alone, so that a bad request does
            not affect others.
    """

    def __init__(self, run: Callable[[Sequence[Job]], list[Any]], settings: Settings, metrics: Metrics) -> None:
        self._run = run
        self._settings = settings
        self._metrics = metrics
        self._waiting = _Queue(settings.mixing, metrics)
        self._arrived = asyncio.Event()
        self._closing = False
        self._seconds_per_row = 0.01
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._loop = asyncio.create_task(self._serve())

    @property
    def alive(self) -> bool:
        """Whether the batcher's thread is running."""
        return not self._loop.done()

    def check_ready(self) -> None:
        """Raise `Stopped` if the queue is full or the batcher was closed."""
        if self._closing:
            raise Stopped("the server is going down")
        if self._waiting.rows >= self._settings.max_queue:
            raise Stopped("the queue is full")

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue all of `jobs`, or none.

        Raises:
            Busy: the queue has no room for them.
            Stopped: the batcher was closed.
        """
        if self._closing:
            raise Stopped("the server is going down")
        waiting = self._waiting.rows
        if waiting + sum(job.weight for job in jobs) > self._settings.max_queue and waiting:
            self._metrics.refused.inc()
            raise Busy(max(1, math.ceil(waiting * self._seconds_per_row)))
        for job in jobs:
            self._waiting.add(job)
        self._arrived.set()

    async def close(self) -> None:
        """Finish all accepted jobs, then end the thread."""
        self._closing = True
        self._arrived.set()
        await self._loop
        self._thread.shutdown()

    async def _serve(self) -> None:
        while self._waiting or not self._closing:
            if not self._waiting:
                self._arrived.clear()
                await self._arrived.wait()
                continue
            await self._gather(self._waiting.first())
            batch = self._waiting.take(self._settings.max_batch)
            if batch:
                await self._answer(batch)

    async def _gather(self, first: Job) -> None:
        """Wait for rows that join `first`, at most until its waiting time is over or the batch is full."""
        until = first.since + self._settings.max_wait
        while not first.alone and not first.abandoned and not self._closing:
            left = until - time.monotonic()
            if left <= 0 or self._waiting.rows_with(first) >= self._settings.max_batch:
                return
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), left)
            except TimeoutError:
                return

    async def _answer(self, batch: list[Job]) -> None:
        start = time.monotonic()
        outcomes = await self._try(batch)
        if isinstance(outcomes, Exception) and len(batch) > 1:
            logger.error("a batch of %d rows failed (%s); trying each alone", len(batch), type(outcomes).__name__)
            alone = [await self._try([job]) for job in batch]
            outcomes = [each if isinstance(each, Exception) else each[0] for each in alone]
        elif isinstance(outcomes, Exception):
            outcomes = [outcomes]
        seconds, kind = time.monotonic() - start, batch[0].kind
        rows = sum(job.weight for job in batch)
        self._seconds_per_row += 0.1 * (seconds / rows - self._seconds_per_row)
        self._metrics.batch_seconds.labels(kind).observe(seconds)
        self._metrics.batch_rows.labels(kind).observe(rows)
        self._metrics.batch_tasks.labels(kind).observe(len({job.task for job in batch}))
        for job, outcome in zip(batch, outcomes, strict=True):
            if job.result.done():
                self._metrics.abandoned.inc(job.weight)
            elif isinstance(outcome, Exception):
                job.result.set_exception(outcome)
            else:
                job.result.set_result(outcome)

    async def _try(self, batch: list[Job]) -> list[Any] | Exception:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._run, batch)
        except Exception as error:
            return error
