"""Valid and invalid requests generated from the OpenAPI schema: no 5xx, no traceback, and the server stays alive."""

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from hart.serving.settings import MAX_CHARACTERS

from .conftest import running, task, to_json

schemathesis = pytest.importorskip("schemathesis", reason="needs the package schemathesis")

from hypothesis import HealthCheck, Phase, given, settings  # noqa: E402
from schemathesis import GenerationMode  # noqa: E402

EXAMPLES = int(os.environ.get("HART_FUZZ", "20"))
"""Requests of either kind for each route; `HART_FUZZ=600` makes more than 10,000 in all."""


@pytest.fixture(scope="module")
def server(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, str]]:
    with running(model_dir, "--store", tmp_path_factory.mktemp("store")) as started:
        yield started


def simpler(schema: Any) -> Any:
    """With shorter texts, blank ones too: with our limits a request takes schemathesis up to a second to make up."""
    if isinstance(schema, list):
        return [simpler(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: simpler(value) for key, value in schema.items() if (key, value) != ("pattern", r"\S")}
    return kept | {"maxLength": 300} if kept.get("maxLength") == MAX_CHARACTERS else kept


@pytest.fixture(scope="module")
def operations(server: tuple[Any, str]) -> list[Any]:
    described = httpx2.get(f"{server[1]}/openapi.json").json()
    interface = schemathesis.openapi.from_dict(simpler(described))
    interface.config.update(base_url=server[1])
    return [found.ok() for found in interface.get_all_operations()]


@pytest.fixture(scope="module")
def adaptation(server: tuple[Any, str]) -> str:
    return httpx2.post(f"{server[1]}/v1/adaptations", json=to_json(task(1))).json()["id"]


def fuzz(operation: Any, check: Callable[[Any], None]) -> None:
    """Call `check` with requests that fit the description of an operation, and with ones that do not."""
    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
        if mode is GenerationMode.NEGATIVE and not (operation.body or operation.path_parameters or operation.query):
            continue  # nothing there that could be wrong
        limits = settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )

        def one(case: Any) -> None:
            check(case)

        limits(given(operation.as_strategy(generation_mode=mode))(one))()


def test_no_request_breaks_the_server(server: tuple[Any, str], operations: list[Any], adaptation: str) -> None:
    """Nor with an adaptation that is there: made-up ids are never found, and with a real one the model is reached."""
    statuses: Counter[tuple[str, int]] = Counter()

    def check(case: Any) -> None:
        reply = case.call(timeout=60)
        statuses[case.operation.label, reply.status_code] += 1
        assert reply.status_code < 500, (reply.status_code, reply.text[:500])
        assert "Traceback" not in reply.text and 'File "/' not in reply.text
        if reply.status_code >= 400:
            assert reply.json()["error"]["message"]

    def check_with_id(case: Any) -> None:
        if isinstance(case.body, dict):
            case.body["model" if "completions" in case.path else "adaptation"] = adaptation
        check(case)

    for operation in operations:
        fuzz(operation, check)
        if operation.path in ("/v1/generate", "/v1/classify", "/v1/score", "/v1/completions", "/v1/chat/completions"):
            fuzz(operation, check_with_id)
    assert len(operations) >= 15
    print(
        f"{statuses.total()} requests",
        *(f"{label} {status}: {n}" for (label, status), n in sorted(statuses.items())),
        sep="\n",
    )
    assert statuses.total() > EXAMPLES
    assert {status for _, status in statuses} >= {200, 404, 422}

    # It lives on, and said nothing.
    process, address = server
    body = {"inputs": ["one 1"], "adaptation": adaptation}
    assert httpx2.post(f"{address}/v1/generate", json=body).status_code == 200
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0 and "Traceback" not in err
