"""Checks of every request before the application: size, token, host, methods and path prefixes."""

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urljoin

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient

from hart import HartError, HartModel
from hart.serving.app import create_app
from hart.serving.settings import Settings
from hart.serving.store import Store

from .conftest import adapt, said


def test_large_bodies_are_refused_before_they_are_parsed(client: TestClient) -> None:
    assert "larger" in said(client.post("/v1/generate", content=b"[" * 2_000_000), 413)
    pieces = (b"[" * 100_000 for _ in range(20))
    assert "larger" in said(client.post("/v1/generate", content=pieces), 413)


def test_the_token(serve: Callable[..., TestClient]) -> None:
    client = serve(token="sesame")
    for path in ("/v1/adaptations", "/metrics", "/v1/adaptations/" + "0" * 64, "/nothing"):
        reply = client.get(path)
        assert "token" in said(reply, 401) and reply.headers["www-authenticate"] == "Bearer"
        assert client.get(path, headers={"Authorization": "Bearer Sesame"}).status_code == 401
        for scheme in ("Bearer", "bearer", "BEARER", "Bearer "):
            assert client.get(path, headers={"Authorization": f"{scheme} sesame"}).status_code != 401
        for wrong in ("sesame", "Basic sesame", "Bearersesame", "Bearer", "Bearer ", "Bearer sesame sesame"):
            assert client.get(path, headers={"Authorization": wrong}).status_code == 401
        assert client.get(path, headers=[(b"Authorization", b"Bearer \xff")]).status_code == 401
    for path in ("/", "/page.js", "/examples.js", "/base.css", "/page.css", "/health", "/docs", "/openapi.json"):
        assert client.get(path).status_code == 200


def test_tokens_of_other_letters_and_none(serve: Callable[..., TestClient]) -> None:
    client = serve(token="sésame✓")
    given = [(b"Authorization", "Bearer sésame✓".encode())]
    assert client.get("/v1/adaptations", headers=given).status_code == 200
    for token in ("", " ", "sesame\n"):
        with pytest.raises(HartError, match="token: "):
            serve(token=token)


@pytest.mark.parametrize("path", ["/", "/page.js", "/health", "/docs", "/openapi.json", "/metrics", "/v1/adaptations"])
def test_head_is_get_without_the_body(path: str, client: TestClient) -> None:
    got, head = client.get(path), client.head(path)
    assert (head.status_code, head.content) == (200, b"") and len(got.content) > 0
    assert head.headers["content-type"] == got.headers["content-type"]
    if path != "/metrics":  # which counts requests
        assert head.headers["content-length"] == got.headers["content-length"]


def test_head_elsewhere(client: TestClient) -> None:
    id = adapt(client, 1)
    assert int(client.head(f"/v1/adaptations/{id}/download").headers["content-length"]) > 1000
    assert client.head(f"/v1/adaptations/{'0' * 64}").status_code == 404
    assert client.head("/nothing").status_code == 404
    assert client.head("/v1/generate").status_code == 405
    assert client.head("/static-offline-docs/swagger-ui.css").status_code == 200


@pytest.mark.parametrize("way", ["mounted", "root_path", "stripped by a proxy"])
def test_below_a_prefix(way: str, model: HartModel, store: Store) -> None:
    """What the pages link to lies beside them, and what needs no token needs none there either."""
    app = create_app(model, store, Settings(token="sesame"))
    outer = Starlette(routes=[Mount("/a/b", app)], lifespan=app.router.lifespan_context)
    ways: dict[str, Any] = {
        "mounted": lambda: TestClient(outer, base_url="http://localhost"),
        "root_path": lambda: TestClient(app, base_url="http://localhost", root_path="/a/b"),
        "stripped by a proxy": lambda: TestClient(app, base_url="http://localhost"),
    }
    below = "" if way == "stripped by a proxy" else "/a/b"
    with ways[way]() as client:
        docs = client.get(f"{below}/docs")
        assert docs.status_code == 200
        links = re.findall(r"""(?:href|src)="([^"]+)"|url: '([^']+)'""", docs.text)
        found = [one or other for one, other in links]
        assert {"openapi.json", "static-offline-docs/swagger-ui.css"} <= set(found)
        for link in found:
            assert client.get(urljoin(f"{below}/docs", link)).status_code == 200, link
        described = client.get(f"{below}/openapi.json").json()
        assert described["servers"] == [{"url": "."}]
        page = client.get(f"{below}/").text
        for link in re.findall(r'(?:href|src)="([a-z.]+)"', page):
            assert client.get(urljoin(f"{below}/", link)).status_code == 200, link
        assert client.get(f"{below}/health").status_code == 200
        assert client.get(f"{below}/v1/adaptations").status_code == 401
        given = {"Authorization": "bearer sesame"}
        assert client.get(f"{below}/v1/adaptations", headers=given).status_code == 200


def test_names_of_other_hosts(serve: Callable[..., TestClient]) -> None:
    """A page of another site, whose name was made to point here, is let in to nothing."""
    client = serve()
    assert "Host" in said(client.get("/v1/adaptations", headers={"Host": "evil.example"}), 403)
    for name in ("localhost:8000", "127.0.0.1:8000", "[::1]:8000", "[::1]", "LOCALHOST"):
        assert client.get("/v1/adaptations", headers={"Host": name}).status_code == 200
    assert serve(loopback=False).get("/health", headers={"Host": "hart.example"}).status_code == 200


def test_pages_and_headers(client: TestClient) -> None:
    for path in ("/", "/page.js", "/examples.js", "/base.css", "/page.css"):
        policy = client.get(path).headers["content-security-policy"]
        assert policy.startswith("default-src 'none'") and "unsafe" not in policy and "http" not in policy
    docs = client.get("/docs")
    assert docs.status_code == 200 and "https://" not in docs.text
    for address in ("/static-offline-docs/swagger-ui-bundle.js", "/static-offline-docs/swagger-ui.css"):
        assert f'"{address[1:]}"' in docs.text and client.get(address).status_code == 200
    assert client.get("/health").headers["x-content-type-options"] == "nosniff"
    assert "/v1/generate" in client.get("/openapi.json").json()["paths"]
