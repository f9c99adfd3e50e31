"""Use of the hub's cache on machines without a network."""

import logging
from pathlib import Path

from hart.errors import HartError, first_line

logger = logging.getLogger(__name__)


def cached_snapshot(name: str, revision: str | None = None) -> Path | None:
    """The folder of a data set in the hub's cache; None if there is none. Nothing is downloaded.

    A warning says that only cached files are used, as the cache does not record whether they are complete.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    # No file is requested, because only the folder is needed and a partial snapshot would be an error.
    nothing = ["."]
    try:
        found = snapshot_download(
            name, repo_type="dataset", revision=revision, local_files_only=True, allow_patterns=nothing
        )
    except (LocalEntryNotFoundError, HFValidationError):
        return None
    folder = Path(found)
    unfinished = len(list((folder.parents[1] / "blobs").glob("*.incomplete")))
    logger.warning(
        "%s: the hub is offline or cannot be reached; only its local cache is used%s",
        name,
        f", where {unfinished} downloads are unfinished" if unfinished else "",
    )
    return folder


def unreachable(name: str, verb: str, error: Exception, instead: str) -> HartError:
    """A `HartError` of one line for any error of the hub's client."""
    reason = first_line(error)
    return HartError(f"{name}: cannot be {verb} ({reason}); {instead}")
