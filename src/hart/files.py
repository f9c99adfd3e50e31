"""Writing files and folders so that a reader never sees half of them."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import platformdirs
from safetensors import SafetensorError

from hart.errors import HartError


def cache_folder() -> Path:
    """Where hart keeps what it need not compute twice: HART_CACHE, or the platform's place for caches."""
    return Path(os.environ.get("HART_CACHE") or platformdirs.user_cache_dir("hart"))


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` as UTF-8 under ``path``, at once or not at all; missing folders are created.

    A file that stands there is replaced, and stays whole if the writing fails.

    Raises:
        HartError: ``path`` is a folder, or cannot be written.
    """
    path = Path(path)
    if path.is_dir():
        raise HartError(f"{path}: is a folder; give the path of a file")
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Beside the target, because a rename is atomic only within one file system.
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", text=True)
        temporary = Path(name)
        with open(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        # mkstemp makes the file private; give it the mode that an ordinary open() would have.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    except OSError as error:
        raise HartError(f"{path}: cannot be written ({error.strerror})") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_json(path: str | Path, content: Any) -> None:
    """Write ``content`` as indented JSON, as `write_text` does."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def new_directory(path: str | Path, *, replaces: str) -> Iterator[Path]:
    """An empty folder to fill, which becomes ``path`` when the block ends without an error.

    A folder that stands there is replaced if it is empty, or if it has a file called ``replaces``
    and nothing that the new folder has not: so only an earlier version of the same is ever deleted.

    Raises:
        HartError: ``path`` exists with other content, or cannot be written.
    """
    path = Path(path)
    _refuse_other_content(path, replaces)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Beside the target, because a rename is atomic only within one file system.
        work = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    except OSError as error:
        raise HartError(f"{path}: cannot be written ({error.strerror})") from error
    try:
        new, old = work / "new", work / "old"
        new.mkdir()
        yield new
        _refuse_other_content(path, replaces, written={each.name for each in new.iterdir()})
        if path.exists():
            path.rename(old)
        try:
            new.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise
    except (OSError, SafetensorError) as error:  # safetensors has words of its own for a full disk
        reason = getattr(error, "strerror", None) or error
        raise HartError(f"{path}: cannot be written ({reason})") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _refuse_other_content(path: Path, replaces: str, written: set[str] | None = None) -> None:
    if not path.exists():
        return
    present = {each.name for each in path.iterdir()} if path.is_dir() else {path.name}
    kept = path.is_dir() and (not present or replaces in present)
    if not kept or (written is not None and present - written):
        raise HartError(f"{path}: exists with other content; choose another folder or remove it")


CHECKSUMS_FILE = "checksums.json"


def seal(folder: Path) -> None:
    """Write the SHA-256 of every file of a folder into it, and wait until all of it is on the disk.

    A rename that follows makes the folder appear whole even if the machine loses its power.
    """
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != CHECKSUMS_FILE]
    sums = {path.relative_to(folder).as_posix(): _sha256(path) for path in paths}
    (folder / CHECKSUMS_FILE).write_text(json.dumps(sums, indent=1), encoding="utf-8")
    for path in (*paths, folder / CHECKSUMS_FILE, folder):
        _to_disk(path)


def damage(folder: Path) -> str | None:
    """Which file of a sealed folder is missing or has changed; None if it is whole, or was never sealed."""
    sealed = folder / CHECKSUMS_FILE
    if not sealed.is_file():
        return None
    try:
        sums = json.loads(sealed.read_text(encoding="utf-8"))
        wrong = [name for name, sum_ in sums.items() if _sha256(folder / name) != sum_]
    except (OSError, ValueError, AttributeError) as error:
        return str(getattr(error, "filename", None) or sealed.name)
    return wrong[0] if wrong else None


def _sha256(path: Path) -> str:
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
