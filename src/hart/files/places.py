"""Where hart keeps what belongs to no command."""

import logging
import os
import stat
import sys
import tempfile
from functools import cache
from pathlib import Path

import platformdirs

from hart.errors import HartError
from hart.files.writing import nearest, reason

logger = logging.getLogger(__name__)


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
    if sys.platform == "win32" or (usual.is_absolute() and os.access(nearest(usual), os.W_OK | os.X_OK)):
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
            f"{folder}: cannot be written ({reason(error)}); set HART_CACHE to a folder of yours"
        ) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise HartError(f"{folder}: is not a folder of yours alone; set HART_CACHE to one")
    logger.warning("%s cannot be written, the cache is %s; set HART_CACHE to keep it elsewhere", usual, folder)
    return folder
