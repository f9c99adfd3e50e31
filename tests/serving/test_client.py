"""The client against a real server: results of the local model, and the server's errors."""

import itertools
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

import hart.serving.client
from hart import Client, HartError, HartModel, Task
from hart.serving.app import create_app
from hart.serving.store import Store

from .conftest import listening, task

QUERIES = ["one 1", "the cat sat", "two 3"]


def test_the_methods_of_the_local_model(remote: Client, model: HartModel) -> None:
    here, there = [model.adapt(task(n)) for n in range(3)], [remote.adapt(task(n)) for n in range(3)]
    assert there[0].task == task(0) and there[0].demonstrations_read == 2
    for local, adapted in zip(here, there, strict=True):
        expected = model.generate(QUERIES, local)
        for given in (adapted, adapted.id, adapted.task):
            assert remote.generate(QUERIES, given) == expected
        assert "".join(remote.stream(QUERIES[0], adapted)) == expected[0]
        cut = {"stop": [expected[0][2:4]]}
        assert remote.generate(QUERIES[0], adapted, **cut) == [expected[0].split(*cut["stop"])[0]]
        assert "".join(remote.stream(QUERIES[0], adapted, **cut)) == expected[0].split(*cut["stop"])[0]
        drawn = {"temperature": 2.0, "seed": 3}
        assert "".join(remote.stream(QUERIES[0], adapted, **drawn)) == remote.generate(QUERIES[0], adapted, **drawn)[0]
        scores = remote.score(QUERIES[0], ["one", "two"], adapted)
        assert scores == pytest.approx(model.score(QUERIES[0], ["one", "two"], local), abs=1e-4)
    mixed = remote.generate(QUERIES, [there[0], task(1), there[2].id])
    assert mixed == [model.generate(QUERIES[n], here[n])[0] for n in range(3)]
    assert remote.generate(QUERIES[0], None, max_new_tokens=5) == model.main.generate(QUERIES[:1], max_new_tokens=5)


def test_the_adaptation_itself(remote: Client, model: HartModel) -> None:
    adapted = remote.adapt(task(1))
    adaptation, expected = remote.download(adapted), model.adapt(task(1))
    for name, rows in expected.blocks.items():
        assert torch.equal(adaptation.blocks[name], rows)
    assert model.generate(QUERIES, adaptation) == remote.generate(QUERIES, adapted)


def test_what_is_kept(remote: Client) -> None:
    adapted = remote.adapt(task(4))
    assert not remote.adapt(task(4)).new
    assert adapted.id in {each["id"] for each in remote.adaptations()}
    remote.delete(adapted)
    with pytest.raises(HartError, match="no adaptation"):
        remote.generate(QUERIES, adapted)
    with pytest.raises(HartError, match="no adaptation"):
        list(remote.stream(QUERIES[0], adapted))
    assert remote.adapt(task(4)).new


def test_refusals(remote: Client, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HartError, match="definition: has .* tokens"):
        remote.adapt(Task("Swap. " * 400))
    with pytest.raises(HartError, match="num_beams"):
        remote.generate("one", task(1), num_beams=99)
    with pytest.raises(HartError, match="token"):
        Client(address, token="wrong").adapt(task(1))
    remote.adapt(task(1))
    monkeypatch.setenv("HART_TOKEN", "sesame")
    assert Client(address).adaptations(limit=1)
    with pytest.raises(HartError, match="check that hart serve is running there"):
        Client("http://127.0.0.1:9", timeout=2).adapt(task(1))


def test_the_refusals_of_the_local_model(remote: Client, model: HartModel) -> None:
    """What one refuses the other does, and in one line."""
    here, there = model.adapt(task(1)), remote.adapt(task(1))
    assert remote.generate([], there) == model.generate([], here) == []
    calls: list[Any] = [
        lambda of, adapted: of.generate("", adapted),
        lambda of, adapted: of.generate(["one", " "], adapted),
        lambda of, adapted: of.generate("one", adapted, max_new_tokens=0),
        lambda of, adapted: of.generate("one", adapted, top_p=0.5),
        lambda of, adapted: of.generate("one", adapted, num_beams=2, temperature=1.0),
        lambda of, adapted: of.score("one", "pear", adapted),
        lambda of, adapted: of.score("one", [], adapted),
        lambda of, adapted: of.score("one", ["a", "b"], adapted, normalisation="most"),
    ]
    for call in calls:
        for of, adapted in ((model, here), (remote, there)):
            with pytest.raises(HartError) as told:
                call(of, adapted)
            assert "\n" not in str(told.value)
    assert remote.generate("one", there, max_new_tokens=1) == model.generate("one", here, max_new_tokens=1)


def test_mistakes_that_no_server_has_to_see(remote: Client) -> None:
    for wrong in ("127.0.0.1:8000", "", "ftp://x"):
        with pytest.raises(HartError, match="is not the address of a server; give one such as http"):
            Client(wrong)
    for seconds in (-1, 0, "5", True):
        with pytest.raises(HartError, match=f"timeout must be a number of seconds above 0, not {seconds!r}"):
            Client(timeout=seconds)  # type: ignore[arg-type]
    with pytest.raises(HartError, match="control character") as told:
        Client(token="secret\nword")
    assert "secret" not in str(told.value)
    with pytest.raises(HartError, match="use stream for pieces as they come"):
        remote.generate("one", stream=True)
    with pytest.raises(HartError, match="the id of the adaptation is empty"):
        remote.delete("")
    with pytest.raises(HartError, match="limit must be a whole number"):
        remote.adaptations(limit="5&offset=3")  # type: ignore[arg-type]
    with pytest.raises(HartError, match="no such adaptation|not an id|Not Found"):
        remote.download("zz/../..")


def test_a_server_that_does_not_answer(address: str) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with Client(url, timeout=0.2) as client, pytest.raises(HartError, match="no reply within the client's timeout"):
            client.adaptations()


@pytest.mark.parametrize("body", ["[]", "null", '"x"', "3"])
@pytest.mark.parametrize("path", ["generate", "chat/completions"])
def test_a_body_that_is_no_object(address: str, path: str, body: str) -> None:
    import httpx2

    headers = {"Content-Type": "application/json", "Authorization": "Bearer sesame"}
    reply = httpx2.post(f"{address}/v1/{path}", content=body.encode(), headers=headers)
    assert reply.status_code in (400, 422) and "JSON object" in reply.json()["error"]["message"]


def test_what_is_no_text_and_what_is_no_json(remote: Client, model: HartModel) -> None:
    adapted = remote.adapt(task(1))
    for call in (
        lambda: remote.generate("\ud800", adapted),
        lambda: list(remote.stream("\ud800", adapted)),
        lambda: remote.score("one", ["\udfff"], adapted),
        lambda: remote.adapt(Task("\ud800", [("a", "b")])),
        lambda: remote.generate("one", "\ud800"),
        lambda: remote.generate("one", adapted, temperature=float("nan")),
        lambda: remote.generate("one", adapted, top_p=b"half"),
        lambda: remote.generate("one", model.adapt(task(1))),  # type: ignore[arg-type]
        lambda: remote.adapt("a task"),  # type: ignore[arg-type]
    ):
        with pytest.raises(HartError) as told:
            call()
        assert "\n" not in str(told.value)


@contextmanager
def server_of(reply: Callable[[], tuple[str, bytes]]) -> Iterator[str]:
    """A server that answers everything so: content type and body."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"] or 0))
            kind, body = reply()
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


ODD_TEXT = "a\u2028b\u2029c\u0085d\x0be\x0cf\x1cg\x1dh\x1ei é 🙂"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("ascii", [True, False])
def test_events_end_at_line_ends_alone(end: str, ascii: bool) -> None:
    """And not at what `str.splitlines` takes for one; comments, other fields and empty events are passed over."""
    events = [f"data: {json.dumps({'text': each}, ensure_ascii=ascii)}" for each in (ODD_TEXT, "\n", ODD_TEXT)]
    lines = [
        ": hello",
        "",
        *itertools.chain.from_iterable((each, "") for each in events),
        "event: end",
        "data: [DONE]",
        "",
    ]
    body = "".join(line + end for line in lines).encode()
    with server_of(lambda: ("text/event-stream; charset=utf-8", body)) as url, Client(url) as client:
        assert list(client.stream("q", None)) == [ODD_TEXT, "\n", ODD_TEXT]


def test_the_server_sends_events_that_any_reader_of_lines_can_read(
    serve: Callable[..., Any], model: HartModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.main.tokenizer, "decode", lambda *_, **__: ODD_TEXT + " ")
    reply = serve().post("/v1/generate", json={"inputs": ["one"], "stream": True, "max_new_tokens": 2})
    lines = [line.removeprefix("data: ") for line in reply.text.splitlines() if line]
    assert lines[-1] == "[DONE]"
    texts = [json.loads(line).get("text", "") for line in lines[:-1]]
    assert "".join(texts).startswith(ODD_TEXT[:-2])


def test_replies_of_others(tmp_path: Path) -> None:
    """Another server at that address, an answer that breaks off, an address that is none."""
    for kind, body in (("text/html", b"<html>"), ("application/json", b"[]"), ("application/json", b'{"choices": []}')):
        with server_of(lambda kind=kind, body=body: (kind, body)) as url, Client(url) as client:  # type: ignore[misc]
            for call in (
                lambda: client.adapt(task(1)),
                lambda: client.generate("q"),
                lambda: client.score("q", ["a"]),
                lambda: client.adaptations(),
                lambda: list(client.stream("q")),
            ):
                with pytest.raises(HartError) as told:
                    call()
                assert url in str(told.value) and "\n" not in str(told.value)
    cut = b'data: {"text": "half"}\n\n'
    with server_of(lambda: ("text/event-stream", cut)) as url, Client(url) as client:
        pieces = client.stream("q")
        assert next(pieces) == "half"
        with pytest.raises(HartError, match="broke off"):
            next(pieces)
    with pytest.raises(HartError, match="is not the address"):
        Client("http://[::1")
    with pytest.raises(HartError):
        Client("localhost:8000").adapt(task(1))


def test_importing_hart_imports_no_server() -> None:
    code = "import sys, hart, hart.cli; print([m for m in ('fastapi', 'torch', 'httpx2') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert hart.Client is hart.serving.client.Client


def test_queries_far_from_the_training_are_told_of(model: HartModel, store: Store, monkeypatch, caplog) -> None:
    """Which are, a bundled model's list says; here those with the word cat."""
    asked: list[str] = []

    def is_far(name: str, tokens: list[int]) -> bool:
        asked.append(name)
        return "cat" in model.main.tokenizer.decode(tokens)

    monkeypatch.setattr("hart.serving.checks.is_far", is_far)
    with listening(create_app(model, store)) as url, Client(url) as remote:
        assert len(remote.generate([*QUERIES, "the cat"], None, max_new_tokens=2)) == 4
        assert "2 of 4 queries (first: query 2) are far from the training data of the server's model" in caplog.text
        caplog.clear()
        assert len(remote.classify(QUERIES[1], ["one", "two"])) == 1
        assert "1 of 1 queries (first: query 1) are far" in caplog.text
        caplog.clear()
        remote.generate("one", None, max_new_tokens=2)
        assert not caplog.text and set(asked) == {model.name}
