"""One model, one thread, many requests: rows wait in a queue and are taken out as batches.

The oldest row decides what the next batch is, and every waiting row with the same key joins it, whatever its task.
While the model works on one batch the next gathers, so waiting on purpose (`max_wait`) matters only to an idle model.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from hart.serving.metrics import Metrics
from hart.serving.settings import Settings

logger = logging.getLogger(__name__)


class Busy(Exception):
    """The queue is full; `retry_after` is the time in seconds that it needs to empty."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"too many requests are waiting; try again in {retry_after} s")
        self.retry_after = retry_after


@dataclass(eq=False)
class Job:
    """One row of work. Jobs of equal `kind` and `key` may share a batch.

    Attributes:
        payload: what the model needs; `run` of the batcher reads it.
        task: by which the tasks of a batch are counted, and by which rows are kept apart without mixing.
        weight: rows that it counts for.
        alone: whether it must not share a batch.
        result: set by the batcher.
        abandoned: whether nobody waits for the result any more; the model's thread looks at it.
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

    def abandon(self) -> None:
        self.abandoned = True
        self.result.cancel()


class Batcher:
    """Hands batches of jobs to `run`, in a thread of its own.

    Args:
        run: gives the results of a batch, in order. If it fails, each job is tried alone, so that one request cannot
            spoil those of others.
    """

    def __init__(self, run: Callable[[Sequence[Job]], list[Any]], settings: Settings, metrics: Metrics) -> None:
        self._run = run
        self._settings = settings
        self._metrics = metrics
        self._waiting: list[Job] = []
        self._arrived = asyncio.Event()
        self._closing = False
        self._seconds_per_row = 0.01
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._loop = asyncio.create_task(self._serve())

    @property
    def alive(self) -> bool:
        """Whether jobs are still being answered."""
        return not self._loop.done()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Let all of `jobs` wait for the model, or none.

        Raises:
            Busy: there is no room for them.
        """
        waiting = sum(job.weight for job in self._waiting if not job.abandoned)
        if waiting + sum(job.weight for job in jobs) > self._settings.max_queue and waiting:
            self._metrics.refused.inc()
            raise Busy(max(1, math.ceil(waiting * self._seconds_per_row)))
        self._waiting += jobs
        self._metrics.waiting.set(len(self._waiting))
        self._arrived.set()

    async def close(self) -> None:
        """Finish what was accepted, then end the thread."""
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
            await self._gather(self._waiting[0])
            batch = self._take()
            if batch:
                await self._answer(batch)

    async def _gather(self, first: Job) -> None:
        """Wait for rows to join `first`, not longer than it may wait, nor for more than a batch holds."""
        until = first.since + self._settings.max_wait
        while not first.alone and not first.abandoned and not self._closing:
            left = until - time.monotonic()
            if left <= 0 or sum(job.weight for job in self._companions(first)) >= self._settings.max_batch:
                return
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), left)
            except TimeoutError:
                return

    def _companions(self, first: Job) -> list[Job]:
        if first.alone:
            return [first]
        mixing = self._settings.mixing or first.kind == "adapt"
        return [
            job
            for job in self._waiting
            if (job.kind, job.key) == (first.kind, first.key)
            and not job.alone
            and not job.abandoned
            and (mixing or job.task == first.task)
        ]

    def _take(self) -> list[Job]:
        """The next batch, taken out of the queue; rows that nobody waits for are dropped."""
        left = [job for job in self._waiting if not job.abandoned]
        self._metrics.abandoned.inc(len(self._waiting) - len(left))
        self._waiting = left
        batch: list[Job] = []
        if left:
            room = self._settings.max_batch
            for job in self._companions(left[0]):
                room -= job.weight
                if batch and room < 0:
                    break
                batch.append(job)
            taken = set(map(id, batch))
            self._waiting = [job for job in left if id(job) not in taken]
        self._metrics.waiting.set(len(self._waiting))
        return batch

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
                self._metrics.abandoned.inc()
            elif isinstance(outcome, Exception):
                job.result.set_exception(outcome)
            else:
                job.result.set_result(outcome)

    async def _try(self, batch: list[Job]) -> list[Any] | Exception:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._run, batch)
        except Exception as error:
            return error
