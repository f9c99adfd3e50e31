"""Atomic writing of folders, and checks that a folder is complete."""

import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from hart.errors import HartError
from hart.runtime.files.reading import parse_json
from hart.runtime.files.writing import PREFIX, new_name, reason, stat_of, try_folder, write_json


@contextmanager
def new_directory(path: str | Path, *, replaces: str, drops: Collection[str] = ()) -> Iterator[Path]:
    """A context that yields an empty folder to fill, which becomes `path` when the block ends without an error.

    An existing folder is replaced if it is empty, or if it has a file called `replaces` and all its other entries are
    in the new folder or in `drops`; so only an earlier version is ever deleted. It keeps its mode. A folder that must
    not be moved (an empty one, a mount point, the working directory, or one in another user's folder) is filled in
    place, the file `replaces` last. A symbolic link to a folder is kept. Files get the modes of an ordinary `open`.

    Raises:
        HartError: `path` exists with other content, or cannot be written; the existing content is kept.
    """
    path = Path(path)
    try:
        _refuse_other_content(path, replaces)
        target = Path(os.path.realpath(path))
        work = _work_folder(target)
    except (OSError, ValueError) as error:
        raise HartError(f"{path}: cannot be written ({reason(error)})") from error
    new, old = work / "new", work / "old"
    try:
        new.mkdir()
        yield new
        ordinary_modes(new)
        _refuse_other_content(path, replaces, {*drops, *(each.name for each in new.iterdir())})
        _put(new, target, old, replaces)
    except Exception as error:
        if not _of_the_disk(error):
            raise
        raise HartError(f"{path}: cannot be written ({reason(error)})") from error
    finally:
        with suppress(OSError):
            old.rmdir()  # empty, unless an entry could not be moved back
        if not old.exists():
            shutil.rmtree(work, ignore_errors=True)


def _of_the_disk(error: Exception) -> bool:
    """Whether an exception means a failed write; the Rust libraries raise their own types or bare exceptions."""
    return isinstance(error, OSError | SafetensorError) or "(os error " in str(error)


def check_folder_target(path: str | Path, *, replaces: str) -> None:
    """Check in advance that `new_directory` can write to `path`.

    Args:
        replaces: as in `new_directory`.

    Raises:
        HartError: `path` exists with other content, or cannot be written.
    """
    path = Path(path)
    try:
        _refuse_other_content(path, replaces)
        try_folder(path)
    except (OSError, ValueError) as error:
        raise HartError(f"{path}: cannot be written ({reason(error)})") from error


def content_of(folder: Path) -> set[str]:
    """The names in a folder, without those of unfinished writes and those that file systems create at their root."""
    names = {each.name for each in folder.iterdir() if not each.name.startswith(PREFIX)}
    return names - {"lost+found"} if os.path.ismount(os.path.realpath(folder)) else names


def ordinary_modes(folder: Path) -> None:
    """Give the content of a folder the modes of `open` and `mkdir`, as some libraries make private files."""
    # Found by a trial, because reading the umask means setting it for all threads.
    trial = new_name(folder)
    trial.mkdir()
    mode = stat.S_IMODE(trial.stat().st_mode)
    trial.rmdir()
    for path in folder.rglob("*"):
        path.chmod(mode if path.is_dir() else mode & 0o666)


def _refuse_other_content(path: Path, replaces: str, written: Collection[str] | None = None) -> None:
    found = stat_of(path)
    if found is None:
        return
    present = content_of(path) if stat.S_ISDIR(found.st_mode) else {path.name}
    kept = stat.S_ISDIR(found.st_mode) and (not present or replaces in present)
    if not kept or (written is not None and not present <= set(written)):
        raise HartError(f"{path}: exists with other content; give a new folder")


def _work_folder(target: Path) -> Path:
    """A new private folder beside `target`, or inside it if nothing can be renamed from beside into it."""
    work = new_name(target.parent)
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        work.mkdir(mode=0o700)
        return work
    try:
        work.mkdir(mode=0o700)
        trial = new_name(work)
        trial.touch()
        trial.rename(target / trial.name).unlink()
    except OSError:  # a mount point, or in another user's folder
        shutil.rmtree(work, ignore_errors=True)
        work = new_name(target)
        work.mkdir(mode=0o700)
    return work


def _put(new: Path, target: Path, old: Path, replaces: str) -> None:
    """Replace the content of `target` by that of `new`, completely or with an OSError; old content is deleted."""
    if not target.exists():
        new.rename(target)
        return
    present = content_of(target)
    movable = present and old.parent.parent == target.parent and not _holds_working_directory(target)
    if not (movable and _swapped(new, target, old)):
        old.mkdir()
        # The file `replaces` first, as a folder without it counts as incomplete.
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
    """Try to replace the folder `target` by `new`; returns whether this was possible."""
    try:
        new.chmod(stat.S_IMODE(target.stat().st_mode))
        _rename_all([(target, old), (new, target)])
    except OSError:  # folders cannot be moved in another user's sticky folder, nor out of a container's image
        return False
    return True


def _rename_all(moves: Sequence[tuple[Path, Path]]) -> None:
    """Rename each path to a free name; after an error, completed renames are undone.

    Raises:
        HartError: an undo failed; the message says where the content is.
    """
    done: list[tuple[Path, Path]] = []
    try:
        for source, target in moves:
            if target.exists():
                raise FileExistsError(errno.EEXIST, f"{target.name} was written by another process meanwhile")
            source.rename(target)
            done.append((source, target))
    except BaseException as error:
        kept = [pair for pair in reversed(done) if not _put_back(*pair)]
        if kept:
            source, target = kept[-1]
            raise HartError(
                f"{source}: cannot be written ({reason(error)}); its previous content is now {target}"
            ) from error
        raise


def _put_back(source: Path, target: Path) -> bool:
    with suppress(OSError):
        target.rename(source)
        return True
    return False


CHECKSUMS_FILE = "checksums.json"


def seal(folder: Path) -> None:
    """Give the content of a folder ordinary modes, write the SHA-256 of every file into it, and sync it to disk.

    After a following rename the folder is complete even if the machine loses power.
    """
    ordinary_modes(folder)
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != CHECKSUMS_FILE]
    sums = {path.relative_to(folder).as_posix(): sha256(path) for path in paths}
    write_json(folder / CHECKSUMS_FILE, sums, indent=1)
    for path in (*paths, folder / CHECKSUMS_FILE, folder):
        _to_disk(path)


def damage(folder: Path) -> str | None:
    """The first missing or changed file of a sealed folder; None if it is complete, or was never sealed.

    Raises:
        HartError: a file cannot be read now (too many open files, no permission), so its content is unknown.
    """
    sealed = folder / CHECKSUMS_FILE
    if not sealed.is_file():
        return None
    try:
        sums = parse_json(sealed.read_bytes(), str(sealed), "checksums")
        wrong = [name for name, sum_ in sums.items() if sha256(folder / name) != sum_]
    except (HartError, FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError, AttributeError) as error:
        return str(getattr(error, "filename", None) or sealed.name)
    except OSError as error:
        raise HartError(f"{error.filename or folder}: cannot be read ({reason(error)})") from error
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
