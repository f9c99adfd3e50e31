"""Clients of `hart serve`, with the methods of `HartModel`: adapt, generate, score, classify.

    client = hart.Client("http://127.0.0.1:8000")
    adapted = client.adapt(task)
    client.generate(["query", …], adapted)

`AsyncClient` is the same for asyncio. Weights stay on the server; the client has the id of an adaptation, and can
`download` it. `hart.serving.protocol` defines requests and the reading of replies.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Self, TypeVar

from hart.data.tasks import Task
from hart.errors import HartError
from hart.model.classification import Classification
from hart.serving.protocol import AdaptedBy, Call, Protocol, RemoteAdaptation, httpx2

if TYPE_CHECKING:
    from hart.model.adaptation import Adaptation

_HERE = "http://127.0.0.1:8000"

T = TypeVar("T")
Http = TypeVar("Http", httpx2.Client, httpx2.AsyncClient)


class Client:
    """A connection to a server.

    Args:
        url: address of the server.
        token: the server's token, if it has one; None: the variable HART_TOKEN, or no token.
        timeout: seconds without anything received from the server after which a request is abandoned.
        retries: the most times a request is sent again when the server is busy (429) or shutting down (503), or the
            connection was refused or closed before a reply. Between attempts the client waits as long as the server
            asks, up to a minute, plus a growing delay.

    Every method raises `HartError` if the server refuses the request (with its message) or cannot be reached.
    """

    def __init__(self, url: str = _HERE, *, token: str | None = None, timeout: float = 120.0, retries: int = 2) -> None:
        self._protocol = Protocol(url, token, retries)
        self.url = self._protocol.url
        self._http = _connection(httpx2.Client, self._protocol, timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def adapt(self, task: Task) -> RemoteAdaptation:
        """Adapt the server's model to a task; repeating a task costs nothing."""
        return self._do(self._protocol.adapt(task))

    def generate(
        self, queries: str | Sequence[str], adaptation: AdaptedBy | Sequence[AdaptedBy] | None = None, **options: Any
    ) -> list[str]:
        """Answers to the queries, as `HartModel.generate`.

        Args:
            adaptation: the result of `adapt`, an id, or a task; one for all queries, or one per query. None: the
                un-adapted base answers.
            options: `max_new_tokens`, `num_beams`, `temperature`, `top_p`, `stop` (one text or up to four; the
                answer ends before the first that occurs), `seed` (of sampling).
        """
        return self._do(self._protocol.generate(queries, adaptation, options))

    def stream(self, query: str, adaptation: AdaptedBy | None = None, **options: Any) -> Iterator[str]:
        """The answer to one query, piece by piece as it is generated; options as for `generate`, except `num_beams`."""
        call = self._protocol.stream(query, adaptation, options)
        attempts = self._protocol.attempts(call)
        while True:
            try:
                with self._http.stream(call.method, call.path, **call.sent) as reply:
                    if reply.status_code != 200:
                        reply.read()
                    wait = attempts.judge(reply)
                    if wait is None:
                        for event in httpx2.EventSource(reply):
                            piece = self._protocol.piece(event.data)
                            if piece is None:
                                return
                            yield piece
                        raise self._protocol.broken_off()
            except httpx2.HTTPError as error:
                wait = attempts.judge(error)
            time.sleep(wait or 0.0)

    def score(
        self, query: str, choices: Sequence[str], adaptation: AdaptedBy | None = None, *, normalisation: str = "sum"
    ) -> list[float]:
        """Log-probability of each choice as the answer, in nats."""
        return self._do(self._protocol.score(query, choices, adaptation, normalisation))

    def classify(
        self,
        queries: str | Sequence[str],
        choices: Sequence[str] | Sequence[Sequence[str]],
        adaptation: AdaptedBy | Sequence[AdaptedBy] | None = None,
        **options: Any,
    ) -> list[Classification]:
        """The most probable choice for each query and all probabilities, as `HartModel.classify`.

        Args:
            choices: one list for all queries, or one list per query.
            adaptation: as for `generate`.
            options: `normalisation`, `calibrate`.
        """
        return self._do(self._protocol.classify(queries, choices, adaptation, options))

    def download(self, adaptation: RemoteAdaptation | str) -> "Adaptation":
        """Download an adaptation as a local `Adaptation`."""
        return self._do(self._protocol.download(adaptation))

    def adaptations(self, *, limit: int = 100, offset: int = 0) -> list[dict[str, Any]]:
        """Records of the adaptations of the server's model in its store, the most recently used first."""
        return self._do(self._protocol.adaptations(limit, offset))

    def delete(self, adaptation: RemoteAdaptation | str) -> None:
        """Delete an adaptation on the server."""
        self._do(self._protocol.delete(adaptation))

    def _do(self, call: Call[T]) -> T:
        if call.known is not None:
            return call.known
        attempts = self._protocol.attempts(call)
        while True:
            reply: httpx2.Response | httpx2.HTTPError
            try:
                reply = self._http.request(call.method, call.path, **call.sent)
            except httpx2.HTTPError as error:
                reply = error
            wait = attempts.judge(reply)
            if wait is None:
                assert isinstance(reply, httpx2.Response)
                return call.read(reply.content)
            time.sleep(wait)


class AsyncClient:
    """As `Client`, for asyncio: the same arguments and methods, to be awaited; `stream` is used with `async for`.

    When its task is cancelled, or a stream is closed, the server abandons the request too.
    """

    def __init__(self, url: str = _HERE, *, token: str | None = None, timeout: float = 120.0, retries: int = 2) -> None:
        self._protocol = Protocol(url, token, retries)
        self.url = self._protocol.url
        self._http = _connection(httpx2.AsyncClient, self._protocol, timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def adapt(self, task: Task) -> RemoteAdaptation:
        """As `Client.adapt`."""
        return await self._do(self._protocol.adapt(task))

    async def generate(
        self, queries: str | Sequence[str], adaptation: AdaptedBy | Sequence[AdaptedBy] | None = None, **options: Any
    ) -> list[str]:
        """As `Client.generate`."""
        return await self._do(self._protocol.generate(queries, adaptation, options))

    async def stream(self, query: str, adaptation: AdaptedBy | None = None, **options: Any) -> AsyncIterator[str]:
        """As `Client.stream`; a caller that stops early must close it, as `contextlib.aclosing` does."""
        call = self._protocol.stream(query, adaptation, options)
        attempts = self._protocol.attempts(call)
        while True:
            try:
                async with self._http.stream(call.method, call.path, **call.sent) as reply:
                    if reply.status_code != 200:
                        await reply.aread()
                    wait = attempts.judge(reply)
                    if wait is None:
                        async for event in httpx2.EventSource(reply):
                            piece = self._protocol.piece(event.data)
                            if piece is None:
                                return
                            yield piece
                        raise self._protocol.broken_off()
            except httpx2.HTTPError as error:
                wait = attempts.judge(error)
            await asyncio.sleep(wait or 0.0)

    async def score(
        self, query: str, choices: Sequence[str], adaptation: AdaptedBy | None = None, *, normalisation: str = "sum"
    ) -> list[float]:
        """As `Client.score`."""
        return await self._do(self._protocol.score(query, choices, adaptation, normalisation))

    async def classify(
        self,
        queries: str | Sequence[str],
        choices: Sequence[str] | Sequence[Sequence[str]],
        adaptation: AdaptedBy | Sequence[AdaptedBy] | None = None,
        **options: Any,
    ) -> list[Classification]:
        """As `Client.classify`."""
        return await self._do(self._protocol.classify(queries, choices, adaptation, options))

    async def download(self, adaptation: RemoteAdaptation | str) -> "Adaptation":
        """As `Client.download`."""
        return await self._do(self._protocol.download(adaptation))

    async def adaptations(self, *, limit: int = 100, offset: int = 0) -> list[dict[str, Any]]:
        """As `Client.adaptations`."""
        return await self._do(self._protocol.adaptations(limit, offset))

    async def delete(self, adaptation: RemoteAdaptation | str) -> None:
        """As `Client.delete`."""
        await self._do(self._protocol.delete(adaptation))

    async def _do(self, call: Call[T]) -> T:
        if call.known is not None:
            return call.known
        attempts = self._protocol.attempts(call)
        while True:
            reply: httpx2.Response | httpx2.HTTPError
            try:
                reply = await self._http.request(call.method, call.path, **call.sent)
            except httpx2.HTTPError as error:
                reply = error
            wait = attempts.judge(reply)
            if wait is None:
                assert isinstance(reply, httpx2.Response)
                return call.read(reply.content)
            await asyncio.sleep(wait)


def _connection(kind: type[Http], protocol: Protocol, timeout: float) -> Http:
    if (
        isinstance(timeout, bool)
        or not isinstance(timeout, int | float | None)
        or (timeout is not None and timeout <= 0)
    ):
        raise HartError(f"timeout must be a number of seconds above 0, not {timeout!r}")
    try:
        # Without a limit for waiting for a connection of the client's own pool.
        return kind(base_url=protocol.url, headers=protocol.headers, timeout=httpx2.Timeout(timeout, pool=None))
    except httpx2.InvalidURL as error:
        advice = "give one such as http://127.0.0.1:8000"
        raise HartError(f"{protocol.url}: is not the address of a server ({error}); {advice}") from error
