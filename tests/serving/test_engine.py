"""Adaptations in the engine, with requests in every order, held at critical moments."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient

from hart import HartModel
from hart.serving.app import create_app
from hart.serving.batching import Batcher
from hart.serving.engine import Engine, StoreTrouble, model_fingerprint
from hart.serving.metrics import Metrics
from hart.serving.settings import Settings
from hart.serving.store import Store

from .conftest import task, to_json


class Gate:
    """Holds the first call of a method: `reached` when it came, goes on when it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, *, after: bool = False) -> None:
        self._call, self._after = getattr(owner, name), after
        self._reached, self._open, self._first = threading.Event(), threading.Event(), True
        monkeypatch.setattr(owner, name, self)

    def __call__(self, *args: Any, **options: Any) -> Any:
        found = self._call(*args, **options) if self._after else None
        if self._first:
            self._first = False
            self._reached.set()
            assert self._open.wait(20)
        return found if self._after else self._call(*args, **options)

    async def reached(self) -> None:
        assert await asyncio.to_thread(self._reached.wait, 20)

    def open(self) -> None:
        self._open.set()


def with_engine(model: HartModel, store: Store, work: Callable[[Engine], Awaitable[None]]) -> None:
    async def inside() -> None:
        metrics = Metrics()
        engine = Engine(model, store, metrics)
        engine.batcher = Batcher(engine.run, Settings(max_wait=0.0), metrics)
        try:
            await asyncio.wait_for(work(engine), 60)
        finally:
            await engine.close()

    asyncio.run(inside())


async def settle() -> None:
    """Let everything that can go on do so."""
    for _ in range(20):
        await asyncio.sleep(0.005)


def gone(engine: Engine, id: str) -> bool:
    return id not in engine._memory and engine.store.record(id) is None and engine.store.get(id) is None


@pytest.mark.parametrize("method", ["record", "get"])
@pytest.mark.parametrize("after", [False, True])
def test_a_delete_while_it_is_looked_for(
    method: str, after: bool, model: HartModel, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(engine: Engine) -> None:
        id = (await engine.adapt(task(1), keep=True)).id
        engine._memory.clear()  # as after a restart
        gate = Gate(monkeypatch, store, method, after=after)
        looking = asyncio.create_task(engine.find(id))
        await gate.reached()
        deleting = asyncio.create_task(engine.forget(id))
        await settle()
        gate.open()
        assert await looking is not None and await deleting is True
        assert gone(engine, id) and await engine.find(id) is None

    with_engine(model, store, work)


@pytest.mark.parametrize("method", ["record", "put"])
def test_a_delete_while_it_is_kept(
    method: str, model: HartModel, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was posted before the delete is kept before it, so that it is gone afterwards."""

    async def work(engine: Engine) -> None:
        adapted = await engine.adapt(task(1))
        store.delete(adapted.id)  # by another server: it is in memory, and will be put again
        gate = Gate(monkeypatch, store, method)
        posting = asyncio.create_task(engine.adapt(task(1), keep=True))
        await gate.reached()
        deleting = asyncio.create_task(engine.forget(adapted.id))
        await settle()
        assert not deleting.done()
        gate.open()
        assert (await posting).record is not None and await deleting is True
        assert gone(engine, adapted.id)

    with_engine(model, store, work)


def test_a_delete_while_it_is_generated(model: HartModel, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(engine: Engine) -> None:
        id = engine.id_of(task(1))
        gate = Gate(monkeypatch, model, "adapt")
        posting = asyncio.create_task(engine.adapt(task(1), keep=True))
        await gate.reached()
        deleting = asyncio.create_task(engine.forget(id))
        await settle()
        gate.open()
        assert (await posting).new and await deleting is True
        assert gone(engine, id)

    with_engine(model, store, work)


def test_a_post_while_it_is_deleted(model: HartModel, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is posted after a delete is there afterwards, made anew; what looks for it meanwhile finds nothing."""

    async def work(engine: Engine) -> None:
        id = (await engine.adapt(task(1), keep=True)).id
        gate = Gate(monkeypatch, store, "delete", after=True)
        deleting = asyncio.create_task(engine.forget(id))
        await gate.reached()
        engine._memory.clear()
        looking = asyncio.create_task(engine.find(id))
        await settle()
        posting = asyncio.create_task(engine.adapt(task(1), keep=True))
        await settle()
        gate.open()
        assert await deleting is True and await looking is None
        assert (await posting).new and store.get(id) is not None and await engine.find(id) is not None

    with_engine(model, store, work)


def test_what_was_begun_is_finished_if_the_client_leaves(
    model: HartModel, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(engine: Engine) -> None:
        gate = Gate(monkeypatch, model, "adapt")
        first = asyncio.create_task(engine.adapt(task(1), keep=True))
        await gate.reached()
        others = [asyncio.create_task(engine.adapt(task(1), keep=True)) for _ in range(3)]
        await settle()
        first.cancel()
        await settle()
        gate.open()
        adapted = await asyncio.gather(*others)
        assert not any(each.new for each in adapted) and store.record(adapted[0].id) is not None
        assert len(engine._locks) <= 1 and not engine._sections

    with_engine(model, store, work)


def test_a_delete_that_fails_changes_nothing(model: HartModel, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(engine: Engine) -> None:
        id = (await engine.adapt(task(1), keep=True)).id
        with monkeypatch.context() as patch:
            patch.setattr(store, "_index", Path("/dev/null/index.sqlite"))
            patch.setattr(store, "folder", Path("/dev/null"))
            with pytest.raises(StoreTrouble):
                await engine.forget(id)
        assert await engine.find(id) is not None and store.get(id) is not None

    with_engine(model, store, work)


def test_two_applications_of_one_model(model: HartModel, tmp_path: Path) -> None:
    """Each has a thread for the model; both answer at once, and as the model does alone."""
    expected = {n: model.generate(["one 1", "two 3"], model.adapt(task(n))) for n in range(4)}
    one, two = (create_app(model, Store(tmp_path / name)) for name in ("a", "b"))
    with TestClient(one, base_url="http://localhost") as first, TestClient(two, base_url="http://localhost") as second:
        wrong: list[Any] = []

        def ask(client: TestClient, offset: int) -> None:
            for n in range(24):
                number = (n + offset) % 4
                body = {"inputs": ["one 1", "two 3"], "adaptation": to_json(task(number))}
                got = client.post("/v1/generate", json=body).json()["outputs"]
                if got != expected[number]:
                    wrong.append((number, got))

        threads = [
            threading.Thread(target=ask, args=each) for each in ((first, 0), (second, 1), (first, 2), (second, 3))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []


def test_an_application_that_was_not_started_says_so(model: HartModel, store: Store) -> None:
    """Mounted in another application its lifespan is not run."""
    outer = Starlette(routes=[Mount("/below", create_app(model, store))])
    client = TestClient(outer, base_url="http://localhost")
    for reply in (client.get("/below/health"), client.post("/below/v1/generate", json={"inputs": ["one"]})):
        assert reply.status_code == 503 and "lifespan" in reply.json()["error"]["message"]


def test_fingerprints_tell_models_apart(model: HartModel) -> None:
    network = model.hypernetwork
    assert network is not None
    before, scheme = model_fingerprint(model), network.config.scheme
    assert model_fingerprint(model) == before
    network.config.scheme = {**scheme, "order": "top_down"}
    reordered = model_fingerprint(model)
    network.config.scheme = scheme
    assert model_fingerprint(model) == before != reordered
    parameter = next(network.parameters())
    kept = parameter.detach().clone()
    with torch.no_grad():
        parameter.view(-1)[0] += 1
        changed = model_fingerprint(model)
        parameter.copy_(kept)
    assert changed != before
