import os
import stat
from pathlib import Path

import pytest

from hart.errors import HartError
from hart.files import CHECKSUMS_FILE, damage, new_directory, seal, write_text


def test_text_is_written_whole_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.txt"
    write_text(path, "first\n")
    write_text(path, "second, with ü and\nlines\n")
    assert path.read_bytes().decode("utf-8") == "second, with ü and\nlines\n"
    assert [each.name for each in path.parent.iterdir()] == ["a.txt"]


def test_text_has_the_mode_of_an_ordinary_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("x")
    write_text(tmp_path / "atomic", "x")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "atomic")}
    assert len(modes) == 1


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(HartError, match=r"a\.txt: cannot be written \(No space left on device\)"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_text_into_a_folder_or_below_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HartError, match="is a folder"):
        write_text(tmp_path, "x")
    (tmp_path / "file").write_text("x")
    with pytest.raises(HartError, match="cannot be written"):
        write_text(tmp_path / "file" / "below.txt", "x")


def fill(path: Path, *names: str, text: str = "") -> None:
    with new_directory(path, replaces="config.json") as folder:
        for name in names:
            (folder / name).write_text(text)


def test_folder_appears_only_when_complete(tmp_path: Path) -> None:
    path = tmp_path / "parent" / "model"
    with new_directory(path, replaces="config.json") as folder:
        (folder / "config.json").write_text("{}")
        assert not path.exists()
    assert os.listdir(path) == ["config.json"]
    assert os.listdir(path.parent) == ["model"]


def test_folder_replaces_an_earlier_version_and_an_empty_one(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.mkdir()
    fill(path, "config.json", text="1")
    fill(path, "config.json", "README.md", text="2")
    assert sorted(os.listdir(path)) == ["README.md", "config.json"]
    assert (path / "config.json").read_text() == "2"
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("present", [["notes.txt"], ["config.json", "notes.txt"]])
def test_folder_with_other_content_is_left_alone(tmp_path: Path, present: list[str]) -> None:
    path = tmp_path / "model"
    path.mkdir()
    for name in present:
        (path / name).write_text("mine")
    with pytest.raises(HartError, match="exists with other content"):
        fill(path, "config.json")
    assert {each.name: each.read_text() for each in path.iterdir()} == dict.fromkeys(present, "mine")
    assert os.listdir(tmp_path) == ["model"]


def test_folder_on_the_place_of_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("mine")
    with pytest.raises(HartError, match="exists with other content"):
        fill(tmp_path / "model", "config.json")
    assert (tmp_path / "model").read_text() == "mine"


def test_an_error_in_the_block_leaves_the_old_folder(tmp_path: Path) -> None:
    path = tmp_path / "model"
    fill(path, "config.json", text="old")
    with (
        pytest.raises(KeyboardInterrupt),
        new_directory(path, replaces="config.json") as folder,
    ):
        (folder / "config.json").write_text("half")
        raise KeyboardInterrupt
    assert (path / "config.json").read_text() == "old"
    assert os.listdir(tmp_path) == ["model"]


def test_a_sealed_folder_knows_its_damage(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.bin").write_bytes(b"12345")
    (tmp_path / "sub" / "b.bin").write_bytes(b"678")
    assert damage(tmp_path) is None, "a folder that was never sealed cannot be judged"
    seal(tmp_path)
    assert damage(tmp_path) is None
    (tmp_path / "sub" / "b.bin").write_bytes(b"679")
    assert damage(tmp_path) == "sub/b.bin"
    seal(tmp_path)
    (tmp_path / "a.bin").unlink()
    assert str(damage(tmp_path)).endswith("a.bin")
    (tmp_path / CHECKSUMS_FILE).write_text("{")
    assert damage(tmp_path) == CHECKSUMS_FILE
