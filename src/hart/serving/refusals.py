"""Error replies to invalid requests: one line that names the wrong field."""

import re
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from hart.errors import HartError
from hart.serving import schemas
from hart.serving.batching import Busy, Stopped
from hart.serving.checks import TooLong
from hart.serving.engine import StoreTrouble
from hart.serving.guard import error

# Parts of an error's location that are not fields: the place in the request, and the forms of `adaptation`.
_NO_FIELDS = ("body", "query", "path", *schemas.TAGS)


_FIELD = re.compile(r"[a-z_]+(\.\w+)*(?=: )")
_CODES = {"missing": "missing_required_parameter", "extra_forbidden": "unknown_parameter"}
"""pydantic's type of error → OpenAI's code; for all other types the value is wrong."""


class Refused(Exception):
    """An exception that ends a request with an error reply."""

    def __init__(self, status: int, message: str, kind: str, param: str | None = None, code: str | None = None) -> None:
        self.status, self.message, self.kind, self.param, self.code = status, message, kind, param, code


class OpenAIRoute(APIRoute):
    """A route of OpenAI's interface, in which invalid requests have the status 400 instead of 422."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def marked(request: Request) -> Response:
            request.state.invalid = 400
            return await handle(request)

        return marked


def _invalid(request: Request, message: str, param: str | None = None, code: str | None = None) -> Response:
    return error(getattr(request.state, "invalid", 422), message, "invalid_request", param, code=code)


def add_error_replies(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, problem: RequestValidationError) -> Response:
        # Without the given value, which may be long, or not text.
        first = problem.errors()[0]
        if first["type"] == "json_invalid":
            return _invalid(request, "the body is not JSON")
        if tuple(first["loc"]) == ("body",) and first["type"] == "missing":
            return _invalid(request, "the body is missing; send a JSON object")
        if tuple(first["loc"]) == ("body",) and not isinstance(problem.body, dict | bytes):
            return _invalid(request, "the body must be a JSON object")
        if tuple(first["loc"]) == ("body",) and isinstance(problem.body, bytes):
            given = request.headers.get("content-type")
            told = f"is {given[:100]!r}" if given else "is missing"
            return _invalid(request, f"the Content-Type header {told}; send Content-Type: application/json")
        field = _line(".".join(str(part) for part in first["loc"] if part not in _NO_FIELDS))
        told = _line(str(first["msg"]).removeprefix("Value error, "))
        # A message about several fields begins with the first of them.
        param = field or (_named(told) if first["type"] == "value_error" else None)
        return _invalid(request, f"{field}: {told}" if field else told, param, _CODES.get(first["type"]))

    @app.exception_handler(HartError)
    async def mistake(request: Request, problem: HartError) -> Response:
        code = "context_length_exceeded" if isinstance(problem, TooLong) else None
        return _invalid(request, str(problem), _named(str(problem)), code)

    @app.exception_handler(Stopped)
    async def stopped(_: Request, problem: Stopped) -> Response:
        return error(503, str(problem), "unavailable")

    @app.exception_handler(StoreTrouble)
    async def trouble(_: Request, problem: StoreTrouble) -> Response:
        return error(507, "the store of this server cannot be used; its log says why", "storage")

    @app.exception_handler(Refused)
    async def refused(request: Request, problem: Refused) -> Response:
        if problem.status == 422:
            return _invalid(request, problem.message, problem.param, problem.code)
        return error(problem.status, problem.message, problem.kind, problem.param, code=problem.code)

    @app.exception_handler(Busy)
    async def busy(_: Request, problem: Busy) -> Response:
        return error(429, str(problem), "busy", headers={"Retry-After": str(problem.retry_after)})

    @app.exception_handler(HTTPException)
    async def other(request: Request, problem: HTTPException) -> Response:
        if problem.status_code == 400 and isinstance(problem.__cause__, ValueError | RecursionError):
            # json's errors: bytes that are not text, numbers of thousands of digits, thousands of nested lists.
            return _invalid(request, f"the body is not JSON that can be read ({_line(_why(problem.__cause__))})")
        kind = {404: "not_found", 405: "method_not_allowed"}.get(problem.status_code, "invalid_request")
        return error(problem.status_code, str(problem.detail), kind, headers=dict(problem.headers or {}))

    @app.exception_handler(Exception)
    async def defect(request: Request, problem: Exception) -> Response:
        id = getattr(request.state, "request_id", None)
        headers = None if id is None else {"X-Request-Id": id}
        return error(500, "an error of the server; its log says more", "server_error", headers=headers)


def _named(message: str) -> str | None:
    """The field with which a message begins; None if it begins with none."""
    found = _FIELD.match(message)
    return None if found is None else found[0]


def _line(text: str) -> str:
    """A text as one line: without line breaks, and with ? in the place of lone surrogates."""
    return " ".join(text.encode("utf-8", "replace").decode().split())


def _why(problem: Exception) -> str:
    return "it is nested too deeply" if isinstance(problem, RecursionError) else str(problem).partition(";")[0]
