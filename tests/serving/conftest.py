"""Fixtures: a tiny untrained model with different answers per task, an application, and a real server."""

import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from decoder_models import decoder_model
from transformers import AutoTokenizer

from hart import HartModel, Task
from hart.model.bundled import resolve_base
from hart.training.config import DataConfig, ModelConfig

pytest.importorskip("fastapi", reason="needs the extra serve")

import uvicorn  # noqa: E402
from starlette.testclient import TestClient  # noqa: E402

from hart.serving.app import create_app  # noqa: E402
from hart.serving.client import Client  # noqa: E402
from hart.serving.settings import Settings  # noqa: E402
from hart.serving.store import Store  # noqa: E402

LENGTHS = {"max_demonstrations_length": 128, "max_query_length": 32, "max_target_length": 8}


def task(number: int) -> Task:
    return Task(f"Swap the word and the number {number}.", [(f"one {number}", f"{number} one"), ("two 3", "3 two")])


def to_json(task: Task) -> dict[str, Any]:
    pairs = [{"input": each.input, "output": each.output} for each in task.demonstrations]
    return {"definition": task.definition, "demonstrations": pairs}


def adapt(client: TestClient, number: int) -> str:
    reply = client.post("/v1/adaptations", json=to_json(task(number)))
    assert reply.status_code in (200, 201), reply.text
    return reply.json()["id"]


def said(reply: Any, status: int) -> str:
    """The message of a refusal, which is one line and no traceback."""
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert "\n" not in error["message"] and "Traceback" not in reply.text
    return error["message"]


def saved(
    folder: Path, architecture: str, peft: list[dict[str, Any]], reader: Path, template: str | None = None, **data: Any
) -> Path:
    """A decoder-only model's folder, whose hypernetwork reads with another tokenizer than the main model has."""
    tokenizer = AutoTokenizer.from_pretrained(resolve_base("mini-base"))
    tokenizer.chat_template = template
    decoder_model(architecture, len(tokenizer)).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    config = ModelConfig(
        base=str(folder / "base"), hypernetwork_init=str(reader), decoder_layers=2, fusion=False, peft=peft
    )
    with torch.random.fork_rng(devices=[]):
        system = HartModel.from_config(config, DataConfig(**LENGTHS, **data), seed=1)
        torch.manual_seed(1)
        for head in system.hypernetwork.heads.heads():  # type: ignore[union-attr]
            torch.nn.init.normal_(head.second, std=0.3)  # so large that each task changes the answers
        system.save_pretrained(folder / "model")
    return folder / "model"


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory, tiny_base_dir: Path) -> Path:
    """Heads so large that each task changes the answers; tests only read it."""
    folder = tmp_path_factory.mktemp("served") / "tiny-hart"
    kinds = [{"kind": "prefix", "length": 4, "init_scale": 3.0}]
    config = ModelConfig(base=str(tiny_base_dir), decoder_layers=2, peft=kinds)
    with torch.random.fork_rng(devices=[]):
        HartModel.from_config(config, DataConfig(**LENGTHS), seed=1).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model(model_dir: Path) -> HartModel:
    return HartModel.from_pretrained(model_dir, device="cpu")


LORA = {"kind": "lora", "rank": 2, "alpha": 64, "targets": ["q", "v", "wi"]}
TEMPLATE = "{% for m in messages %}the {{ m.role }}: {{ m.content }} cat{% endfor %}{{ ' mat' }}"


@pytest.fixture(scope="module")
def address(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a server in a process of its own, whose token is "sesame"."""
    with running(model_dir, "--store", tmp_path_factory.mktemp("store"), HART_TOKEN="sesame") as (_, url):
        yield url


@pytest.fixture
def remote(address: str) -> Iterator[Client]:
    with Client(address, token="sesame") as client:
        yield client


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def serve(model: HartModel, store: Store) -> Iterator[Callable[..., TestClient]]:
    """Start an application; gives a client of it."""
    clients = []

    def start(**settings: Any) -> TestClient:
        app = create_app(model, store, Settings(**settings))
        client = TestClient(app, base_url="http://localhost", raise_server_exceptions=False)
        clients.append(client.__enter__())
        return client

    yield start
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture
def client(serve: Callable[..., TestClient]) -> TestClient:
    return serve()


@contextmanager
def listening(app: Any) -> Iterator[str]:
    """The application behind a real socket, in a thread; gives its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
        listener.close()


@contextmanager
def running(*words: str | Path, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`hart serve …` in a process of its own, on a free port; gives it and its address."""
    command = [sys.executable, "-m", "hart", "serve", *map(str, words), "--port", "0"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment},
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        match = re.search(r"http://\S+", line)
        assert match, (line, process.stderr.read() if process.stderr else "")
        yield process, match[0]
    finally:
        process.kill()
        process.wait()
