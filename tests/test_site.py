"""The documentation site builds strictly, loads nothing from other sites, and links to the repository."""

import functools
import importlib.util
import os
import re
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from filelock import FileLock

pytest.importorskip("mkdocs", reason="needs mkdocs: pip install 'hart-hypernet[docs]'")

REPOSITORY = Path(__file__).resolve().parents[1]
# What a page loads; links that a reader may follow are no such thing.
LOADED = re.compile(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"?([^\" >]+)|<link\b[^>]*\bhref=\"?([^\" >]+)")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; with --strict a broken link or anchor, or a name that does not exist, ends the build.

    Built once, also where several processes run the tests.
    """
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "site"
    with FileLock(f"{folder}.lock"):
        if not (folder / "sitemap.xml").exists():
            # Not --quiet: what is not told is not counted by --strict.
            command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
            environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
            done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def hooks() -> Any:
    spec = importlib.util.spec_from_file_location("site_hooks", REPOSITORY / "docs" / "site" / "hooks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_text_has_a_page(site: Path) -> None:
    texts = [path.stem for path in (REPOSITORY / "docs").glob("*.md")]
    notebooks = [f"notebooks/{path.stem}" for path in (REPOSITORY / "notebooks").glob("*.ipynb")]
    for name in [*texts, *notebooks, "contributing", "changelog", "."]:
        assert (site / name / "index.html").is_file()
    assert "in one forward pass" in (site / "index.html").read_text(encoding="utf-8")


def test_the_reference_shows_the_public_names(site: Path) -> None:
    import hart

    reference = "".join(path.read_text(encoding="utf-8") for path in (site / "api").rglob("index.html"))
    homes = {name: getattr(hart, name).__module__ for name in hart.__all__}
    shown = set(re.findall(r'id="?(hart\.[\w.]+)', reference))
    assert {name for name, home in homes.items() if not {f"hart.{name}", f"{home}.{name}"} & shown} == set()


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    loaded = {
        address
        for page in site.rglob("*.html")
        for found in LOADED.findall(page.read_text(encoding="utf-8"))
        for address in found
        if re.match(r"(?:https?:)?//", address)
    }
    assert loaded == set()


def test_it_can_be_searched_and_read_on_a_narrow_screen(site: Path, browser: Any) -> None:
    from browsing import resize, shoot
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    handler = functools.partial(QuietHandler, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        for place in ("", "concepts/", "paper_map/", "api/models/", "notebooks/look_inside/"):
            for width in (1280, 360):
                resize(browser, width)
                browser.get(f"{address}/{place}")
                assert browser.execute_script("return document.documentElement.scrollWidth") <= width, place
                shoot(browser, f"site_{place.replace('/', '_')}{width}.png", width)
        resize(browser, 1280)
        browser.get(address)
        browser.find_element(By.CSS_SELECTOR, "input.md-search__input").send_keys("consistency loss")
        found = WebDriverWait(browser, 20).until(
            lambda _: browser.find_elements(By.CSS_SELECTOR, ".md-search-result__link")
        )
        assert any("concepts" in each.get_attribute("href") for each in found)
        server.shutdown()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


def page(place: str) -> Any:
    return SimpleNamespace(file=SimpleNamespace(src_uri=place))


@pytest.mark.parametrize(
    ("place", "written", "expected"),
    [
        ("serving.md", "[a](data.md#b)", "[a](data.md#b)"),
        ("index.md", "[a](docs/data.md)", "[a](data.md)"),
        ("index.md", "![a](docs/growth.svg)", "![a](growth.svg)"),
        ("data.md", "[a](../CONTRIBUTING.md)", "[a](contributing.md)"),
        ("api/tasks.md", "[a](../../README.md#use)", "[a](../index.md#use)"),
        (
            "notebooks/own_tasks.md",
            "[a](../docs/data.md) [b](look_inside.ipynb)",
            "[a](../data.md) [b](look_inside.md)",
        ),
        ("data.md", "[a](../pyproject.toml)", "a"),
        ("data.md", "[a](https://example.org) [b](#c)", "[a](https://example.org) [b](#c)"),
        ("data.md", "[a](../no_such_file)", "[a](../no_such_file)"),
        ("data.md", "`[a](../pyproject.toml)`", "`[a](../pyproject.toml)`"),
        ("data.md", "```\n[a](../pyproject.toml)\n```", "```\n[a](../pyproject.toml)\n```"),
    ],
)
def test_links_lead_where_they_lead_in_the_repository(hooks: Any, place: str, written: str, expected: str) -> None:
    assert hooks.on_page_markdown(written, page(place), SimpleNamespace(repo_url=None), None) == expected


def test_paths_in_tables_break_after_their_signs(hooks: Any) -> None:
    html = "<td><code>src/a_b.py:C</code> a/b</td><p><code>a/b</code></p>"
    broken = "<td><code>src/<wbr>a_<wbr>b.<wbr>py:<wbr>C</code> a/b</td><p><code>a/b</code></p>"
    assert hooks.on_page_content(html, page("data.md"), None, None) == broken


def test_files_that_are_no_page_are_linked_where_the_repository_has_an_address(hooks: Any) -> None:
    config = SimpleNamespace(repo_url="https://example.org/hart/")
    linked = hooks.on_page_markdown("[a](../pyproject.toml#L3)", page("data.md"), config, None)
    assert linked == "[a](https://example.org/hart/blob/main/pyproject.toml#L3)"
