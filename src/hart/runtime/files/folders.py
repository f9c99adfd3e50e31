"""Writing a folder, and telling later whether it is whole."""

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
    """An empty folder to fill, which becomes `path` when the block ends without an error.

    A folder that stands there is replaced if it is empty, or if it has a file called `replaces` and nothing that the
    new folder has not, but for the names in `drops`: so only an earlier version of the same is ever deleted. It keeps
    its mode. Where it must not
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
            old.rmdir()  # empty, unless something could not be put back
        if not old.exists():
            shutil.rmtree(work, ignore_errors=True)


def _of_the_disk(error: Exception) -> bool:
    """Whether a file could not be written; the Rust libraries say so in exceptions of their own, or of no kind."""
    return isinstance(error, OSError | SafetensorError) or "(os error " in str(error)


def check_folder_target(path: str | Path, *, replaces: str) -> None:
    """Refuse before the work what `new_directory` could not write after it.

    Args:
        replaces: as for `new_directory`.

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
    """Names of what is in a folder, without what an unfinished writing left, and what a file system puts at its top."""
    names = {each.name for each in folder.iterdir() if not each.name.startswith(PREFIX)}
    return names - {"lost+found"} if os.path.ismount(os.path.realpath(folder)) else names


def ordinary_modes(folder: Path) -> None:
    """Give all below a folder the modes of an ordinary `open` and `mkdir`: some libraries make private files."""
    # Tried, not computed: to ask for the umask one has to set it, and all threads have the same.
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
    """A new private folder beside `target`, or inside it where no rename leads from there into it."""
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
    except OSError:  # a mount point, or in a folder of others
        shutil.rmtree(work, ignore_errors=True)
        work = new_name(target)
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
    except BaseException as error:
        kept = [pair for pair in reversed(done) if not _put_back(*pair)]
        if kept:
            source, target = kept[-1]
            raise HartError(f"{source}: cannot be written ({reason(error)}); what it was is now {target}") from error
        raise


def _put_back(source: Path, target: Path) -> bool:
    with suppress(OSError):
        target.rename(source)
        return True
    return False


CHECKSUMS_FILE = "checksums.json"


def seal(folder: Path) -> None:
    """Give all in a folder ordinary modes, write the SHA-256 of every file into it, and wait until it is on the disk.

    A rename that follows makes the folder appear whole even if the machine loses its power.
    """
    ordinary_modes(folder)
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != CHECKSUMS_FILE]
    sums = {path.relative_to(folder).as_posix(): sha256(path) for path in paths}
    write_json(folder / CHECKSUMS_FILE, sums, indent=1)
    for path in (*paths, folder / CHECKSUMS_FILE, folder):
        _to_disk(path)


def damage(folder: Path) -> str | None:
    """Which file of a sealed folder is missing or has changed; None if it is whole, or was never sealed.

    Raises:
        HartError: a file cannot be read now (too many are open, no right to), which says nothing of its content.
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
