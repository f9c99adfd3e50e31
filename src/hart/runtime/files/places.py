"""The cache folder and home of a user, also for users that the system does not know."""

import logging
import os
import stat
import sys
import tempfile
from functools import cache
from pathlib import Path

import platformdirs

from hart.errors import HartError
from hart.runtime.files.writing import nearest, reason

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """The cache folder: HART_CACHE, or the platform's place for caches.

    A user without a writable home has a private folder among the temporary files.

    Raises:
        HartError: that folder is not private to the user.
    """
    given = os.environ.get("HART_CACHE")
    if given:
        return Path(given)
    try:
        usual = Path(platformdirs.user_cache_dir("hart"))
    except RuntimeError:  # no home
        return _private_home() / ".cache" / "hart"
    if sys.platform == "win32" or (usual.is_absolute() and os.access(nearest(usual), os.W_OK | os.X_OK)):
        return usual
    return _private_home() / ".cache" / "hart"


def ensure_home() -> None:
    """Set HOME for this process if its user has no home; commands call this before they import other libraries.

    Some libraries look up the user's home or name when they are imported, and fail, or create a folder called `~`.

    Raises:
        HartError: no home can be created.
    """
    if not os.path.isabs(os.path.expanduser("~")):
        os.environ["HOME"] = str(_private_home())
        os.environ.setdefault("USER", str(os.getuid()))


@cache
def _private_home() -> Path:
    folder = Path(tempfile.gettempdir()) / f"hart-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise HartError(
            f"{folder}: cannot be written ({reason(error)}); set HOME and HART_CACHE to folders of your own"
        ) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise HartError(f"{folder}: must belong to you alone; set HOME and HART_CACHE to folders of your own")
    logger.warning("no home folder found: the cache is in %s; set HART_CACHE to move it", folder)
    return folder
