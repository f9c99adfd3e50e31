"""The requests of clients of `hart serve` and the reading of replies, independent of the transport.

A `Call` is one request with the reading of its reply; `Attempts` decides about retries. `hart.serving.client` has the
two transports.
"""

import json
import logging
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar
from urllib.parse import quote

from hart.data.tasks import Task
from hart.errors import HartError
from hart.model.classification import Classification

if TYPE_CHECKING:
    from hart.model.adaptation import Adaptation

try:
    import httpx2
except ImportError:
    raise HartError("the client needs httpx2: pip install 'hart-hypernet[serve]'") from None

T = TypeVar("T")

logger = logging.getLogger(__name__)

_FIRST_WAIT, _LONGEST_WAIT = 0.5, 8.0
"""Seconds between attempts, doubled each time; the actual wait is a random share between a half and all of it."""

_LONGEST_ASKED = 60.0
"""Longest wait in seconds that a client accepts from a server's `Retry-After`."""


@dataclass(frozen=True)
class RemoteAdaptation:
    """An adaptation stored on a server.

    Attributes:
        id: 64 hexadecimal digits.
        task: the task from which it was generated.
        seconds: duration of the forward pass that generated it.
        new: whether this request generated it.
        demonstrations_read: number of the task's demonstrations that the model reads.
    """

    id: str
    task: Task
    seconds: float
    new: bool
    demonstrations_read: int


AdaptedBy: TypeAlias = RemoteAdaptation | Task | str
"""An adaptation, a task that the server adapts to, or the id of an adaptation."""


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request to a server.

    Attributes:
        read: function from the body of its reply to the result.
        known: the result, if no request is necessary.
    """

    method: str
    path: str
    read: Callable[[bytes], T]
    body: dict[str, Any] | None = None
    known: T | None = None

    @property
    def sent(self) -> dict[str, Any]:
        """Keyword arguments of httpx2 for the body: JSON in ASCII, so that lone surrogates also reach the server."""
        if self.body is None:
            return {}
        try:
            content = json.dumps(self.body).encode()
        except (TypeError, ValueError) as error:
            raise HartError(f"the request cannot be written as JSON ({error})") from error
        return {"content": content, "headers": {"Content-Type": "application/json"}}


class Protocol:
    """The requests to a server, and the reading of its replies.

    Args:
        url: address of the server.
        token: the server's token; None: HART_TOKEN, or no token.
        retries: most times that a request is sent again.

    Raises:
        HartError: `retries` is not a whole number of at least 0, the address is invalid, or the token cannot be sent.
    """

    def __init__(self, url: str, token: str | None, retries: int) -> None:
        if type(retries) is not int or retries < 0:
            raise HartError(f"retries must be a whole number of at least 0, not {retries!r}")
        self.url = url.rstrip("/")
        if not self.url.startswith(("http://", "https://")):
            raise HartError(f"{url!r}: is not the address of a server; give one such as http://127.0.0.1:8000")
        self.retries = retries
        token = token or os.environ.get("HART_TOKEN")
        if token and any(character < " " for character in token):
            raise HartError(
                "the token has a line break or another control character; strip a token that is read from a file"
            )
        # As bytes, because a token may have characters that text headers do not allow.
        self.headers = {b"Authorization": f"Bearer {token}".encode()} if token else {}

    def attempts(self, call: Call[Any]) -> "Attempts":
        return Attempts(self.url, self.retries, deletes=call.method == "DELETE")

    def adapt(self, task: Task) -> Call[RemoteAdaptation]:
        names = ("id", "seconds", "new", "demonstrations_read")

        def read(content: bytes) -> RemoteAdaptation:
            return RemoteAdaptation(task=task, **dict(zip(names, self._fields(content, *names), strict=True)))

        return Call("POST", "/v1/adaptations", read, _task(task))

    def generate(
        self, queries: str | Sequence[str], adaptation: AdaptedBy | Sequence[AdaptedBy] | None, options: dict[str, Any]
    ) -> Call[list[str]]:
        if options.get("stream"):
            raise HartError("generate returns whole answers; use stream for pieces as they come")
        texts = _texts(queries)
        body = {"inputs": texts, "adaptation": _reference(adaptation), **options}

        def read(content: bytes) -> list[str]:
            self._tell_far(content, len(texts))
            outputs: list[str] = self._fields(content, "outputs")[0]
            return outputs

        return Call("POST", "/v1/generate", read, body, known=None if texts else [])

    def stream(self, query: str, adaptation: AdaptedBy | None, options: dict[str, Any]) -> Call[None]:
        """A call whose reply is a stream of events, which `piece` reads one by one."""
        body = {"inputs": [query], "adaptation": _reference(adaptation), "stream": True, **options}
        return Call("POST", "/v1/generate", lambda _: None, body)

    def piece(self, data: str) -> str | None:
        """The text of an event of a stream; None at its end.

        Raises:
            HartError: the event is an error of the server, or not an event of `hart serve`.
        """
        if data == "[DONE]":
            return None
        content = self._read(data)
        if "error" in content:
            raise HartError(f"{self.url}: {content['error']['message']}")
        return str(content.get("text", ""))

    def broken_off(self) -> HartError:
        return HartError(f"{self.url}: the answer broke off; ask again")

    def score(
        self, query: str, choices: Sequence[str], adaptation: AdaptedBy | None, normalisation: str
    ) -> Call[list[float]]:
        body = {"input": query, "choices": _choices(choices), "adaptation": _reference(adaptation)}
        return Call("POST", "/v1/score", self._reading("scores"), body | {"normalisation": normalisation})

    def classify(
        self,
        queries: str | Sequence[str],
        choices: Sequence[str] | Sequence[Sequence[str]],
        adaptation: AdaptedBy | Sequence[AdaptedBy] | None,
        options: dict[str, Any],
    ) -> Call[list[Classification]]:
        def read(content: bytes) -> list[Classification]:
            self._tell_far(content, len(texts))
            (found,) = self._fields(content, "classifications")
            return [Classification(**each) for each in found]

        texts = _texts(queries)
        own = [each if isinstance(each, str) else list(each) for each in _choices(choices)]
        body = {"inputs": texts, "choices": own, "adaptation": _reference(adaptation), **options}
        return Call("POST", "/v1/classify", read, body, known=None if texts else [])

    def download(self, adaptation: RemoteAdaptation | str) -> "Call[Adaptation]":
        def read(content: bytes) -> "Adaptation":
            from hart.serving.download import unbundle

            return unbundle(content)

        return Call("GET", f"/v1/adaptations/{_id(adaptation)}/download", read)

    def adaptations(self, limit: int, offset: int) -> Call[list[dict[str, Any]]]:
        for name, value in (("limit", limit), ("offset", offset)):
            if type(value) is not int:
                raise HartError(f"{name} must be a whole number, not {value!r}")
        return Call("GET", f"/v1/adaptations?limit={limit}&offset={offset}", self._reading("adaptations"))

    def delete(self, adaptation: RemoteAdaptation | str) -> Call[None]:
        return Call("DELETE", f"/v1/adaptations/{_id(adaptation)}", lambda _: None)

    def _tell_far(self, content: bytes, count: int) -> None:
        """Warn about queries that are far from the training data of the server's model, as `HartModel` does."""
        far = self._read(content).get("far")
        if isinstance(far, list) and far:
            logger.warning(
                "%d of %d queries (first: query %d) are far from the training data of the server's model, so their "
                "answers are unreliable",
                len(far),
                count,
                far[0] + 1,
            )

    def _reading(self, name: str) -> Callable[[bytes], Any]:
        return lambda content: self._fields(content, name)[0]

    def _fields(self, content: bytes, *names: str) -> list[Any]:
        found = self._read(content)
        if any(name not in found for name in names):
            raise _stranger(self.url)
        return [found[name] for name in names]

    def _read(self, text: str | bytes) -> dict[str, Any]:
        try:
            content = json.loads(text)
        except ValueError:
            content = None
        if not isinstance(content, dict):
            raise _stranger(self.url)
        return content


class Attempts:
    """The attempts of one request, and the decision to retry.

    A request is sent again if the server is busy (429) or shutting down (503), or if the connection was refused or
    closed before a reply, as all requests are idempotent. It is not sent again after a timeout or an incomplete reply.

    Args:
        deletes: whether the request is a deletion, which an attempt without a reply may have completed.
    """

    def __init__(self, url: str, retries: int, *, deletes: bool) -> None:
        self._url, self._retries, self._deletes = url, retries, deletes
        self._made = 0
        self._lost = self._begun = False

    def judge(self, outcome: "httpx2.Response | httpx2.HTTPError") -> float | None:
        """The seconds until the request is sent again; None: the reply is the answer.

        Args:
            outcome: outcome of the newest attempt: the reply (with its body unless successful), or the error.

        Raises:
            HartError: the server refuses the request (with its message), or cannot be reached.
        """
        self._made += 1
        if isinstance(outcome, httpx2.HTTPError):
            problem = self._unreachable(outcome)
            again = isinstance(outcome, httpx2.NetworkError | httpx2.RemoteProtocolError) and not self._begun
            self._lost, asked = True, 0.0
        elif outcome.status_code < 300 or (outcome.status_code == 404 and self._deletes and self._lost):
            self._begun = True
            return None
        else:
            problem = self._refusal(outcome)
            asked = _asked(outcome)
            again = outcome.status_code in (429, 503) and asked <= _LONGEST_ASKED
        if not again or self._made > self._retries:
            raise problem from (outcome if isinstance(outcome, Exception) else None)
        # Random, so that clients do not retry all at once.
        return asked + min(_FIRST_WAIT * 2 ** (self._made - 1), _LONGEST_WAIT) * random.uniform(0.5, 1)

    def _refusal(self, reply: "httpx2.Response") -> HartError:
        try:
            message = reply.json()["error"]["message"]
        except (ValueError, KeyError, TypeError):
            message = f"status {reply.status_code}; check that the address is of a hart server"
        return HartError(f"{self._url}: {message}{self._times()}")

    def _unreachable(self, error: "httpx2.HTTPError") -> HartError:
        if isinstance(error, httpx2.SSEError):
            return _stranger(self._url)
        told = str(error) or type(error).__name__
        if isinstance(error, httpx2.TimeoutException) and not isinstance(error, httpx2.ConnectTimeout):
            return HartError(f"{self._url}: no reply within the client's timeout; give a larger one, or ask for less")
        if self._begun:
            return HartError(f"{self._url}: the answer broke off ({told}); ask again")
        return HartError(
            f"{self._url}: cannot be reached ({told}{self._times()}); check that hart serve is running there"
        )

    def _times(self) -> str:
        return f", tried {self._made} times" if self._made > 1 else ""


def _asked(reply: "httpx2.Response") -> float:
    """The wait of `Retry-After` in seconds; the header may be a number or a date."""
    given = reply.headers.get("retry-after", "")
    if given.isdecimal():
        return float(given[:9])
    try:
        return max(0.0, (parsedate_to_datetime(given) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return 0.0


def _stranger(url: str) -> HartError:
    return HartError(f"{url}: the reply is not from a hart server; check the address")


def _texts(queries: str | Sequence[str]) -> list[str]:
    return [queries] if isinstance(queries, str) else list(queries)


def _choices(choices: Sequence[Any]) -> list[Any]:
    if isinstance(choices, str):
        raise HartError("choices must be a list of texts, not one text")
    return list(choices)


def _task(task: Task) -> dict[str, Any]:
    if not isinstance(task, Task):
        raise HartError(f"task: give a hart.Task, not {type(task).__name__}")
    shown = [vars(each) for each in task.demonstrations]
    return {"definition": task.definition, "demonstrations": shown}


def _id(adaptation: RemoteAdaptation | str) -> str:
    """The id of an adaptation, quoted for a path."""
    id = adaptation if isinstance(adaptation, str) else adaptation.id
    if not id:
        raise HartError("the id of the adaptation is empty; give what Client.adapt gave, or its id")
    return quote(id, safe="")


def _reference(adaptation: AdaptedBy | Sequence[AdaptedBy] | None) -> Any:
    match adaptation:
        case None | str():
            return adaptation
        case RemoteAdaptation():
            return adaptation.id
        case Task():
            return _task(adaptation)
        case list() | tuple():
            return [_reference(each) for each in adaptation]
        case _:
            kind = type(adaptation).__name__
            raise HartError(f"adaptation: give what Client.adapt gave, an id, a Task or a list of these, not {kind}")
