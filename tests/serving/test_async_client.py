"""The client for asyncio, and both clients when a server is busy, gone, or left."""

import asyncio
import contextlib
import inspect
import json
import socket
import struct
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import StoppingCriteria

import hart.serving.client
from hart import AsyncClient, Client, HartError, HartModel
from hart.serving.app import create_app
from hart.serving.settings import Settings
from hart.serving.store import Store

from .conftest import listening, task

QUERIES = ["one 1", "the cat sat", "two 3"]


def test_the_async_client_gives_the_same(address: str, remote: Client, model: HartModel) -> None:
    async def ask() -> None:
        async with AsyncClient(address, token="sesame") as client:
            there = await asyncio.gather(*(client.adapt(task(n)) for n in range(3)))
            here = [model.adapt(task(n)) for n in range(3)]
            answers = await asyncio.gather(*(client.generate(QUERIES, each) for each in there))
            assert answers == [model.generate(QUERIES, each) for each in here]
            pieces = [piece async for piece in client.stream(QUERIES[0], there[0], max_new_tokens=6)]
            assert "".join(pieces) == model.generate(QUERIES[0], here[0], max_new_tokens=6)[0]
            assert await client.generate(QUERIES, [there[0], task(1), there[2].id]) == remote.generate(QUERIES, there)
            scores = await client.score(QUERIES[0], ["one", "two"], there[0])
            assert scores == pytest.approx(model.score(QUERIES[0], ["one", "two"], here[0]), abs=1e-4)
            (found,) = await client.classify(QUERIES[0], ["one", "two"], there[0])
            (expected,) = model.classify(QUERIES[0], ["one", "two"], here[0])
            assert found.choice == expected.choice
            assert found.probabilities == pytest.approx(expected.probabilities, abs=1e-4)
            downloaded = await client.download(there[1])
            for name, rows in downloaded.blocks.items():  # made in one pass with those of other tasks
                torch.testing.assert_close(rows, here[1].blocks[name], atol=1e-4, rtol=1e-4)
            another = await client.adapt(task(5))
            assert another.id in {each["id"] for each in await client.adaptations()}
            await client.delete(another)
            assert await client.generate([], there[0]) == await client.classify([], ["a", "b"]) == []
            for call in (client.delete(another), client.generate(" ", there[0]), client.adapt("a task")):  # type: ignore[arg-type]
                with pytest.raises(HartError) as told:
                    await call
                assert "\n" not in str(told.value)
            with pytest.raises(HartError, match="no adaptation"):
                [piece async for piece in client.stream(QUERIES[0], another)]

    asyncio.run(ask())
    with pytest.raises(HartError, match="is not the address"):
        AsyncClient("http://[::1")


def test_both_clients_have_the_same_methods() -> None:
    def methods(kind: type) -> dict[str, list[str]]:
        found = {name: each for name, each in vars(kind).items() if inspect.isfunction(each) and name[0] != "_"}
        return {name: list(inspect.signature(each).parameters) for name, each in {**found, "": kind.__init__}.items()}

    assert methods(Client) == methods(AsyncClient)


def test_a_stream_that_is_left_frees_its_row(serve: Callable[..., Any], model: HartModel, tmp_path: Path) -> None:
    """By closing it, and by cancelling the task that reads it: the model answers nothing more for nobody."""
    app = create_app(model, Store(tmp_path / "store"), Settings())
    written: list[int] = []

    class Counting(StoppingCriteria):
        def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            written.append(input_ids.shape[1])
            time.sleep(0.01)
            return torch.zeros(input_ids.shape[0], dtype=torch.bool)

    answers = model.main.answers

    def slowly(*args: Any, stopping_criteria: Any = (), **options: Any) -> Any:
        return answers(*args, stopping_criteria=[*stopping_criteria, Counting()], **options)

    async def leave(url: str, cancel: bool) -> None:
        async with AsyncClient(url) as client:
            stream = client.stream("one 1", None, max_new_tokens=512, temperature=2.0)
            if cancel:
                reading = asyncio.create_task(_all(stream))
                while len(written) < 5:
                    await asyncio.sleep(0.01)
                reading.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await reading
            else:
                async with contextlib.aclosing(stream) as pieces:  # type: ignore[type-var]
                    await anext(pieces)
            assert len(await client.generate("two 3", None, max_new_tokens=1)) == 1

    with listening(app) as url, pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.main, "answers", slowly)
        for cancel in (False, True):
            written.clear()
            asyncio.run(leave(url, cancel))
            assert 2 < len(written) < 400


async def _all(stream: Any) -> list[str]:
    return [piece async for piece in stream]


class Scripted:
    """A server that answers one request after the other with what a script says; then with an empty success."""

    def __init__(self, *script: Any) -> None:
        self.script, self.seen = list(script), 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"] or 0))
                outer.seen += 1
                step = outer.script.pop(0) if outer.script else (200, {}, {"outputs": ["done"], "adaptations": []})
                if step == "reset":
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.connection.close()
                    return
                status, headers, content = step
                body = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_DELETE = do_POST

            def log_message(self, *_: Any) -> None:
                pass

            def handle(self) -> None:
                with contextlib.suppress(OSError, ValueError):
                    super().handle()

            def finish(self) -> None:
                with contextlib.suppress(OSError, ValueError):
                    super().finish()

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self) -> "Scripted":
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def busy(status: int, after: str | None = None) -> tuple[int, dict[str, str], Any]:
    return status, {} if after is None else {"Retry-After": after}, {"error": {"message": "not now"}}


EVENTS = (200, {"Content-Type": "text/event-stream"}, b'data: {"text": "half"}\n\ndata: [DONE]\n\n')
HALF = (200, {"Content-Type": "text/event-stream", "Content-Length": "999"}, b'data: {"text": "half"}\n\n')


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long a client would have waited."""
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr(hart.serving.client, "time", SimpleNamespace(sleep=waits.append))
    monkeypatch.setattr(hart.serving.client, "asyncio", SimpleNamespace(sleep=sleep))
    return waits


def call(kind: type, url: str, ask: Callable[[Any], Any], **options: Any) -> Any:
    """What a method gives of either client; of a stream its pieces."""
    if kind is Client:
        with Client(url, **options) as client:
            made = ask(client)
            return list(made) if inspect.isgenerator(made) else made

    async def run() -> Any:
        async with AsyncClient(url, **options) as client:
            made = ask(client)
            return await (_all(made) if inspect.isasyncgen(made) else made)

    return asyncio.run(run())


def generating(client: Any) -> Any:
    return client.generate("q")


def streaming(client: Any) -> Any:
    return client.stream("q")


@pytest.mark.parametrize("kind", [Client, AsyncClient])
class TestRetries:
    def test_a_busy_server_and_a_lost_connection_are_asked_again(self, kind: type, waited: list[float]) -> None:
        for step in (busy(429), busy(503), "reset"):
            with Scripted(step, step) as server:
                assert call(kind, server.url, generating) == ["done"] and server.seen == 3
        with Scripted("reset", busy(429), EVENTS) as server:
            assert call(kind, server.url, streaming) == ["half"] and server.seen == 3
        with Scripted(busy(503)) as server:
            assert call(kind, server.url, lambda client: client.adaptations()) == [] and server.seen == 2
        firsts, seconds = waited[0:-1:2], waited[1:-1:2]
        assert all(0.25 <= each <= 0.5 for each in [*firsts, waited[-1]]) and all(0.5 <= each <= 1 for each in seconds)
        assert len(set(waited)) == len(waited) == 9, "no two clients come back at once"

    def test_the_time_that_the_server_asks_for(self, kind: type, waited: list[float]) -> None:
        in_30_s = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
        with Scripted(busy(429, "7"), busy(503, in_30_s)) as server:
            assert call(kind, server.url, generating) == ["done"]
        assert 7.25 <= waited[0] <= 7.5 and 28 <= waited[1] <= 31.5
        with Scripted(busy(429, "61")) as server, pytest.raises(HartError, match="not now"):
            call(kind, server.url, generating)
        with Scripted(busy(429, "soon")) as server:
            assert call(kind, server.url, generating) == ["done"]
        assert len(waited) == 3

    def test_there_is_an_end(self, kind: type, waited: list[float]) -> None:
        for retries in (0, 1, 4):
            with Scripted(*[busy(429)] * 5) as server, pytest.raises(HartError) as told:
                call(kind, server.url, generating, retries=retries)
            times = f", tried {retries + 1} times" if retries else ""
            assert str(told.value) == f"{server.url}: not now{times}" and server.seen == retries + 1
        with pytest.raises(
            HartError, match=r"cannot be reached \(.*, tried 3 times\); check that hart serve is running there"
        ):
            call(kind, "http://127.0.0.1:9", streaming)
        for wrong in (-1, True, 1.5):
            with pytest.raises(HartError, match="retries must be"):
                kind(retries=wrong)

    def test_what_is_not_asked_again(self, kind: type, waited: list[float]) -> None:
        """Refusals, defects, and an answer that broke off."""
        for status in (400, 401, 404, 422, 500, 504, 507):
            for ask in (generating, streaming):
                with Scripted(busy(status)) as server, pytest.raises(HartError, match="not now$"):
                    call(kind, server.url, ask)
                assert server.seen == 1
        with Scripted(HALF) as server, pytest.raises(HartError, match="broke off"):
            call(kind, server.url, streaming)
        assert server.seen == 1 and waited == []

    def test_what_was_deleted_without_a_reply_is_deleted(self, kind: type, waited: list[float]) -> None:
        with Scripted("reset", busy(404)) as server:
            assert call(kind, server.url, lambda client: client.delete("0" * 64)) is None
        with Scripted(busy(429), busy(404)) as server, pytest.raises(HartError, match="not now"):
            call(kind, server.url, lambda client: client.delete("0" * 64))
