"""Extensions: what installed packages add to registries, and packages that are broken."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hart import HartError
from hart.runtime.extensions import find, load_extensions


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Install a package `extra` with this module."""
    monkeypatch.syspath_prepend(tmp_path)

    def install(code: str) -> None:
        (tmp_path / "hart_extra.py").write_text(code, encoding="utf-8")
        metadata = tmp_path / "extra-0.1.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: extra\nVersion: 0.1\n", encoding="utf-8")
        (metadata / "entry_points.txt").write_text("[hart.extensions]\nextra = hart_extra\n", encoding="utf-8")
        load_extensions.cache_clear()

    yield install
    sys.modules.pop("hart_extra", None)
    load_extensions.cache_clear()


def test_only_unknown_names_import_extensions(package: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    registry = {"a": 1}
    monkeypatch.setattr("hart.runtime.extensions.MADE", registry, raising=False)
    package("from hart.runtime import extensions\nextensions.MADE['b'] = 2\n")
    assert find(registry, "a") == 1 and "b" not in registry
    assert find(registry, "b") == 2
    assert find(registry, "c") is None and find(registry, None) is None and find(registry, ["a"]) is None


def test_a_broken_package_is_named(package: Callable[[str], None]) -> None:
    package("raise RuntimeError('half of it')\n")
    told = r"^extra: its extension hart_extra cannot be imported \(RuntimeError: half of it\); repair or uninstall"
    with pytest.raises(HartError, match=told):
        find({}, "b")
    assert find({"a": 1}, "a") == 1  # what is known needs no extension
