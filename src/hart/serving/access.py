"""The access log: one line per request on the logger `hart.access`, without texts of the request.

The line and the reply have the request's `X-Request-Id`, or an id created here.
"""

import json
import logging
import re
import time
import uuid
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, TextIO
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hart.model.answering import Answer

logger = logging.getLogger("hart.access")
logger.addHandler(logging.NullHandler())  # silent until `write_lines` is called

Form = Literal["off", "text", "json"]

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")


@dataclass
class Exchange:
    """Facts about a request that are collected while it is answered.

    Attributes:
        tasks: ids of the request's adaptations.
        tokens_in, tokens_out: numbers of tokens that the main model read and generated; None if nothing was generated.
        ended: why a stream ended early: "timeout", "error" or "left" (the client left).
    """

    tasks: list[str] = field(default_factory=list)
    tokens_in: int | None = None
    tokens_out: int | None = None
    ended: str | None = None

    def note(self, id: str) -> None:
        """Record an adaptation that is used or generated."""
        if id not in self.tasks:
            self.tasks.append(id)

    def count(self, answers: Sequence[Answer]) -> None:
        self.tokens_in = (self.tokens_in or 0) + sum(each.query_tokens for each in answers)
        self.tokens_out = (self.tokens_out or 0) + sum(each.tokens for each in answers)


_exchange: ContextVar[Exchange] = ContextVar("exchange")


def exchange() -> Exchange:
    """The `Exchange` of the current request; outside of requests an unused one."""
    return _exchange.get(None) or Exchange()


class AccessLog:
    """The outermost ASGI middleware, which logs requests."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = id  # for replies of 500, which are created outside of this
        start, status = time.monotonic(), 500

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = id
            await send(message)

        known = Exchange()
        token = _exchange.set(known)
        try:
            await self._app(scope, receive, send_on)
        finally:
            _exchange.reset(token)
            fields = {
                "request_id": id,
                "method": scope["method"],
                "path": quote(scope["path"]),
                "status": status,
                "ended": known.ended,
                "tasks": known.tasks,
                "tokens_in": known.tokens_in,
                "tokens_out": known.tokens_out,
                "ms": round(1000 * (time.monotonic() - start), 1),
            }
            bad = status >= 500 or known.ended in ("timeout", "error")
            logger.log(logging.ERROR if bad else logging.INFO, "request", extra={"request": fields})


class _Line(logging.Formatter):
    """Formatter of a record as JSON, or as readable text with the same fields."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self._json = form == "json"

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = record.request  # type: ignore[attr-defined]
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        if self._json:
            return json.dumps({"time": at, "level": record.levelname.lower(), **fields})
        tasks = fields["tasks"]
        shown = [
            f"{fields['method']} {fields['path']} {fields['status']} {fields['ms']} ms",
            *([] if fields["ended"] is None else [fields["ended"]]),
            *([f"task {tasks[0][:12]}"] if len(tasks) == 1 else [f"{len(tasks)} tasks"] if tasks else []),
            *([] if fields["tokens_in"] is None else [f"tokens {fields['tokens_in']}+{fields['tokens_out']}"]),
            fields["request_id"],
        ]
        return f"{at} " + " ".join(shown)


class _Handler(logging.StreamHandler[TextIO]):
    def handleError(self, record: logging.LogRecord) -> None:
        """Ignore errors of a log without a reader."""


def write_lines(form: Form, stream: TextIO) -> None:
    """Write the lines to a stream in a format, replacing earlier streams."""
    for old in list(logger.handlers):
        if isinstance(old, _Handler):
            logger.removeHandler(old)
    logger.propagate = False
    if form == "off":
        return
    handler = _Handler(stream)
    handler.setFormatter(_Line(form))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
