"""Atomic writing of files; targets that are not files keep their type."""

import errno
import json
import os
import resource
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hart.errors import HartError
from hart.runtime.files import check_file_target, write_bytes, write_json, write_text


def umask() -> int:
    """Of this process; only where no other thread runs."""
    now = os.umask(0)
    os.umask(now)
    return now


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Within, the system lets no file grow over `size` bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_text_is_written_whole_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.txt"
    check_file_target(path)
    assert not path.parent.exists()
    write_text(path, "first\n")
    check_file_target(path)
    write_text(path, "second, with ü and\nlines\n")
    assert path.read_bytes().decode("utf-8") == "second, with ü and\nlines\n"
    assert os.listdir(path.parent) == ["a.txt"]


def test_a_new_file_has_the_mode_of_an_ordinary_one_and_an_old_one_keeps_its_own(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("x")
    write_text(tmp_path / "new", "x")
    assert mode(tmp_path / "new") == mode(tmp_path / "plain")
    for old in (0o600, 0o664):
        (tmp_path / "plain").chmod(old)
        write_text(tmp_path / "plain", "y")
        assert mode(tmp_path / "plain") == old


def test_no_other_thread_sees_another_umask(tmp_path: Path) -> None:
    """The mask belongs to the process: whoever changes it for a moment changes the files of all threads."""
    done = threading.Event()

    def write() -> None:
        for number in range(300):
            write_text(tmp_path / f"{number % 7}.txt", "x")
        done.set()

    thread = threading.Thread(target=write)
    seen = set()
    thread.start()
    while not done.is_set():
        (tmp_path / "mine").touch()
        seen.add(mode(tmp_path / "mine"))
        (tmp_path / "mine").unlink()
    thread.join()
    assert seen == {0o666 & ~umask()}


def test_a_disk_that_is_full_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with largest_file(1000), pytest.raises(HartError, match=r"a\.txt: cannot be written \(File too large\)"):
        write_text(path, "n" * 100_000)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_half_a_character_does_not_lose_a_file(tmp_path: Path) -> None:
    results = {"prediction": "\ud83d ü", "whole": "😀"}
    write_json(tmp_path / "a.json", results)
    assert json.loads((tmp_path / "a.json").read_bytes()) == results


def test_text_into_a_folder_or_below_a_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "loop").symlink_to("loop")
    with socket.socket(socket.AF_UNIX) as listening:
        monkeypatch.chdir(tmp_path)  # names of sockets are short
        listening.bind("socket")
        for path, message in (
            (tmp_path, "is a folder; give the path of a file"),
            (tmp_path / "socket", "is a socket; give the path of a file"),
            (tmp_path / "file" / "below.txt", r"cannot be written \(Not a directory\)"),
            (tmp_path / "loop", r"cannot be written \(Too many levels of symbolic links\)"),
            (tmp_path / ("n" * 300), r"cannot be written \(File name too long\)"),
            (Path("nul\0byte"), r"cannot be written \(embedded null byte\)"),
        ):
            for refused in (check_file_target, lambda path: write_text(path, "x")):
                with pytest.raises(HartError, match=message):
                    refused(path)
    assert sorted(os.listdir(tmp_path)) == ["file", "loop", "socket"]


def test_the_longest_name_that_a_file_can_have(tmp_path: Path) -> None:
    write_text(tmp_path / ("n" * 255), "x")
    assert os.listdir(tmp_path) == ["n" * 255]


def test_links_are_written_through(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for name, target in (("direct", "there/a.txt"), ("chain", "direct"), ("absolute", tmp_path / "there" / "b.txt")):
        (tmp_path / name).symlink_to(target)
    check_file_target(tmp_path / "chain")
    write_text(tmp_path / "chain", "created")  # dangling
    write_text(tmp_path / "absolute", "too")
    assert (tmp_path / "there" / "a.txt").read_text() == "created"
    inode = (tmp_path / "there" / "a.txt").stat().st_ino
    write_text(tmp_path / "direct", "replaced")
    assert (tmp_path / "there" / "a.txt").read_text() == "replaced"
    assert (tmp_path / "there" / "a.txt").stat().st_ino != inode, "replaced whole, not written over"
    assert (tmp_path / "there" / "b.txt").read_text() == "too"
    assert all((tmp_path / name).is_symlink() for name in ("direct", "chain", "absolute"))
    assert sorted(os.listdir(tmp_path / "there")) == ["a.txt", "b.txt"]


def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    (tmp_path / "link").symlink_to("pipe")
    check_file_target(path)
    for name in ("pipe", "link"):
        read: list[bytes] = []
        reader = threading.Thread(target=lambda into=read: into.append(path.read_bytes()))
        reader.start()
        write_bytes(tmp_path / name, b"\0\xff" * 100_000)
        reader.join()
        assert read == [b"\0\xff" * 100_000]
    assert stat.S_ISFIFO(path.lstat().st_mode) and sorted(os.listdir(tmp_path)) == ["link", "pipe"]


def test_a_device_stays_a_device(tmp_path: Path) -> None:
    node = tmp_path / "null"
    try:
        os.mknod(node, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        node.write_bytes(b"x")
    except PermissionError:
        pytest.skip("only root makes devices, and not on every file system")
    (tmp_path / "link").symlink_to("null")
    for name in ("null", "link"):
        check_file_target(tmp_path / name)
        write_json(tmp_path / name, {"score": 1})
    found = node.lstat()
    assert stat.S_ISCHR(found.st_mode) and found.st_rdev == os.makedev(1, 3)
    assert sorted(os.listdir(tmp_path)) == ["link", "null"]


WRITE = """
import sys
from hart.runtime.files import check_file_target, write_text
print("before")
for path in sys.argv[1:]:
    check_file_target(path)
    write_text(path, f"written\\n")
print("after")
"""


@pytest.mark.parametrize("kind", ["pipe", "file", "socket"])
@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "link"])
def test_standard_output_is_written_where_it_goes(tmp_path: Path, kind: str, name: str) -> None:
    """In order with what is printed, and whatever it is: no file is begun again, none is put in its place."""
    if not Path("/proc/self/fd").exists():
        pytest.skip("no /proc")
    (tmp_path / "link").symlink_to("/dev/stdout")
    command = [sys.executable, "-c", WRITE, str(tmp_path / "link") if name == "link" else name]
    if kind == "pipe":
        out = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    elif kind == "file":
        (tmp_path / "out").write_text("kept\n")
        with (tmp_path / "out").open("a") as file:
            subprocess.run(command, stdout=file, check=True)
        out = (tmp_path / "out").read_bytes().removeprefix(b"kept\n")
    else:
        ours, its = socket.socketpair()
        with ours, its:
            subprocess.run(command, stdout=its, check=True)
            out = ours.recv(1000)
    assert out == b"before\nwritten\nafter\n"
    assert set(os.listdir(tmp_path)) <= {"link", "out"} and (tmp_path / "link").is_symlink()


def test_a_closed_descriptor_and_a_closed_pipe_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(HartError, match=r"/dev/fd/987: cannot be written \(Bad file descriptor\)"):
        check_file_target("/dev/fd/987")
    reading, writing = os.pipe()
    os.close(reading)
    with pytest.raises(HartError, match=r"cannot be written \(Broken pipe\)"):
        write_text(f"/dev/fd/{writing}", "x")
    os.close(writing)


def test_a_file_that_is_a_mount_is_overwritten(tmp_path: Path, in_mounts: Callable[..., str]) -> None:
    """As `docker run -v results.json:/data/results.json` makes one."""
    for name in ("outside.json", "mounted.json"):
        (tmp_path / name).write_text("a longer text than the new one\n")
    in_mounts(tmp_path, "mount --bind outside.json mounted.json", WRITE, "mounted.json")
    assert (tmp_path / "outside.json").read_text() == "written\n"
    assert sorted(os.listdir(tmp_path)) == ["mounted.json", "outside.json"]


def test_a_file_in_a_folder_of_others_is_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("old")

    def refuse(self: Path, target: Path) -> Path:
        raise PermissionError(errno.EPERM, "Operation not permitted")  # of a sticky folder

    monkeypatch.setattr(Path, "replace", refuse)
    write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "new"
    with pytest.raises(HartError, match=r"b.txt: cannot be written \(Operation not permitted\)"):
        write_text(tmp_path / "b.txt", "new")
    assert os.listdir(tmp_path) == ["a.txt"]
