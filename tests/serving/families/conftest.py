"""Fixtures that run the same tests of the interface for a model of each family."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from hart import HartModel
from hart.serving.app import create_app
from hart.serving.settings import Settings
from hart.serving.store import Store

from ..conftest import LORA, TEMPLATE, adapt, saved


@pytest.fixture(scope="module", params=["T5", "decoder-only with a chat template"])
def folder(
    request: pytest.FixtureRequest, model_dir: Path, tiny_base_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Of a model of each family, one after the other."""
    if request.param == "T5":
        return model_dir
    return saved(tmp_path_factory.mktemp("chat"), "llama", [LORA], tiny_base_dir, TEMPLATE, chat_template=True)


@pytest.fixture(scope="module")
def model(folder: Path) -> HartModel:
    return HartModel.from_pretrained(folder, device="cpu")


@pytest.fixture(scope="module")
def client(model: HartModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    # Rows wait for one another, so that requests really share batches.
    app = create_app(model, Store(tmp_path_factory.mktemp("store")), Settings(max_wait=0.05))
    with TestClient(app, base_url="http://localhost") as started:
        yield started


@pytest.fixture
def id(client: TestClient) -> str:
    return adapt(client, 1)
