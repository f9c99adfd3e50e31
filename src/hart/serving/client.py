"""A client of `hart serve`, with the methods of `HartModel`: adapt, generate, score, classify.

    client = hart.Client("http://127.0.0.1:8000")
    adapted = client.adapt(task)
    client.generate(["query", …], adapted)

Weights stay on the server; an adaptation is known here by its id, and `download` brings it.
"""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from hart.data.tasks import Task
from hart.errors import HartError
from hart.model.classification import Classification

if TYPE_CHECKING:
    from hart.model.adaptation import Adaptation

try:
    import httpx2
except ImportError:
    raise HartError("the client needs httpx2: pip install 'hart-hypernet[serve]'") from None


@dataclass(frozen=True)
class RemoteAdaptation:
    """An adaptation that lies on a server.

    Attributes:
        id: 64 hexadecimal digits.
        task: what it was generated from.
        seconds: of the forward pass that generated it.
        new: whether it was generated now.
        demonstrations_read: how many of the demonstrations the model reads.
    """

    id: str
    task: Task
    seconds: float
    new: bool
    demonstrations_read: int


Adapted: TypeAlias = RemoteAdaptation | Task | str


class Client:
    """A connection to a server.

    Args:
        url: of the server.
        token: its token, if it has one; None is HART_TOKEN, or none.
        timeout: seconds for one request.

    Every method raises `HartError` where the server refuses, in its words, or cannot be reached.
    """

    def __init__(self, url: str = "http://127.0.0.1:8000", *, token: str | None = None, timeout: float = 120.0) -> None:
        self.url = url.rstrip("/")
        token = token or os.environ.get("HART_TOKEN")
        # As bytes: a token may have letters that headers of texts may not.
        headers = {b"Authorization": f"Bearer {token}".encode()} if token else {}
        try:
            self._http = httpx2.Client(base_url=self.url, headers=headers, timeout=timeout)
        except httpx2.InvalidURL as error:
            raise HartError(
                f"{url}: no address of a server ({error}); give one such as http://127.0.0.1:8000"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def adapt(self, task: Task) -> RemoteAdaptation:
        """Let the server's model read a task; the same task again costs nothing."""
        names = ("id", "seconds", "new", "demonstrations_read")
        found = self._fields(names, "POST", "/v1/adaptations", _task(task))
        return RemoteAdaptation(task=task, **dict(zip(names, found, strict=True)))

    def generate(
        self, queries: str | Sequence[str], adaptation: Adapted | Sequence[Adapted] | None = None, **options: Any
    ) -> list[str]:
        """Answers to the queries, as `HartModel.generate`.

        Args:
            adaptation: what `adapt` gave, an id, or a task, one for all queries or one for each; None asks the
                un-adapted base.
            options: `max_new_tokens`, `num_beams`, `temperature`, `top_p`, `stop` (a text or up to four,
                before the first of which an answer ends), `seed` (of sampling).
        """
        texts = [queries] if isinstance(queries, str) else list(queries)
        if not texts:
            return []
        body = {"inputs": texts, "adaptation": _reference(adaptation), **options}
        (outputs,) = self._fields(("outputs",), "POST", "/v1/generate", body)
        return outputs

    def stream(self, query: str, adaptation: Adapted | None = None, **options: Any) -> Iterator[str]:
        """The answer to one query, piece by piece as it is generated; options as for `generate`, but for beams."""
        body = {"inputs": [query], "adaptation": _reference(adaptation), "stream": True, **options}
        try:
            with self._http.stream("POST", "/v1/generate", **_json(body)) as reply:
                if reply.status_code != 200:
                    reply.read()
                    raise self._refusal(reply)
                for event in httpx2.EventSource(reply):
                    if event.data == "[DONE]":
                        return
                    content = self._read(event.data)
                    if "error" in content:
                        raise HartError(f"{self.url}: {content['error']['message']}")
                    yield content.get("text", "")
        except httpx2.HTTPError as error:
            raise self._unreachable(error) from error
        raise HartError(f"{self.url}: the answer broke off; ask again")

    def score(
        self, query: str, choices: Sequence[str], adaptation: Adapted | None = None, *, normalisation: str = "sum"
    ) -> list[float]:
        """Log-probability of each choice as the answer, in nats."""
        if isinstance(choices, str):
            raise HartError("the choices are one text; give a list of texts")
        body = {"input": query, "choices": list(choices), "adaptation": _reference(adaptation)}
        (scores,) = self._fields(("scores",), "POST", "/v1/score", body | {"normalisation": normalisation})
        return scores

    def classify(
        self,
        queries: str | Sequence[str],
        choices: Sequence[str] | Sequence[Sequence[str]],
        adaptation: Adapted | Sequence[Adapted] | None = None,
        **options: Any,
    ) -> list[Classification]:
        """The best of the choices for each query, and the probability of each, as `HartModel.classify`.

        Args:
            choices: for all queries, or for each query its own.
            adaptation: as for `generate`.
            options: `normalisation`, `calibrate`.
        """
        texts = [queries] if isinstance(queries, str) else list(queries)
        if isinstance(choices, str):
            raise HartError("the choices are one text; give a list of texts")
        if not texts:
            return []
        own = [each if isinstance(each, str) else list(each) for each in choices]
        body = {"inputs": texts, "choices": own, "adaptation": _reference(adaptation), **options}
        (found,) = self._fields(("classifications",), "POST", "/v1/classify", body)
        return [Classification(**each) for each in found]

    def download(self, adaptation: RemoteAdaptation | str) -> "Adaptation":
        """The adaptation itself, for the local API."""
        from hart.model.export import unbundle

        return unbundle(self._send("GET", f"/v1/adaptations/{_id(adaptation)}/download").content)

    def adaptations(self, *, limit: int = 100, offset: int = 0) -> list[dict[str, Any]]:
        """What the server's store says of its model's adaptations, the last used first."""
        path = f"/v1/adaptations?limit={limit}&offset={offset}"
        (found,) = self._fields(("adaptations",), "GET", path)
        return found

    def delete(self, adaptation: RemoteAdaptation | str) -> None:
        """Let the server forget an adaptation."""
        self._send("DELETE", f"/v1/adaptations/{_id(adaptation)}")

    def _fields(self, names: Sequence[str], method: str, path: str, body: dict[str, Any] | None = None) -> list[Any]:
        content = self._read(self._send(method, path, body).content)
        if any(name not in content for name in names):
            raise self._stranger()
        return [content[name] for name in names]

    def _read(self, text: str | bytes) -> dict[str, Any]:
        try:
            content = json.loads(text)
        except ValueError:
            content = None
        if not isinstance(content, dict):
            raise self._stranger()
        return content

    def _send(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx2.Response:
        try:
            reply = self._http.request(method, path, **({} if body is None else _json(body)))
        except httpx2.HTTPError as error:
            raise self._unreachable(error) from error
        if reply.status_code >= 300:
            raise self._refusal(reply)
        return reply

    def _refusal(self, reply: httpx2.Response) -> HartError:
        try:
            message = reply.json()["error"]["message"]
        except (ValueError, KeyError, TypeError):
            message = f"status {reply.status_code}; is that a hart server?"
        return HartError(f"{self.url}: {message}")

    def _stranger(self) -> HartError:
        return HartError(f"{self.url}: the reply is none of a hart server's; is that the right address?")

    def _unreachable(self, error: Exception) -> HartError:
        return HartError(
            f"{self.url}: cannot be reached ({error or type(error).__name__}); is hart serve running there?"
        )


def _json(body: dict[str, Any]) -> dict[str, Any]:
    """How a body is sent: in ASCII, so that also what is no text reaches the server, which says what is wrong."""
    try:
        content = json.dumps(body).encode()
    except (TypeError, ValueError) as error:
        raise HartError(f"the request cannot be written as JSON ({error})") from error
    return {"content": content, "headers": {"Content-Type": "application/json"}}


def _task(task: Task) -> dict[str, Any]:
    if not isinstance(task, Task):
        raise HartError(f"task: give a hart.Task, not {type(task).__name__}")
    shown = [vars(each) for each in task.demonstrations]
    return {"definition": task.definition, "demonstrations": shown}


def _id(adaptation: RemoteAdaptation | str) -> str:
    return adaptation if isinstance(adaptation, str) else adaptation.id


def _reference(adaptation: Adapted | Sequence[Adapted] | None) -> Any:
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
