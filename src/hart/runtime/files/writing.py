"""Atomic writing of files."""

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
"""Prefix of the names of unfinished files and folders."""

_NOT_REPLACEABLE = frozenset({errno.EACCES, errno.EPERM, errno.EBUSY, errno.EROFS, errno.EXDEV})
"""Errors of a rename in a folder without write permission, or onto a mount point."""


def write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8 to `path`, as `write_bytes` does; a lone surrogate is written as its escape."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: str | Path, content: Any, *, indent: int | None = 2) -> None:
    """Write `content` as JSON to `path`, as `write_text` does."""
    write_text(path, json.dumps(content, indent=indent, ensure_ascii=False) + "\n")


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write `content` to `path` atomically; missing folders are created.

    An existing file is replaced and keeps its mode; if writing fails, it stays unchanged. For a symbolic link, the file
    that it names is replaced or created. Other than regular files (a device, a pipe, `/dev/stdout`) are written to. A
    file that can be written but not replaced (a mount point, or in another user's folder) is overwritten.

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
    """Check in advance that `write_bytes` can write to `path`.

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
    """The target of a path after its links: a file or an open descriptor of this process; refuses folders, sockets."""
    descriptor = _descriptor(path)
    if descriptor is not None:
        return descriptor
    found = stat_of(path)
    for kind, is_kind in (("folder", stat.S_ISDIR), ("socket", stat.S_ISSOCK)):
        if found is not None and is_kind(found.st_mode):
            raise HartError(f"{path}: is a {kind}; give the path of a file")
    return Path(os.path.realpath(path))


def stat_of(path: Path) -> os.stat_result | None:
    """The status of a path's target; None if it does not exist."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _descriptor(path: Path) -> int | None:
    """The open descriptor of this process that a path such as `/dev/stdout`, or a link to it, names; else None."""
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
    """Whether a file that could not be replaced can be overwritten in place."""
    return found is not None and error.errno in _NOT_REPLACEABLE and os.access(target, os.W_OK)


def open_target(path: str | Path) -> BinaryIO:
    """The target of `path`, opened for incremental writing; a file is truncated, missing folders are created.

    Raises:
        HartError: as in `write_bytes`.
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
    """An open descriptor, written from its current position; opening its file again would start at the beginning."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # closed, or not a file
            if stream.fileno() == number:
                stream.flush()
    return open(os.dup(number), "wb")


def _open_existing(target: Path) -> BinaryIO:
    """An existing target, opened for writing in place; a file is truncated."""
    # Without O_CREAT, which systems refuse for other users' pipes in world-writable folders.
    return open(target, "wb", opener=lambda name, flags: os.open(name, flags & ~os.O_CREAT))


def _replace(target: Path, content: bytes, found: os.stat_result | None) -> None:
    """Replace `target` by a new file, with owner and mode of the existing one."""
    temporary = new_name(target.parent)  # the same folder, because a rename cannot leave its file system
    try:
        # open() instead of mkstemp, whose files are private: the mode follows the umask.
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
    """An unused path in a folder."""
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
