"""The client gives what the local model gives, and says what the server says; the server is a real one."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import hart.client
from hart import Client, HartError, HartModel, Task

from .conftest import running, task

QUERIES = ["one 1", "the cat sat", "two 3"]


@pytest.fixture(scope="module")
def address(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running(model_dir, "--store", tmp_path_factory.mktemp("store"), HART_TOKEN="sesame") as (_, url):
        yield url


@pytest.fixture
def remote(address: str) -> Iterator[Client]:
    with Client(address, token="sesame") as client:
        yield client


def test_the_methods_of_the_local_model(remote: Client, model: HartModel) -> None:
    here, there = [model.adapt(task(n)) for n in range(3)], [remote.adapt(task(n)) for n in range(3)]
    assert there[0].task == task(0) and there[0].demonstrations_read == 2
    for local, adapted in zip(here, there, strict=True):
        expected = model.generate(QUERIES, local)
        for given in (adapted, adapted.id, adapted.task):
            assert remote.generate(QUERIES, given) == expected
        assert "".join(remote.stream(QUERIES[0], adapted)) == expected[0]
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
    with pytest.raises(HartError, match="definition: is empty"):
        remote.adapt(Task("", [("a", "b")]))
    with pytest.raises(HartError, match="num_beams"):
        remote.generate("one", task(1), num_beams=99)
    with pytest.raises(HartError, match="token"):
        Client(address, token="wrong").adapt(task(1))
    monkeypatch.setenv("HART_TOKEN", "sesame")
    assert Client(address).adaptations(limit=1)
    with pytest.raises(HartError, match="is hart serve running there"):
        Client("http://127.0.0.1:9", timeout=2).adapt(task(1))


def test_importing_hart_imports_no_server() -> None:
    code = "import sys, hart, hart.cli; print([m for m in ('fastapi', 'torch', 'httpx2') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert hart.Client is hart.client.Client
