"""Writing a file."""

import errno
import json
import os
import secrets
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from hart.errors import HartError

PREFIX = ".hart-"
"""How the names of unfinished files and folders begin."""

_NOT_REPLACEABLE = frozenset({errno.EACCES, errno.EPERM, errno.EBUSY, errno.EROFS, errno.EXDEV})
"""Errors of a folder that lets no file come or go, and of a file that is a mount point."""


def write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8 under `path`, as `write_bytes` does; half a character is written as its escape."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: str | Path, content: Any, *, indent: int | None = 2) -> None:
    """Write `content` as JSON, as `write_text` does."""
    write_text(path, json.dumps(content, indent=indent, ensure_ascii=False) + "\n")


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write `content` under `path`, at once or not at all; missing folders are created.

    A file that stands there is replaced, keeps its mode, and stays whole if the writing fails. Through a symbolic link
    the file that it names is replaced or created. What is no regular file (a device, a pipe, `/dev/stdout`) is written
    to. A file that may be written but not replaced (a mount of its own, or in a folder of others) is overwritten.

    Raises:
        HartError: `path` is a folder or a socket, or cannot be written.
    """
    path = Path(path)
    with _told(path):
        target = _target(path)
        if isinstance(target, int):
            with _open_descriptor(target) as file:
                file.write(content)
            return
        found = stat_of(target)
        if found is not None and not stat.S_ISREG(found.st_mode):
            with _open_existing(target) as file:
                file.write(content)
            return
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            _replace(target, content, found)
        except OSError as error:
            if not _only_overwritten(target, found, error):
                raise
            with _open_existing(target) as file:
                file.write(content)


def check_file_target(path: str | Path) -> None:
    """Refuse before the work what `write_bytes` could not write after it.

    Raises:
        HartError: `path` is a folder or a socket, or cannot be written.
    """
    path = Path(path)
    with _told(path):
        target = _target(path)
        if isinstance(target, int):
            os.fstat(target)
            return
        found = stat_of(target)
        if found is not None and not stat.S_ISREG(found.st_mode):
            if not os.access(target, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return
        try:
            try_folder(target.parent)
        except OSError as error:
            if not _only_overwritten(target, found, error):
                raise


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise HartError(f"{path}: cannot be written ({reason(error)})") from error


def _target(path: Path) -> Path | int:
    """Where the links of a path lead, to a file or to an open descriptor of this process; refuses folders, sockets."""
    descriptor = _descriptor(path)
    if descriptor is not None:
        return descriptor
    found = stat_of(path)
    for kind, is_kind in (("folder", stat.S_ISDIR), ("socket", stat.S_ISSOCK)):
        if found is not None and is_kind(found.st_mode):
            raise HartError(f"{path}: is a {kind}; give the path of a file")
    return Path(os.path.realpath(path))


def stat_of(path: Path) -> os.stat_result | None:
    """What a path leads to; None if there is nothing."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _descriptor(path: Path) -> int | None:
    """The number of the open file of this process that a path such as `/dev/stdout` names, or a link to it."""
    folders = {f"/proc/{os.getpid()}/fd", "/dev/fd"}
    for _ in range(40):  # as many links as Linux follows
        parent = os.path.realpath(path.parent)
        if parent in folders and path.name.isdecimal():
            return int(path.name)
        if not path.is_symlink():
            return None
        path = Path(parent, os.readlink(path))
    return None


def _only_overwritten(target: Path, found: os.stat_result | None, error: OSError) -> bool:
    """Whether a file that could not be replaced can be written to where it is."""
    return found is not None and error.errno in _NOT_REPLACEABLE and os.access(target, os.W_OK)


def open_target(path: str | Path) -> BinaryIO:
    """What `path` leads to, open for content that comes bit by bit: a file is emptied, missing folders are created.

    Raises:
        HartError: as `write_bytes`.
    """
    path = Path(path)
    with _told(path):
        target = _target(path)
        if isinstance(target, int):
            return _open_descriptor(target)
        if stat_of(target) is not None:
            return _open_existing(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        return target.open("wb")


def _open_descriptor(number: int) -> BinaryIO:
    """Where the process writes already, after what it has written; opened anew, a file would begin again."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # closed, or no file at all
            if stream.fileno() == number:
                stream.flush()
    return open(os.dup(number), "wb")


def _open_existing(target: Path) -> BinaryIO:
    """What is there and stays what it is; a file is emptied."""
    # Never created: systems refuse that for the pipes of others in folders of all.
    return open(target, "wb", opener=lambda name, flags: os.open(name, flags & ~os.O_CREAT))


def _replace(target: Path, content: bytes, found: os.stat_result | None) -> None:
    """Put a new file in the place of `target`, with owner and mode of the one that was found there."""
    temporary = new_name(target.parent)  # the same folder, because a rename cannot leave its file system
    try:
        # Not mkstemp, whose files are private: open() gives the mode that the umask leaves.
        with open(temporary, "xb") as file:
            file.write(content)
        if found is not None:
            if sys.platform != "win32" and found.st_uid != os.geteuid():
                with suppress(OSError):  # only root may
                    os.chown(temporary, found.st_uid, found.st_gid)
            temporary.chmod(stat.S_IMODE(found.st_mode))
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def new_name(folder: Path) -> Path:
    """A name in a folder that nothing has."""
    return folder / f"{PREFIX}{secrets.token_hex(8)}"


def try_folder(folder: Path) -> None:
    """Make a file in a folder, or in the nearest one that exists above it, and remove it; OSError where that fails."""
    trial = new_name(nearest(folder))
    trial.open("xb").close()
    trial.unlink()


def nearest(path: Path) -> Path:
    """What exists of a path: itself, or else the nearest above it."""
    path = Path(os.path.realpath(path))
    return next(each for each in (path, *path.parents) if os.path.exists(each))  # False also where one may not look


def reason(error: BaseException) -> str:
    """What went wrong, in one line."""
    text = str(getattr(error, "strerror", None) or error) or type(error).__name__
    return text.splitlines()[0]
