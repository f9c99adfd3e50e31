"""Atomic writing of folders, whatever exists in their place."""

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from hart.errors import HartError
from hart.runtime.files import CHECKSUMS_FILE, check_folder_target, content_of, damage, new_directory, seal


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


def test_a_link_to_a_folder_stays_one(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "dangling").symlink_to("deep/later")
    for text in ("1", "2"):
        for name, target in (("link", "real"), ("dangling", "deep/later")):
            check_folder_target(tmp_path / name, replaces="config.json")
            fill(tmp_path / name, "config.json", text=text)
            assert (tmp_path / name).is_symlink()
            assert (tmp_path / target / "config.json").read_text() == text
    assert sorted(os.listdir(tmp_path)) == ["dangling", "deep", "link", "real"]
    assert os.listdir(tmp_path / "deep") == ["later"]


@pytest.mark.parametrize("name", [".", "", "absolute", "link"])
def test_the_working_directory_is_filled_and_stays_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (tmp_path / "link").symlink_to("here")
    monkeypatch.chdir(here)
    path = {"absolute": here, "link": tmp_path / "link"}.get(name, Path(name))
    for names in (["config.json"], ["config.json", "README.md"]):
        check_folder_target(path, replaces="config.json")
        fill(path, *names, text=names[-1])
        assert sorted(os.listdir(".")) == sorted(names) == sorted(os.listdir(here))
        assert Path("config.json").read_text() == names[-1]
    with pytest.raises(HartError, match="exists with other content"):
        fill(path, "config.json")
    assert sorted(os.listdir(tmp_path)) == ["here", "link"]


FILL = """
import os, sys
from hart.runtime.files import check_folder_target, new_directory
for text in ("1", "2"):
    check_folder_target(sys.argv[1], replaces="config.json")
    with new_directory(sys.argv[1], replaces="config.json") as folder:
        (folder / "config.json").write_text(text)
    print(text, sorted(os.listdir(sys.argv[1])), open(os.path.join(sys.argv[1], "config.json")).read())
"""


@pytest.mark.parametrize(
    ("mounts", "kept"),
    [
        ("mount -t tmpfs none out", []),
        ("mount -t tmpfs none out; mkdir out/lost+found", ["lost+found"]),
        ("mount --bind outside out", []),
        ("mount -t tmpfs none .; cd .; mkdir out; mount -t tmpfs none out; mount -o remount,ro .", []),
    ],
    ids=["a volume", "a new disk", "a folder of the same disk", "in a folder that is read only"],
)
def test_a_mount_point_is_filled(tmp_path: Path, in_mounts: Callable[..., str], mounts: str, kept: list[str]) -> None:
    for name in ("out", "outside"):
        (tmp_path / name).mkdir()
    names = sorted(["config.json", *kept])
    assert in_mounts(tmp_path, mounts, FILL, str(tmp_path / "out")) == f"1 {names} 1\n2 {names} 2\n"
    assert sorted(os.listdir(tmp_path)) == ["out", "outside"]


def test_a_disk_that_is_full_leaves_the_old_folder_and_nothing_else(
    tmp_path: Path, in_mounts: Callable[..., str]
) -> None:
    code = """
import os
from hart.errors import HartError
from hart.runtime.files import new_directory
for size, paths in ((10_000, ["out"]), (10_000_000, ["out", "other"])):
    for path in paths:
        try:
            with new_directory(path, replaces="config.json") as folder:
                (folder / "config.json").write_text(str(size))
                (folder / "model").write_bytes(b"x" * size)
        except HartError as error:
            print(error)
        print(os.listdir("."), sorted(os.listdir("out")), open("out/config.json").read())
"""
    whole = "['out'] ['config.json', 'model'] 10000\n"
    assert in_mounts(tmp_path, "mount -t tmpfs -o size=1m none .; cd .", code) == (
        f"{whole}out: cannot be written (No space left on device)\n"
        f"{whole}other: cannot be written (No space left on device)\n{whole}"
    )


def test_a_tokenizer_that_does_not_fit_on_the_disk(tmp_path: Path, in_mounts: Callable[..., str]) -> None:
    """It raises a plain Exception."""
    code = """
import os
from tokenizers import Tokenizer, models
from hart.errors import HartError
from hart.runtime.files import new_directory
tokenizer = Tokenizer(models.WordLevel({str(number): number for number in range(50_000)}, "0"))
try:
    with new_directory("out", replaces="config.json") as folder:
        tokenizer.save(str(folder / "tokenizer.json"))
except HartError as error:
    print(error, os.listdir("."))
"""
    printed = in_mounts(tmp_path, "mount -t tmpfs -o size=100k none .; cd .", code)
    assert printed == "out: cannot be written (No space left on device (os error 28)) []\n"


def test_an_error_that_is_ours_stays_one(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), new_directory(tmp_path / "model", replaces="config.json"):
        print(1 / 0)
    assert not os.listdir(tmp_path)


def refuse_renames(monkeypatch: pytest.MonkeyPatch, refused: Callable[[Path, Path], bool]) -> None:
    rename = Path.rename

    def of_some(self: Path, target: Path) -> Path:
        if refused(self, Path(target)):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", of_some)


def test_a_folder_that_cannot_be_moved_is_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one from the image of a container, on which overlayfs answers so."""
    path = tmp_path / "model"
    fill(path, "config.json", text="1")
    inode = path.stat().st_ino
    refuse_renames(monkeypatch, lambda source, target: source == path)
    fill(path, "config.json", "README.md", text="2")
    assert {each.name: each.read_text() for each in path.iterdir()} == {"config.json": "2", "README.md": "2"}
    assert path.stat().st_ino == inode and os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("name", ["a.bin", "b.bin", "config.json"])
@pytest.mark.parametrize("moves", [True, False])
def test_a_rename_that_fails_leaves_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moves: bool, name: str
) -> None:
    """Whichever of the renames fails: of the folder, then of the files one by one."""
    path = tmp_path / "model"
    fill(path, "config.json", "a.bin", text="old")
    if not moves:
        monkeypatch.chdir(path)
    refuse_renames(monkeypatch, lambda source, target: source.name == "new" or source.parts[-2:] == ("new", name))
    with pytest.raises(HartError, match=r"model: cannot be written \(Invalid cross-device link\)"):
        fill(path, "config.json", "a.bin", "b.bin", text="new")
    assert {each.name: each.read_text() for each in path.iterdir()} == {"config.json": "old", "a.bin": "old"}
    assert os.listdir(tmp_path) == ["model"]


def test_what_cannot_be_put_back_is_kept_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model"
    fill(path, "config.json", text="old")
    refuse_renames(monkeypatch, lambda source, target: target == path)
    with pytest.raises(HartError, match=r"model: cannot be written .*; its previous content is now /") as caught:
        fill(path, "config.json", text="new")
    kept = Path(str(caught.value).split("its previous content is now ")[1])
    assert (kept / "config.json").read_text() == "old"


def test_what_a_killed_process_left_is_no_content(tmp_path: Path) -> None:
    code = (
        "import os, sys; from hart.runtime.files import new_directory\n"
        "with new_directory(sys.argv[1], replaces='config.json') as folder: os.kill(os.getpid(), 9)"
    )
    path = tmp_path / "model"
    path.mkdir()
    (path / ".hart-0123456789abcdef").mkdir()
    subprocess.run([sys.executable, "-c", code, str(path)])
    assert content_of(path) == set()
    check_folder_target(path, replaces="config.json")
    fill(path, "config.json", text="1")
    assert content_of(path) == {"config.json"}


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_weights_have_the_modes_of_ordinary_files(tmp_path: Path, mask: int) -> None:
    """safetensors writes private files whatever the mask says."""
    path = tmp_path / "model"
    before = os.umask(mask)
    try:
        with new_directory(path, replaces="config.json") as folder:
            (folder / "main").mkdir()
            for below in (folder, folder / "main"):
                save_file({"a": torch.ones(2)}, below / "model.safetensors")
                (below / "config.json").write_text("{}")
    finally:
        os.umask(before)
    modes = {each.relative_to(tmp_path).as_posix(): stat.S_IMODE(each.stat().st_mode) for each in tmp_path.rglob("*")}
    expected = {name: (0o666 if "." in name else 0o777) & ~mask for name in modes}
    assert modes == expected and len(modes) == 6


def test_a_folder_that_was_there_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.mkdir(mode=0o700)
    for text in ("1", "2"):
        fill(path, "config.json", text=text)
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_what_could_not_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    def check(name: str, **more: Any) -> None:
        check_folder_target(tmp_path / name, replaces="config.json", **more)

    (tmp_path / "file").write_text("x")
    (tmp_path / "loop").symlink_to("loop")
    fill(tmp_path / "model", "config.json", "notes.txt")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    for name in ("new", "deep/new", "model"):
        check(name)
    for name, message in (
        ("file", "exists with other content; give a new folder"),
        ("other", "exists with other content; give a new folder"),
        ("file/below", r"cannot be written \(Not a directory\)"),
        ("loop", r"cannot be written \(Too many levels of symbolic links\)"),
        ("n" * 300, r"cannot be written \(File name too long\)"),
        ("nul\0byte", r"cannot be written \(embedded null byte\)"),
    ):
        for refused in (check, lambda name: fill(tmp_path / name, "config.json")):
            with pytest.raises(HartError, match=message):
                refused(name)
    assert sorted(os.listdir(tmp_path)) == ["file", "loop", "model", "other"]


def test_a_sealed_folder_has_ordinary_modes(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    (folder / "main").mkdir(parents=True)
    save_file({"a": torch.ones(2)}, folder / "main" / "model.safetensors")
    seal(folder)
    (tmp_path / "plain").touch()
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) == 2 and {path.stat().st_mode for path in files} == {(tmp_path / "plain").stat().st_mode}


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
