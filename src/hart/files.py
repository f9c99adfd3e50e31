"""Reading and writing files and folders, so that a reader never sees half of them and nobody's file is destroyed.

What is written is put beside its place under another name and renamed, with the mode that an ordinary `open` or `mkdir`
gives. What a rename would destroy is not renamed over: a device, a pipe or `/dev/stdout` is written to, a symbolic link
is followed, a folder that cannot move (a mount point, the working directory) is filled where it is.
"""

import errno
import hashlib
import json
import logging
import os
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import platformdirs
from safetensors import SafetensorError

from hart.errors import HartError

logger = logging.getLogger(__name__)

_PREFIX = ".hart-"
"""How the names of unfinished files and folders begin."""

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""How a file begins that Git LFS put in the place of another."""


def cache_folder() -> Path:
    """Where hart keeps what it need not compute twice: HART_CACHE, or the platform's place for caches.

    A user without a home, or with one that cannot be written to, has a private folder among the temporary files.

    Raises:
        HartError: that folder is another user's.
    """
    given = os.environ.get("HART_CACHE")
    if given:
        return Path(given)
    usual = Path(platformdirs.user_cache_dir("hart"))
    # Of a user whom the system does not know, expanduser leaves a plain "~".
    if sys.platform == "win32" or (usual.is_absolute() and os.access(_nearest(usual), os.W_OK | os.X_OK)):
        return usual
    return _private_cache(usual)


@cache
def _private_cache(usual: Path) -> Path:
    folder = Path(tempfile.gettempdir()) / f"hart-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise HartError(
            f"{folder}: cannot be written ({_reason(error)}); set HART_CACHE to a folder of yours"
        ) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise HartError(f"{folder}: is not a folder of yours alone; set HART_CACHE to one")
    logger.warning("%s cannot be written, the cache is %s; set HART_CACHE to keep it elsewhere", usual, folder)
    return folder


# --- reading ------------------------------------------------------------------------------------


def read_json(path: str | Path, what: str) -> Any:
    """The value in a JSON file, with or without a byte order mark.

    Args:
        what: the file should be, for messages: "a task file".

    Raises:
        HartError: as `parse_json`, or the file is missing or cannot be read.
    """
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise HartError(f"{path}: no such file; give {what}") from None
    except (OSError, ValueError) as error:  # ValueError: no file can have such a name
        raise HartError(f"{path}: cannot be read ({_reason(error)}); give {what}") from None
    return parse_json(content, str(path), what)


def parse_json(content: bytes | str, source: str, what: str) -> Any:
    """The value that a JSON text describes.

    Args:
        source: where the text comes from, to begin a message with: "tasks.jsonl, line 3".
        what: it should be, for messages: "a task".

    Raises:
        HartError: not UTF-8 or not JSON, a number of thousands of digits, brackets in brackets without end, or half a
            character (a lone surrogate), which no tokenizer and no file takes.
    """
    wrong = f"{source}: not {what}"
    try:
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content.removeprefix("\ufeff")
    except UnicodeDecodeError:
        raise HartError(f"{wrong}, the text is not UTF-8") from None
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if text.startswith(LFS_POINTER.decode()):
            raise HartError(_lfs_message(source)) from None
        raise HartError(f"{wrong}, the text is not JSON ({error})") from None
    except ValueError:
        raise HartError(f"{wrong}, a number has more than {sys.get_int_max_str_digits()} digits") from None
    except RecursionError:
        raise HartError(f"{wrong}, its brackets are nested too deeply") from None
    # UTF-8 has no surrogates, so an escape is the only way for half a character to come in.
    if "\\ud" in text or "\\uD" in text:
        half = _half_character(value)
        if half is not None:
            raise HartError(f"{wrong}, {half} holds half of a character; write the whole one, or leave it out")
    return value


def _half_character(value: Any) -> str | None:
    """The place of the first text that cannot be written as UTF-8; None if there is none."""
    waiting: list[tuple[str, Any]] = [("", value)]
    while waiting:
        place, item = waiting.pop()
        if isinstance(item, str):
            try:
                item.encode()
            except UnicodeEncodeError:
                return place.removeprefix(".") or "the text"
        elif isinstance(item, dict):
            waiting += [(f"{place} (a name in it)", key) for key in reversed(item)]
            waiting += [(f"{place}.{key}", each) for key, each in reversed(item.items())]
        elif isinstance(item, list):
            waiting += [(f"{place}[{index}]", each) for index, each in reversed(list(enumerate(item)))]
    return None


def refuse_lfs_pointer(path: str | Path) -> None:
    """Raise `HartError` if a file is what Git LFS puts in its place; any other, or none, passes."""
    try:
        with open(path, "rb") as file:
            begins = file.read(len(LFS_POINTER))
    except OSError:
        return
    if begins == LFS_POINTER:
        raise HartError(_lfs_message(str(path)))


def _lfs_message(source: str) -> str:
    return f"{source}: is a Git LFS pointer, not the file itself; run 'git lfs pull' in its repository"


# --- writing a file -----------------------------------------------------------------------------

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
    try:
        target = _target(path)
        if isinstance(target, int):
            _write_descriptor(target, content)
            return
        found = _stat(target)
        if found is not None and not stat.S_ISREG(found.st_mode):
            _write_existing(target, content)
            return
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            _replace(target, content, found)
        except OSError as error:
            if not _only_overwritten(target, found, error):
                raise
            _write_existing(target, content)
    except (OSError, ValueError) as error:
        raise HartError(f"{path}: cannot be written ({_reason(error)})") from error


def check_file_target(path: str | Path) -> None:
    """Refuse before the work what `write_bytes` could not write after it.

    Raises:
        HartError: `path` is a folder or a socket, or cannot be written.
    """
    path = Path(path)
    try:
        target = _target(path)
        if isinstance(target, int):
            os.fstat(target)
            return
        found = _stat(target)
        if found is not None and not stat.S_ISREG(found.st_mode):
            if not os.access(target, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return
        try:
            _try_folder(target.parent)
        except OSError as error:
            if not _only_overwritten(target, found, error):
                raise
    except (OSError, ValueError) as error:
        raise HartError(f"{path}: cannot be written ({_reason(error)})") from error


def _target(path: Path) -> Path | int:
    """Where the links of a path lead, to a file or to an open descriptor of this process; refuses folders, sockets."""
    descriptor = _descriptor(path)
    if descriptor is not None:
        return descriptor
    found = _stat(path)
    for kind, is_kind in (("folder", stat.S_ISDIR), ("socket", stat.S_ISSOCK)):
        if found is not None and is_kind(found.st_mode):
            raise HartError(f"{path}: is a {kind}; give the path of a file")
    return Path(os.path.realpath(path))


def _stat(path: Path) -> os.stat_result | None:
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


def _write_descriptor(number: int, content: bytes) -> None:
    """Write where the process writes already, after what it has written; opened anew, a file would begin again."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # closed, or no file at all
            if stream.fileno() == number:
                stream.flush()
    with open(os.dup(number), "wb") as file:
        file.write(content)


def _write_existing(target: Path, content: bytes) -> None:
    """Write to what is there and stays what it is; a file is emptied first."""
    # Never created: systems refuse that for the pipes of others in folders of all.
    with open(target, "wb", opener=lambda name, flags: os.open(name, flags & ~os.O_CREAT)) as file:
        file.write(content)


def _replace(target: Path, content: bytes, found: os.stat_result | None) -> None:
    """Put a new file in the place of `target`, with owner and mode of the one that was found there."""
    temporary = _new_name(target.parent)  # the same folder, because a rename cannot leave its file system
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


def _new_name(folder: Path) -> Path:
    """A name in a folder that nothing has."""
    return folder / f"{_PREFIX}{secrets.token_hex(8)}"


def _try_folder(folder: Path) -> None:
    """Make a file in a folder, or in the nearest one that exists above it, and remove it; OSError where that fails."""
    trial = _new_name(_nearest(folder))
    trial.open("xb").close()
    trial.unlink()


def _nearest(path: Path) -> Path:
    """What exists of a path: itself, or else the nearest above it."""
    path = Path(os.path.realpath(path))
    return next(each for each in (path, *path.parents) if each.exists())


def _reason(error: Exception) -> str:
    """What went wrong, in one line."""
    text = str(getattr(error, "strerror", None) or error) or type(error).__name__
    return text.splitlines()[0]


# --- writing a folder ---------------------------------------------------------------------------


@contextmanager
def new_directory(path: str | Path, *, replaces: str) -> Iterator[Path]:
    """An empty folder to fill, which becomes `path` when the block ends without an error.

    A folder that stands there is replaced if it is empty, or if it has a file called `replaces` and nothing that the
    new folder has not: so only an earlier version of the same is ever deleted. It keeps its mode. Where it must not
    move (it is empty, a mount point, the working directory, or in a folder of others), it is filled where it is, the
    file `replaces` last. A symbolic link to a folder stays one. Files get the modes that an ordinary `open` would give.

    Raises:
        HartError: `path` exists with other content, or cannot be written; what was there is there still.
    """
    path = Path(path)
    try:
        _refuse_other_content(path, replaces)
        target = Path(os.path.realpath(path))
        work = _work_folder(target)
    except (OSError, ValueError) as error:
        raise HartError(f"{path}: cannot be written ({_reason(error)})") from error
    new, old = work / "new", work / "old"
    try:
        new.mkdir()
        yield new
        ordinary_modes(new)
        _refuse_other_content(path, replaces, {each.name for each in new.iterdir()})
        _put(new, target, old, replaces)
    except (OSError, SafetensorError) as error:  # safetensors has words of its own for a full disk
        raise HartError(f"{path}: cannot be written ({_reason(error)})") from error
    finally:
        with suppress(OSError):
            old.rmdir()  # empty, unless something could not be put back
        if not old.exists():
            shutil.rmtree(work, ignore_errors=True)


def check_folder_target(path: str | Path, *, replaces: str, writes: Collection[str] | None = None) -> None:
    """Refuse before the work what `new_directory` could not write after it.

    Args:
        replaces: as for `new_directory`.
        writes: names of what is going to be written, where they are known.

    Raises:
        HartError: `path` exists with other content, or cannot be written.
    """
    path = Path(path)
    try:
        _refuse_other_content(path, replaces, writes)
        _try_folder(path)
    except (OSError, ValueError) as error:
        raise HartError(f"{path}: cannot be written ({_reason(error)})") from error


def content_of(folder: Path) -> set[str]:
    """Names of what is in a folder, without what an unfinished writing left, and what a file system puts at its top."""
    names = {each.name for each in folder.iterdir() if not each.name.startswith(_PREFIX)}
    return names - {"lost+found"} if os.path.ismount(folder) else names


def ordinary_modes(folder: Path) -> None:
    """Give all below a folder the modes of an ordinary `open` and `mkdir`: some libraries make private files."""
    # Tried, not computed: to ask for the umask one has to set it, and all threads have the same.
    trial = _new_name(folder)
    trial.mkdir()
    mode = stat.S_IMODE(trial.stat().st_mode)
    trial.rmdir()
    for path in folder.rglob("*"):
        path.chmod(mode if path.is_dir() else mode & 0o666)


def _refuse_other_content(path: Path, replaces: str, written: Collection[str] | None = None) -> None:
    found = _stat(path)
    if found is None:
        return
    present = content_of(path) if stat.S_ISDIR(found.st_mode) else {path.name}
    kept = stat.S_ISDIR(found.st_mode) and (not present or replaces in present)
    if not kept or (written is not None and not present <= set(written)):
        raise HartError(f"{path}: exists with other content; give a new folder")


def _work_folder(target: Path) -> Path:
    """A new private folder beside `target`, or inside it where no rename leads from there into it."""
    work = _new_name(target.parent)
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        work.mkdir(mode=0o700)
        return work
    try:
        work.mkdir(mode=0o700)
        trial = _new_name(work)
        trial.touch()
        trial.rename(target / trial.name).unlink()
    except OSError:  # a mount point, or in a folder of others
        shutil.rmtree(work, ignore_errors=True)
        work = _new_name(target)
        work.mkdir(mode=0o700)
    return work


def _put(new: Path, target: Path, old: Path, replaces: str) -> None:
    """Make what is in `new` the content of `target`, all of it or OSError; what was there is deleted."""
    if not target.exists():
        new.rename(target)
        return
    present = content_of(target)
    movable = present and old.parent.parent == target.parent and not _holds_working_directory(target)
    if not (movable and _swapped(new, target, old)):
        old.mkdir()
        # What has no file `replaces` is not taken for whole.
        away = sorted(present, key=lambda name: name != replaces)
        come = sorted((each.name for each in new.iterdir()), key=lambda name: name == replaces)
        _rename_all([(target / n, old / n) for n in away] + [(new / n, target / n) for n in come])
    shutil.rmtree(old, ignore_errors=True)


def _holds_working_directory(folder: Path) -> bool:
    try:
        return Path.cwd().is_relative_to(folder)
    except FileNotFoundError:  # removed
        return False


def _swapped(new: Path, target: Path, old: Path) -> bool:
    """Whether `new` could be put in the place of the folder `target`."""
    try:
        new.chmod(stat.S_IMODE(target.stat().st_mode))
        _rename_all([(target, old), (new, target)])
    except OSError:  # no folder can be moved in a sticky folder of others, nor from the image of a container
        return False
    return True


def _rename_all(moves: Sequence[tuple[Path, Path]]) -> None:
    """Rename each to a name that is free; after an error none is renamed.

    Raises:
        HartError: after an error something could not be put back; says where it is.
    """
    done: list[tuple[Path, Path]] = []
    try:
        for source, target in moves:
            if target.exists():
                raise FileExistsError(errno.EEXIST, f"{target.name} was written by another process meanwhile")
            source.rename(target)
            done.append((source, target))
    except OSError as error:
        for source, target in reversed(done):
            try:
                target.rename(source)
            except OSError:
                raise HartError(f"{source}: cannot be written ({_reason(error)}); it lies in {target} now") from error
        raise


# --- checksums ----------------------------------------------------------------------------------

CHECKSUMS_FILE = "checksums.json"


def seal(folder: Path) -> None:
    """Write the SHA-256 of every file of a folder into it, and wait until all of it is on the disk.

    A rename that follows makes the folder appear whole even if the machine loses its power.
    """
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != CHECKSUMS_FILE]
    sums = {path.relative_to(folder).as_posix(): sha256(path) for path in paths}
    write_json(folder / CHECKSUMS_FILE, sums, indent=1)
    for path in (*paths, folder / CHECKSUMS_FILE, folder):
        _to_disk(path)


def damage(folder: Path) -> str | None:
    """Which file of a sealed folder is missing or has changed; None if it is whole, or was never sealed."""
    sealed = folder / CHECKSUMS_FILE
    if not sealed.is_file():
        return None
    try:
        sums = read_json(sealed, "checksums")
        wrong = [name for name, sum_ in sums.items() if sha256(folder / name) != sum_]
    except (HartError, OSError, ValueError, AttributeError) as error:
        return str(getattr(error, "filename", None) or sealed.name)
    return wrong[0] if wrong else None


def sha256(path: Path) -> str:
    """SHA-256 of a file's content, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _to_disk(path: Path) -> None:
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return  # folders cannot be opened on some systems, and need not be
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
