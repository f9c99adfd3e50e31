"""Operation of a server: log, health, shortened ids, other sites, counters."""

import io
import json
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.testclient import TestClient

from hart import HartError, HartModel
from hart.cli import main
from hart.serving.access import write_lines
from hart.serving.store import Store

from .conftest import adapt, running, said, task, to_json
from .test_server import ended

SECRET = "one secret 1"


@pytest.fixture
def lines() -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """Read what the access log has written, as JSON."""
    written = io.StringIO()
    write_lines("json", written)
    yield lambda: [json.loads(line) for line in written.getvalue().splitlines()]
    write_lines("off", written)


def test_a_line_for_each_request(client: TestClient, model: HartModel, lines: Callable[[], list[Any]]) -> None:
    id, another = adapt(client, 1), adapt(client, 2)
    given = {"X-Request-Id": "abc-1.2:3"}
    reply = client.post("/v1/generate?x=secret", json={"inputs": [SECRET, "two"], "adaptation": id}, headers=given)
    assert reply.headers["x-request-id"] == "abc-1.2:3"
    line = lines()[-1]
    answers = model.answers([SECRET, "two"], model.adapt(task(1)))
    assert line.pop("ms") > 0 and re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", line.pop("time"))
    assert line == {
        "level": "info",
        "request_id": "abc-1.2:3",
        "method": "POST",
        "path": "/v1/generate",
        "status": 200,
        "ended": None,
        "tasks": [id],
        "tokens_in": sum(answer.query_tokens for answer in answers),
        "tokens_out": sum(answer.tokens for answer in answers),
    }
    mixed = {"inputs": ["one", "two"], "adaptation": [id, another]}
    client.post("/v1/generate", json=mixed)
    assert lines()[-1]["tasks"] == [id, another]
    client.post("/v1/generate", json={"inputs": ["two"], "adaptation": id, "stream": True})
    assert lines()[-1]["tokens_out"] == answers[1].tokens and lines()[-1]["tasks"] == [id]
    client.post("/v1/classify", json={"inputs": [SECRET], "choices": ["secret a", "b"], "adaptation": to_json(task(1))})
    assert (lines()[-1]["tasks"], lines()[-1]["tokens_in"]) == ([id], None)
    for wrong in ("", "a" * 65, "a b", 'a"', "é"):
        reply = client.get("/nothing%0a", headers=[(b"X-Request-Id", wrong.encode())])
        made = reply.headers["x-request-id"]
        assert re.fullmatch(r"[0-9a-f]{32}", made)
        assert (lines()[-1]["request_id"], lines()[-1]["path"], lines()[-1]["status"]) == (made, "/nothing%0A", 404)
    assert "secret" not in json.dumps(lines())


def test_what_fails_is_an_error(client: TestClient, model: HartModel, lines: Any, monkeypatch: Any) -> None:
    id = adapt(client, 1)
    monkeypatch.setattr(model.main, "answers", None)
    given = {"X-Request-Id": "lost"}
    reply = client.post("/v1/generate", json={"inputs": ["one"], "adaptation": id}, headers=given)
    assert (reply.status_code, reply.headers["x-request-id"]) == (500, "lost")
    assert (lines()[-1]["level"], lines()[-1]["status"]) == ("error", 500)
    with suppress(TypeError):  # what the streaming reply raises after it has begun
        client.post("/v1/generate", json={"inputs": ["one"], "adaptation": id, "stream": True})
    assert (lines()[-1]["level"], lines()[-1]["status"], lines()[-1]["ended"]) == ("error", 200, "error")


def test_text_and_nothing(client: TestClient) -> None:
    written = io.StringIO()
    write_lines("text", written)
    id = adapt(client, 1)
    client.post("/v1/generate", json={"inputs": [SECRET], "adaptation": id, "max_new_tokens": 1})
    first, second = written.getvalue().splitlines()
    assert re.search(rf"Z?\+00:00 POST /v1/adaptations 201 [\d.]+ ms task {id[:12]} [0-9a-f]{{32}}$", first)
    assert re.search(rf" POST /v1/generate 200 [\d.]+ ms task {id[:12]} tokens \d+\+1 [0-9a-f]{{32}}$", second)
    write_lines("off", written)
    client.get("/health")
    assert len(written.getvalue().splitlines()) == 2


def test_alive_and_ready(serve: Callable[..., TestClient], model: HartModel, store: Store) -> None:
    client = serve(token="sesame", max_queue=2)
    assert client.get("/livez").json() == client.get("/readyz").json() == {"status": "ok"}
    engine_of = client.app.state.engine  # type: ignore[attr-defined]
    rows = engine_of.batcher._waiting
    rows.rows = 2
    assert said(client.get("/readyz"), 503) == "the queue is full"
    assert client.get("/livez").status_code == 200
    rows.rows = 0
    engine_of.batcher._closing = True
    assert "going down" in said(client.get("/readyz"), 503) and client.get("/livez").status_code == 200


def test_ids_by_their_first_digits(client: TestClient, model: HartModel, monkeypatch: pytest.MonkeyPatch) -> None:
    id, another = adapt(client, 1), adapt(client, 2)
    short = id[:8]
    expected = client.post("/v1/generate", json={"inputs": ["one"], "adaptation": id}).json()["outputs"]
    assert client.post("/v1/generate", json={"inputs": ["one"], "adaptation": short}).json()["outputs"] == expected
    completed = client.post("/v1/completions", json={"model": id[:20], "prompt": "one"}).json()
    assert completed["choices"][0]["text"] == expected[0]
    assert client.get(f"/v1/adaptations/{short}").json()["id"] == client.get(f"/v1/models/{short}").json()["id"] == id
    assert client.get(f"/v1/adaptations/{short}/download").headers["content-disposition"].count(id[:12]) == 1
    said(client.post("/v1/generate", json={"inputs": ["one"], "adaptation": id[:7]}), 422)
    for name in (id[:7], "gpt-4", "e"):
        said(client.get(f"/v1/models/{name}"), 404)
    assert "post its task" in said(client.get("/v1/adaptations/" + "0" * 9), 404)

    async def both(prefix: str) -> list[str]:
        return [id, another]

    monkeypatch.setattr(client.app.state.engine, "ids", both)  # type: ignore[attr-defined]
    reply = client.post("/v1/generate", json={"inputs": ["one"], "adaptation": short})
    assert said(reply, 422).startswith(f"adaptation: several adaptations have ids that begin with {short}")
    assert reply.json()["error"]["param"] == "adaptation"
    monkeypatch.undo()
    assert client.delete(f"/v1/adaptations/{short}").status_code == 422
    assert client.delete(f"/v1/adaptations/{id}").status_code == 204
    assert client.get(f"/v1/adaptations/{id}").status_code == 404


def test_the_store_finds_ids_of_one_model_by_their_beginning(model: HartModel, store: Store) -> None:
    kept = [store.put(model.adapt(task(n)), model_fingerprint="m").id for n in range(3)]
    store.put(model.adapt(task(0)), model_fingerprint="other")
    assert [store.ids(id[:8], "m") for id in kept] == [[id] for id in kept]
    assert len(store.ids("", "m")) == 2 and store.ids(kept[0][:8], "third") == store.ids("f" * 63, "m") == []


def test_other_sites(serve: Callable[..., TestClient]) -> None:
    asked = {"Origin": "https://hart.example", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in serve().options("/v1/generate", headers=asked).headers
    client = serve(token="sesame", cors_origins=("https://hart.example",))
    # As the openai client for JavaScript asks.
    headers = "authorization,content-type,x-stainless-lang,x-stainless-os"
    before = client.options("/v1/generate", headers={**asked, "Access-Control-Request-Headers": headers})
    assert before.status_code == 200 and before.headers["access-control-allow-origin"] == "https://hart.example"
    reply = client.get("/v1/adaptations", headers={"Origin": "https://hart.example"})
    assert reply.status_code == 401 and reply.headers["access-control-allow-origin"] == "https://hart.example"
    other = client.options("/v1/generate", headers={**asked, "Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers
    for wrong in ("hart.example", "https://hart.example/", "", "null"):
        with pytest.raises(HartError, match="cors_origins"):
            serve(cors_origins=(wrong,))


def test_the_description_says_where_the_token_goes(client: TestClient) -> None:
    described = client.get("/openapi.json").json()
    (name,) = described["components"]["securitySchemes"]
    assert described["components"]["securitySchemes"][name]["scheme"] == "bearer"
    open_paths = {"/health", "/livez", "/readyz"}
    for path, methods in described["paths"].items():
        for method in methods.values():
            assert ("security" in method) == (path not in open_paths), path


def test_tokens_are_counted_by_model(client: TestClient, model: HartModel) -> None:
    client.post("/v1/generate", json={"inputs": ["one", "two"], "adaptation": adapt(client, 1)})
    answers = model.answers(["one", "two"], model.adapt(task(1)))
    lines = client.get("/metrics").text.splitlines()
    read, written = (sum(getattr(each, name) for each in answers) for name in ("query_tokens", "tokens"))
    assert f'hart_tokens_total{{direction="in",model="{model.name}"}} {read}.0' in lines
    assert f'hart_tokens_total{{direction="out",model="{model.name}"}} {written}.0' in lines
    assert f'hart_model_info{{base="{model.main.name}",model="{model.name}"}} 1.0' in lines


def test_the_command(model_dir: Path, tmp_path: Path) -> None:
    """Its first line, a token from a file, a prefix, and the log on standard output."""
    secret = tmp_path / "token"
    secret.write_text("sesame\n")
    secret.chmod(0o600)
    words = ["--token-file", secret, "--root-path", "/hart", "--access-log", "json", "--store", tmp_path / "store"]
    with running(model_dir, *words) as (process, bare):
        given = {"Authorization": "BEARER sesame", "X-Request-Id": "r1"}
        assert httpx2.get(f"{bare}/v1/adaptations").status_code == 401
        assert httpx2.get(f"{bare}/v1/adaptations", headers=given).status_code == 200
        assert httpx2.get(f"{bare}/docs").status_code == 200
        assert (process.stdout and json.loads(process.stdout.readline())["status"]) == 401
        assert json.loads(process.stdout.readline())["request_id"] == "r1"
        assert ended(process) == (0, "")


def test_the_first_line(model_dir: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from hart.cli import serve as command

    monkeypatch.setattr(command, "_serve", lambda *_: None)
    (tmp_path / "token").write_text("sesame")
    (tmp_path / "token").chmod(0o644)
    words = ["--token-file", str(tmp_path / "token"), "--store", str(tmp_path / "s"), "--dtype", "bfloat16"]
    assert main(["serve", str(model_dir), "--port", "0", "--device", "cpu", "--cors-origin", "*", *words]) == 0
    out, err = capsys.readouterr()
    assert re.fullmatch(
        rf"serving {model_dir} on http://127\.0\.0\.1:\d+ \(Ctrl-C ends\); \S+, cpu, bfloat16; "
        rf"32 rows a batch, 1024 waiting, 60 s a request; store {tmp_path}/s, 2048 MiB\n",
        out,
    )
    assert err.splitlines()[-1].startswith("hart: warning: all users of this machine can read the token in")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--token-file", "absent"], "--token-file: absent cannot be read (No such file or directory)"),
        (["--token-file", "empty"], "--token-file: empty must hold the token in one line"),
        (["--token-file", "two"], "--token-file: two must hold the token in one line"),
        (["--token-file", "bytes"], "--token-file: bytes cannot be read (it is not UTF-8)"),
        (["--token-file", "two", "--token", "a"], "not allowed with argument --token-file"),
        (["--access-log", "xml"], "--access-log"),
        (["--cors-origin", "hart.example"], "cors_origins: 'hart.example' is not an origin"),
        (["--root-path", "hart"], "--root-path"),
        (["--root-path", "/hart/"], "--root-path"),
    ],
)
def test_mistakes(words: list[str], told: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").touch()
    Path("two").write_text("one\ntwo\n")
    Path("bytes").write_bytes(b"\xff\xfe")
    assert main(["serve", "mini", "--port", "0", *words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and told in err and "Traceback" not in err


def test_a_reader_of_the_log_that_leaves_stops_nothing(model_dir: Path, tmp_path: Path) -> None:
    with running(model_dir, "--access-log", "text", "--store", tmp_path / "store") as (process, address):
        assert process.stdout is not None
        process.stdout.close()
        assert all(httpx2.get(f"{address}/health").status_code == 200 for _ in range(3))
        process.terminate()
        assert process.wait(timeout=60) == 0
        assert isinstance(process, subprocess.Popen) and process.stderr is not None and process.stderr.read() == ""
