"""Names of bundled files."""

from pathlib import Path

import pytest

from hart.errors import HartError
from hart.model import bundled as resources


@pytest.mark.parametrize("resolve", [resources.resolve_base, resources.resolve_model])
@pytest.mark.parametrize("name", ["google/t5-large-lm-adapt", "runs/hart/final", "/a/mini-base"])
def test_other_names_pass_through(resolve, name: str) -> None:
    assert resolve(name) == name


def test_bundled_names_are_folders_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "mini-base"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    monkeypatch.setattr(resources, "files", lambda package: tmp_path)
    assert Path(resources.resolve_base("mini-base")) == folder
    with pytest.raises(HartError, match="mini: the bundled files are missing"):
        resources.resolve_model("mini")


def test_a_base_is_not_a_model() -> None:
    assert resources.resolve_base("mini") == "mini"
    assert resources.resolve_model("mini-base") == "mini-base"
