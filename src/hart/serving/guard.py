"""Checks of every request (host, token, size) before the application, and headers of every reply."""

import asyncio
import hmac
import time
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hart.serving.metrics import Metrics
from hart.serving.settings import BODY_SECONDS, MAX_BODY_BYTES, Settings

PAGE_FILES = {
    "/": ("index.html", "text/html"),
    "/base.css": ("base.css", "text/css"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/examples.js": ("examples.js", "text/javascript"),
}
"""Path → file in the folder `page`, and its media type."""

# Paths without a token, as they reveal nothing about tasks: the page, the interface description, and health.
OPEN = (*PAGE_FILES, "/health", "/livez", "/readyz", "/docs", "/openapi.json")
OPEN_BELOW = "/static-offline-docs/"

_THIS_MACHINE = {"localhost", "127.0.0.1", "[::1]", "::1"}
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}


# Codes by which OpenAI's clients recognise some kinds of errors.
_CODES = {
    "busy": "rate_limit_exceeded",
    "invalid_request": "invalid_value",
    "too_large": "request_too_large",
    "unauthorized": "invalid_api_key",
}


def error(
    status: int,
    message: str,
    kind: str,
    param: str | None = None,
    headers: dict[str, str] | None = None,
    code: str | None = None,
) -> JSONResponse:
    """An error reply in OpenAI's format."""
    headers = dict(headers or {})
    if status in (504, 507):
        # OpenAI's clients retry all 5xx by default; a request that took too long would take as long again.
        headers["x-should-retry"] = "false"
    return JSONResponse(error_body(message, kind, param, code), status_code=status, headers=headers)


def error_body(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code or _CODES.get(kind, kind)}}


class Guard:
    """ASGI middleware that checks requests, and reads the whole body within limits of size and time before parsing."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self._app = app
        self._settings = settings
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.monotonic(), 500
        head = scope["method"] == "HEAD"
        # HEAD is handled as GET; a copy, because the server uses its own scope to leave out the body.
        scope = {**scope, "method": "GET"} if head else scope

        async def send_on(message: Message) -> None:
            nonlocal status
            if head and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            refusal = self._refuse(scope)
            body = b""
            if refusal is None:
                body, refusal = await _read(receive)
            if refusal is not None:
                # The rest of the body is not read.
                refusal.headers["Connection"] = "close"
                await refusal(scope, receive, send_on)
            else:
                await self._app(scope, _replay(body, receive), send_on)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.request_seconds.labels(route).observe(time.monotonic() - start)

    def _refuse(self, scope: Scope) -> JSONResponse | None:
        headers, path, token = Headers(scope=scope), _path(scope), self._settings.token
        if token is None and self._settings.loopback and _host(headers.get("host", "")) not in _THIS_MACHINE:
            return error(403, "the Host header names another machine; use localhost, or a token", "forbidden")
        if token is not None and path not in OPEN and not path.startswith(OPEN_BELOW):
            scheme, _, given = headers.get("authorization", "").partition(" ")
            # Headers are decoded as Latin-1; the sent bytes are compared.
            right = hmac.compare_digest(given.strip().encode("latin-1"), token.encode())
            if scheme.lower() != "bearer" or not right:
                challenge = {"WWW-Authenticate": "Bearer"}
                return error(401, "give the server's token: Authorization: Bearer …", "unauthorized", headers=challenge)
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length[:20]) > MAX_BODY_BYTES:
            return _too_large()
        return None


async def _read(receive: Receive) -> tuple[bytes, JSONResponse | None]:
    """The whole body, or the reply that refuses it; chunked bodies are counted while they arrive."""
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return b"", error(400, "the client left before the request was whole", "disconnected")
                body += message.get("body", b"")
                if len(body) > MAX_BODY_BYTES:
                    return b"", _too_large()
                if not message.get("more_body", False):
                    return bytes(body), None
    except TimeoutError:
        return b"", error(408, f"the request did not arrive within {BODY_SECONDS:.0f} s", "timeout")


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that returns the body at once, and then the connection's messages (the client left)."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _too_large() -> JSONResponse:
    return error(413, f"the request is larger than {MAX_BODY_BYTES} bytes", "too_large")


def _path(scope: Scope) -> str:
    """The path relative to the application, which may be mounted in another one or served under `--root-path`."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path.removeprefix(root) if path.startswith(f"{root}/") else path


def _host(header: str) -> str:
    """The host name in a Host header, without the port."""
    return header.rsplit(":", 1)[0].lower() if not header.endswith("]") else header.lower()
