"""Requests made up from our own OpenAPI, right and wrong ones: no 5xx, no traceback, and the server lives on."""

import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from .conftest import running, task, to_json

schemathesis = pytest.importorskip("schemathesis", reason="needs the package schemathesis")

from hypothesis import HealthCheck, settings  # noqa: E402

EXAMPLES = int(os.environ.get("HART_FUZZ", "30"))
"""Requests for each route; `HART_FUZZ=1200` makes more than 10,000 in all."""

statuses: Counter[tuple[str, int]] = Counter()


@pytest.fixture(scope="module")
def server(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, str]]:
    with running(model_dir, "--store", tmp_path_factory.mktemp("store")) as started:
        yield started


@pytest.fixture(scope="module")
def interface(server: tuple[Any, str]) -> Any:
    return schemathesis.openapi.from_url(f"{server[1]}/openapi.json")


fuzzed = schemathesis.pytest.from_fixture("interface")


@fuzzed.parametrize()
@settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
def test_no_request_breaks_the_server(case: Any) -> None:
    reply = case.call()
    statuses[case.operation.label, reply.status_code] += 1
    assert reply.status_code < 500, (reply.status_code, reply.text[:500])
    assert "Traceback" not in reply.text and 'File "/' not in reply.text
    if reply.status_code >= 400:
        assert reply.json()["error"]["message"]


@fuzzed.include(path_regex="/v1/(generate|score|completions)").parametrize()
@settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
def test_nor_with_an_adaptation_that_is_there(case: Any, adaptation: str) -> None:
    """Made-up ids are never found; with a real one the model is reached."""
    if isinstance(case.body, dict):
        case.body["model" if "completions" in case.path else "adaptation"] = adaptation
    reply = case.call()
    statuses[f"{case.operation.label} with an id", reply.status_code] += 1
    assert reply.status_code < 500, (reply.status_code, reply.text[:500])


@pytest.fixture(scope="module")
def adaptation(server: tuple[Any, str]) -> str:
    return httpx2.post(f"{server[1]}/v1/adaptations", json=to_json(task(1))).json()["id"]


def test_it_lives_on_and_said_nothing(server: tuple[Any, str], adaptation: str) -> None:
    process, address = server
    body = {"inputs": ["one 1"], "adaptation": adaptation}
    assert httpx2.post(f"{address}/v1/generate", json=body).status_code == 200
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0 and "Traceback" not in err
    print(
        f"{statuses.total()} requests",
        *(f"{label} {status}: {n}" for (label, status), n in sorted(statuses.items())),
        sep="\n",
    )
    assert statuses.total() > EXAMPLES
    assert {status for _, status in statuses} >= {200, 404, 422}
