"""Replies to requests that are not answered: each in one line, with the field that is wrong."""

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from hart.errors import HartError
from hart.serving import schemas
from hart.serving.batching import Busy, Stopped
from hart.serving.engine import StoreTrouble
from hart.serving.guard import error

# What a place in a request is called beside its fields: where it is, and which form of `adaptation` was meant.
_NO_FIELDS = ("body", "query", "path", *schemas.TAGS)


class Refused(Exception):
    """Ends a request with an error reply."""

    def __init__(self, status: int, message: str, kind: str, param: str | None = None) -> None:
        self.reply = error(status, message, kind, param)


def add_error_replies(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, problem: RequestValidationError) -> Response:
        # Without what was given: it may be long, or not even be text.
        first = problem.errors()[0]
        if first["type"] == "json_invalid":
            return error(422, "the body is not JSON", "invalid_request")
        if tuple(first["loc"]) == ("body",) and first["type"] == "missing":
            return error(422, "the body is missing; send a JSON object", "invalid_request")
        if tuple(first["loc"]) == ("body",) and isinstance(problem.body, bytes):
            given = request.headers.get("content-type")
            told = f"is {given[:100]!r}" if given else "is missing"
            return error(422, f"the Content-Type header {told}; send Content-Type: application/json", "invalid_request")
        field = _line(".".join(str(part) for part in first["loc"] if part not in _NO_FIELDS))
        told = _line(str(first["msg"]).removeprefix("Value error, "))
        # What concerns several fields begins with the first of them.
        named = not field and first["type"] == "value_error"
        param = told.partition(":")[0] if named else field or None
        return error(422, f"{field}: {told}" if field else told, "invalid_request", param)

    @app.exception_handler(HartError)
    async def mistake(_: Request, problem: HartError) -> Response:
        return error(422, str(problem), "invalid_request")

    @app.exception_handler(Stopped)
    async def stopped(_: Request, problem: Stopped) -> Response:
        return error(503, str(problem), "unavailable")

    @app.exception_handler(StoreTrouble)
    async def trouble(_: Request, problem: StoreTrouble) -> Response:
        return error(507, "the store of this server cannot be used; its log says why", "storage")

    @app.exception_handler(Refused)
    async def refused(_: Request, problem: Refused) -> Response:
        return problem.reply

    @app.exception_handler(Busy)
    async def busy(_: Request, problem: Busy) -> Response:
        return error(429, str(problem), "busy", headers={"Retry-After": str(problem.retry_after)})

    @app.exception_handler(HTTPException)
    async def other(_: Request, problem: HTTPException) -> Response:
        if problem.status_code == 400 and isinstance(problem.__cause__, ValueError | RecursionError):
            # Of json: bytes that are no text, numbers of thousands of digits, thousands of nested lists.
            return error(
                422, f"the body is not JSON that can be read ({_line(_why(problem.__cause__))})", "invalid_request"
            )
        kind = {404: "not_found", 405: "method_not_allowed"}.get(problem.status_code, "invalid_request")
        return error(problem.status_code, str(problem.detail), kind, headers=dict(problem.headers or {}))

    @app.exception_handler(Exception)
    async def defect(request: Request, problem: Exception) -> Response:
        id = getattr(request.state, "request_id", None)
        headers = None if id is None else {"X-Request-Id": id}
        return error(500, "an error of the server; its log says more", "server_error", headers=headers)


def _line(text: str) -> str:
    """A text that can be sent as a line: without line breaks, and with ? for what is no character."""
    return " ".join(text.encode("utf-8", "replace").decode().split())


def _why(problem: Exception) -> str:
    return "it is nested too deeply" if isinstance(problem, RecursionError) else str(problem).partition(";")[0]
