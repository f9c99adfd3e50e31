"""The queue: composition and order of batches, and abandoned rows."""

import asyncio
import random
import threading
from collections.abc import Sequence
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")

from hart.serving.batching import Batcher, Busy, Job, Stopped  # noqa: E402
from hart.serving.metrics import Metrics  # noqa: E402
from hart.serving.settings import Settings  # noqa: E402


class Model:
    """Remembers its batches; may be held."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.free = threading.Event()
        self.free.set()

    def __call__(self, batch: Sequence[Job]) -> list[Any]:
        self.free.wait(10)
        self.batches.append([job.payload for job in batch])
        if any(job.payload == "poison" for job in batch):
            raise ValueError("poison")
        return [f"{job.payload}!" for job in batch]


def run(work: Any, **settings: Any) -> Model:
    """Run `work(batcher, model)` with a batcher of its own."""

    async def inside() -> Model:
        model = Model()
        batcher = Batcher(model, Settings(**{"max_wait": 0.0, **settings}), Metrics())
        try:
            await asyncio.wait_for(work(batcher, model), 10)
        finally:
            model.free.set()
            await batcher.close()
        return model

    return asyncio.run(inside())


def jobs(*payloads: str, key: Any = (), **options: Any) -> list[Job]:
    return [Job("generate", key, payload, task=payload[0], **options) for payload in payloads]


async def blocked(batcher: Batcher, model: Model) -> Job:
    """Let the model begin a batch and hold it there."""
    model.free.clear()
    (first,) = jobs("first", key="first")
    batcher.submit([first])
    await asyncio.sleep(0.02)
    return first


async def all_of(jobs: Sequence[Job]) -> list[Any]:
    return list(await asyncio.gather(*(job.result for job in jobs)))


def test_rows_of_different_tasks_and_requests_share_a_batch() -> None:
    async def work(batcher: Batcher, model: Model) -> None:
        await blocked(batcher, model)
        waiting = jobs("a1", "b1") + jobs("c1")
        for job in waiting:
            batcher.submit([job])
        model.free.set()
        assert await all_of(waiting) == ["a1!", "b1!", "c1!"]

    assert run(work).batches == [["first"], ["a1", "b1", "c1"]]


def test_other_options_are_another_batch_and_the_oldest_goes_first() -> None:
    async def work(batcher: Batcher, model: Model) -> None:
        await blocked(batcher, model)
        waiting = jobs("a1", key=1) + jobs("a2", key=2) + jobs("a3", key=1) + jobs("s", key=1, alone=True)
        batcher.submit(waiting)
        model.free.set()
        await all_of(waiting)

    assert run(work).batches == [["first"], ["a1", "a3"], ["a2"], ["s"]]


def test_without_mixing_each_batch_is_of_one_task() -> None:
    async def work(batcher: Batcher, model: Model) -> None:
        await blocked(batcher, model)
        waiting = jobs("a1", "b1", "a2", "b2")
        batcher.submit(waiting)
        model.free.set()
        await all_of(waiting)

    assert run(work, mixing=False).batches == [["first"], ["a1", "a2"], ["b1", "b2"]]


def test_batches_hold_so_many_rows() -> None:
    async def work(batcher: Batcher, model: Model) -> None:
        await blocked(batcher, model)
        waiting = jobs("a", "b", "c") + jobs("heavy", weight=9) + jobs("d")
        batcher.submit(waiting)
        model.free.set()
        await all_of(waiting)

    assert run(work, max_batch=2).batches == [["first"], ["a", "b"], ["c"], ["heavy"], ["d"]]


def test_an_idle_model_waits_a_little_for_company() -> None:
    async def work(batcher: Batcher, model: Model) -> None:
        first, second = jobs("a"), jobs("b")
        batcher.submit(first)
        await asyncio.sleep(0.05)
        batcher.submit(second)
        await all_of(first + second)

    assert run(work, max_wait=0.5, max_batch=2).batches == [["a", "b"]]
    assert run(work, max_wait=0.0).batches == [["a"], ["b"]]


def test_a_full_queue_takes_all_rows_of_a_request_or_none() -> None:
    async def work(batcher: Batcher, model: Model) -> None:
        await blocked(batcher, model)
        kept = jobs("a", "b", "c")
        batcher.submit(kept)
        with pytest.raises(Busy) as refusal:
            batcher.submit(jobs("d", "e"))
        assert refusal.value.retry_after >= 1
        last = jobs("f")
        batcher.submit(last)
        model.free.set()
        await all_of(kept + last)

    assert run(work, max_queue=4).batches == [["first"], ["a", "b", "c", "f"]]


def test_abandoned_rows_are_never_run_and_make_room() -> None:
    async def work(batcher: Batcher, model: Model) -> None:
        await blocked(batcher, model)
        gone, kept = jobs("a", "b"), jobs("c", "d")
        batcher.submit(gone)
        for job in gone:
            job.abandon()
        batcher.submit(kept)
        model.free.set()
        await all_of(kept)

    assert run(work, max_queue=2).batches == [["first"], ["c", "d"]]


def test_one_bad_row_does_not_spoil_the_others() -> None:
    async def work(batcher: Batcher, model: Model) -> None:
        await blocked(batcher, model)
        waiting = jobs("a", "poison", "c")
        batcher.submit(waiting)
        model.free.set()
        results = await asyncio.gather(*(job.result for job in waiting), return_exceptions=True)
        assert (results[0], results[2]) == ("a!", "c!") and isinstance(results[1], ValueError)

    assert run(work).batches == [["first"], ["a", "poison", "c"], ["a"], ["poison"], ["c"]]


def test_closing_finishes_what_was_accepted() -> None:
    waiting: list[Job] = []

    async def work(batcher: Batcher, model: Model) -> None:
        await blocked(batcher, model)
        waiting.extend(jobs("a", "b"))
        batcher.submit(waiting)

    run(work)
    assert [job.result.result() for job in waiting] == ["a!", "b!"]


def test_totals_follow_what_waits() -> None:
    """Kept in step by every way in and out, whatever is mixed."""
    chance = random.Random(0)

    async def work(batcher: Batcher, model: Model) -> None:
        await blocked(batcher, model)
        queue, waiting = batcher._waiting, list[Job]()
        for step in range(400):
            if waiting and chance.random() < 0.4:
                waiting.pop(chance.randrange(len(waiting))).abandon()
            else:
                options = {"key": chance.randrange(3), "weight": chance.randrange(1, 4), "alone": step % 7 == 0}
                new = jobs(chance.choice("abc"), **options)
                batcher.submit(new)
                waiting += new
            assert (len(queue), queue.rows) == (len(waiting), sum(job.weight for job in waiting))
            if waiting:
                first, like = queue.first(), (waiting[0].kind, waiting[0].key)
                mates = [job for job in waiting if (job.kind, job.key) == like and not job.alone]
                assert first is waiting[0]
                assert queue.rows_with(first) == sum(job.weight for job in ([first] if first.alone else mates))
        model.free.set()
        await all_of(waiting)
        assert (len(queue), queue.rows, len(queue._groups)) == (0, 0, 0)

    run(work, max_queue=10_000)


class Watched(Job):
    """Counts how often the queue looks at the likes of it."""

    looks = 0

    def __getattribute__(self, name: str) -> Any:
        Watched.looks += name in ("weight", "abandoned", "key", "since")
        return super().__getattribute__(name)


def test_a_row_costs_the_same_in_a_long_queue() -> None:
    """Coming, leaving and being taken look at the row itself, and not at all that wait."""
    looks: dict[int, float] = {}

    async def work(batcher: Batcher, model: Model) -> None:
        for count in (50, 2_000):
            await blocked(batcher, model)
            Watched.looks = 0
            waiting = [Watched("generate", number % 7, "row") for number in range(count)]
            for job in waiting:
                batcher.submit([job])
            for job in waiting[::2]:
                job.abandon()
            model.free.set()
            await all_of(waiting[1::2])
            looks[count] = Watched.looks / count

    run(work, max_queue=100_000)
    assert looks[2_000] < 1.5 * looks[50] < 60, looks


def test_after_closing_nothing_is_accepted() -> None:
    async def inside() -> None:
        batcher = Batcher(Model(), Settings(), Metrics())
        await batcher.close()
        with pytest.raises(Stopped):
            batcher.submit(jobs("a"))

    asyncio.run(inside())


def test_what_waits_is_counted_in_rows() -> None:
    """As the limit of the queue and the size of a batch are."""

    async def inside() -> str:
        model, metrics = Model(), Metrics()
        batcher = Batcher(model, Settings(max_wait=0.0), metrics)
        await blocked(batcher, model)
        (job,) = jobs("a1", weight=64)
        batcher.submit([job])
        told = metrics.text().decode()
        job.abandon()
        model.free.set()
        await batcher.close()
        assert "hart_abandoned_rows_total 64.0" in metrics.text().decode()
        return told

    assert "hart_waiting_rows 64.0" in asyncio.run(inside())
