"""A server in a separate process: actions of clients and of the operating system."""

import asyncio
import contextlib
import json
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from safetensors.torch import load_file

from hart.cli import main

from .conftest import running, task, to_json


@pytest.fixture
def server(model_dir: Path, tmp_path: Path) -> Iterator[tuple[Any, str]]:
    with running(model_dir, "--store", tmp_path / "store") as started:
        yield started


@pytest.fixture(scope="module")
def abused(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server that must still end well after all that tests do to it."""
    with running(model_dir, "--store", tmp_path_factory.mktemp("store")) as (process, address):
        yield address
        code, err = ended(process)
        assert code == 0 and "Traceback" not in err


def raw(address: str, data: bytes, *, shut: bool = False) -> socket.socket:
    host, port = address.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=20)
    with contextlib.suppress(ConnectionError):
        connection.sendall(data)
    if shut:
        connection.shutdown(socket.SHUT_WR)
    return connection


def answer(connection: socket.socket) -> bytes:
    received = b""
    with contextlib.suppress(ConnectionError), connection:
        while piece := connection.recv(65536):
            received += piece
    return received


def post(body: bytes, *headers: str, path: str = "/v1/generate") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def metric(address: str, name: str) -> float:
    lines = httpx2.get(f"{address}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def ended(process: Any) -> tuple[int, str]:
    """Exit status and stderr after SIGTERM."""
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    return process.returncode, err


def test_what_was_accepted_is_finished_after_sigterm(server: tuple[Any, str]) -> None:
    process, address = server
    body = {"inputs": ["one 1"] * 4, "adaptation": to_json(task(1)), "max_new_tokens": 200}

    async def ask() -> list[int]:
        async with httpx2.AsyncClient(base_url=address, timeout=60) as client:
            await client.post("/v1/adaptations", json=to_json(task(1)))
            asking = [asyncio.create_task(client.post("/v1/generate", json=body)) for _ in range(60)]
            while await asyncio.to_thread(metric, address, "hart_waiting_rows") < 50:
                await asyncio.sleep(0.01)
            process.send_signal(signal.SIGTERM)
            replies = await asyncio.gather(*asking)
            return [len(reply.json()["outputs"]) for reply in replies]

    assert asyncio.run(ask()) == [4] * 60
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")


def test_half_precision_is_served(model_dir: Path, tmp_path: Path) -> None:
    body = {"inputs": ["one 1"], "adaptation": to_json(task(1)), "max_new_tokens": 4}
    with running(model_dir, "--store", tmp_path / "store", "--dtype", "bfloat16") as (process, address):
        reply = httpx2.post(f"{address}/v1/generate", json=body, timeout=60)
        assert reply.status_code == 200, reply.text
        (file,) = (tmp_path / "store").rglob("adaptation.safetensors")
        assert {rows.dtype for rows in load_file(file).values() if rows.is_floating_point()} == {torch.bfloat16}
        assert ended(process)[0] == 0


def test_clients_that_leave(abused: str) -> None:
    """Their rows are not computed for nobody, and the others get their answers."""
    address = abused
    body = json.dumps({"inputs": ["one 1"] * 64, "adaptation": to_json(task(1)), "max_new_tokens": 500}).encode()
    for _ in range(20):
        raw(address, post(body, f"Content-Length: {len(body)}")).close()
    stream = json.dumps({"inputs": ["one 1"], "stream": True, "max_new_tokens": 500}).encode()
    for _ in range(5):
        connection = raw(address, post(stream, f"Content-Length: {len(stream)}"))
        connection.recv(50)
        connection.close()
    raw(address, post(body[:100], f"Content-Length: {len(body)}")).close()
    raw(address, b"POST /v1/gen").close()
    reply = httpx2.post(
        f"{address}/v1/generate", json={"inputs": ["one 1"], "adaptation": to_json(task(1))}, timeout=60
    )
    assert reply.status_code == 200
    until = time.monotonic() + 20
    while metric(address, "hart_waiting_rows") and time.monotonic() < until:
        time.sleep(0.05)
    assert metric(address, "hart_waiting_rows") == 0
    assert metric(address, "hart_abandoned_rows_total") > 0


def test_bodies_that_are_too_large_or_never_whole(abused: str) -> None:
    address = abused
    # Refused by its length alone: not a byte of the body is sent.
    assert b" 413 " in answer(raw(address, post(b"", "Content-Length: 99999999999")))
    chunk = b"10000\r\n" + b"[" * 0x10000 + b"\r\n"
    assert b" 413 " in answer(raw(address, post(chunk * 40, "Transfer-Encoding: chunked")))
    for broken in (
        post(b"{}", "Content-Length: -1"),
        post(b"{}", "Content-Length: 2", "Content-Length: 3"),
        post(b"zz\r\n", "Transfer-Encoding: chunked"),
        b"\x00\x01\x02\r\n\r\n",
        b"GET /v1/adaptations/../../etc/passwd HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    ):
        received = answer(raw(address, broken, shut=True))
        assert b" 5" not in received[:15] and b"Traceback" not in received and b"root:" not in received
    assert httpx2.get(f"{address}/health").status_code == 200


def refuse(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["serve", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def test_mistakes_on_the_command_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert "is in use by another program" in refuse(capsys, "mini", "--port", port)
    assert "--port" in refuse(capsys, "mini", "--port", "70000")
    assert "--max-wait" in refuse(capsys, "mini", "--max-wait", "soon")
    (tmp_path / "file").touch()
    assert "cannot be written" in refuse(capsys, "mini", "--port", "0", "--store", str(tmp_path / "file"))
    assert "absent" in refuse(capsys, str(tmp_path / "absent"), "--port", "0", "--store", str(tmp_path / "s"))


def test_a_missing_extra_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, forget_serving: Callable[[], None]
) -> None:
    forget_serving()
    monkeypatch.setitem(__import__("sys").modules, "fastapi", None)
    line = refuse(capsys, "mini", "--port", "0")
    assert line == "hart: error: the server needs fastapi: pip install 'hart-hypernet[serve]'\n"


@pytest.fixture
def forget_serving(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    import sys

    def forget() -> None:
        for name in [name for name in sys.modules if name.startswith("hart.serving")]:
            monkeypatch.delitem(sys.modules, name)

    return forget


def test_an_open_host_without_a_token_is_warned_of(model_dir: Path, tmp_path: Path) -> None:
    with running(model_dir, "--host", "0.0.0.0", "--store", tmp_path / "store") as (process, address):
        assert httpx2.get(address.replace("0.0.0.0", "127.0.0.1") + "/health").status_code == 200
        code, err = ended(process)
    assert code == 0 and err.startswith("hart: warning: everyone who reaches 0.0.0.0") and err.count("\n") == 1
