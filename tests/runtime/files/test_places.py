"""The cache folder, also for a user without a home."""

import getpass
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hart.errors import HartError
from hart.runtime.files import cache_folder, ensure_home, places


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The system's folder of temporary files, for a process whose environment says nothing of a cache."""
    nameless = ("HART_CACHE", "XDG_CACHE_HOME", "HOME", "USER", "LOGNAME", "LNAME", "USERNAME")
    monkeypatch.setattr(os, "environ", {name: value for name, value in os.environ.items() if name not in nameless})
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    places._private_home.cache_clear()
    yield tmp_path
    places._private_home.cache_clear()


@pytest.fixture
def unknown(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As `temporary`, of a user whom the system does not know."""
    monkeypatch.setattr("pwd.getpwuid", lambda uid: (_ for _ in ()).throw(KeyError(uid)))
    assert os.path.expanduser("~") == "~"
    return temporary


def test_the_environment_says_where_the_cache_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, temporary: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder().is_relative_to(tmp_path) and cache_folder().name == "hart"
    monkeypatch.setenv("HART_CACHE", "mine")
    assert cache_folder() == Path("mine")


def test_a_user_without_a_home_has_a_private_folder(unknown: Path, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        folder = cache_folder()
        assert folder.is_relative_to(unknown) and not folder.exists()
    (private,) = unknown.iterdir()
    assert private.stat().st_mode & 0o777 == 0o700
    assert [record.levelno for record in caplog.records] == [logging.WARNING], "said once"


def test_a_command_has_a_home_and_a_user(unknown: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ensure_home()
    assert Path.home().is_dir() and Path.home().is_relative_to(unknown)
    assert getpass.getuser() == str(os.getuid())
    assert cache_folder().is_relative_to(unknown)
    monkeypatch.setenv("HOME", "/somewhere")
    ensure_home()
    assert os.environ["HOME"] == "/somewhere"


@pytest.mark.parametrize("what", ["others may read it", "a file", "a link"])
def test_a_folder_that_is_not_private_is_refused(unknown: Path, what: str) -> None:
    place = unknown / f"hart-{os.getuid()}"
    if what == "a file":
        place.touch()
    elif what == "a link":
        (unknown / "elsewhere").mkdir(mode=0o700)
        place.symlink_to("elsewhere")
    else:
        place.mkdir(mode=0o755)
    with pytest.raises(HartError, match=f"^{place}: .*; set HOME and HART_CACHE to folders of your own"):
        cache_folder()


def test_a_home_that_cannot_be_written_to(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `docker run --user 12345` gives one: HOME is /."""
    monkeypatch.setenv("HOME", "/")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert cache_folder().is_relative_to(temporary)


def test_the_command_of_an_unknown_user(tmp_path: Path) -> None:
    """What fails at its import without a home (here the scores, which import nltk) works."""
    code = """
import os, pwd
def unknown(uid): raise KeyError(uid)
pwd.getpwuid = unknown
from hart.cli import main
raise SystemExit(main(["evaluate", "--data", "procedural", "--system", "copy-demonstration", "--max-instances", "1"]))
"""
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=kept | {"TMPDIR": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("warning") == 1 and "no home folder found" in done.stderr
    assert (tmp_path / f"hart-{os.getuid()}").is_dir() and not (tmp_path / "~").exists()
