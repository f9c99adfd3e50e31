"""Streamed answers, as server-sent events."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from fastapi.responses import StreamingResponse

from hart.model.adaptation import Adaptation
from hart.model.answering import Answer
from hart.serving.access import exchange
from hart.serving.batching import Job
from hart.serving.engine import Engine
from hart.serving.guard import error_body
from hart.serving.running import Options, Query


class Stream:
    """A streamed answer."""

    def __init__(self, engine: Engine, job: Job, pieces: "asyncio.Queue[str | None]") -> None:
        self._engine = engine
        self._job = job
        self._pieces = pieces
        job.result.add_done_callback(lambda _: pieces.put_nowait(None))

    def reply(
        self,
        limit: float,
        began: float,
        piece: Callable[[str], dict[str, Any]],
        last: Callable[[Answer], list[dict[str, Any]]],
        first: Sequence[dict[str, Any]] = (),
    ) -> StreamingResponse:
        """The reply with one event per piece of text (made by `piece`), and the closing events (made by `last`).

        Args:
            limit: time limit of the request, in seconds.
            began: time at which the request began, as `time.monotonic` gives it.
        """

        async def events() -> AsyncIterator[str]:
            known = exchange()
            try:
                async with asyncio.timeout(limit - (time.monotonic() - began)):
                    for event in first:
                        yield _event(event)
                    while (new := await self._pieces.get()) is not None:
                        yield _event(piece(new))
                    answer = await self._job.result
                    self._engine.count([answer])
                    for event in last(answer):
                        yield _event(event)
                    yield "data: [DONE]\n\n"
            except TimeoutError:
                known.ended = "timeout"
                yield _event(error_body(f"no answer within {limit:g} s", "timeout"))
            except Exception:  # the reply has begun, so its status cannot be changed
                known.ended = "error"
                yield _event(error_body("an error of the server; its log says more", "server_error"))
                raise
            finally:
                if not self._job.result.done():
                    known.ended = known.ended or "left"
                    self._job.abandon()

        return StreamingResponse(events(), media_type="text/event-stream")


def start_stream(
    engine: Engine, text: str | list[int], id: str | None, adaptation: Adaptation | None, how: Options
) -> Stream:
    loop, pieces = asyncio.get_running_loop(), asyncio.Queue[str | None]()

    def emit(piece: str) -> None:
        loop.call_soon_threadsafe(pieces.put_nowait, piece)

    row = Query(text, adaptation, emit=emit)
    job = Job("stream", (adaptation is not None, how), row, task=id, alone=True)
    engine.submit([job])
    return Stream(engine, job, pieces)


def _event(content: dict[str, Any]) -> str:
    # In ASCII, as some clients read U+2028 or U+0085 in a text as the end of a line.
    return f"data: {json.dumps(content)}\n\n"
