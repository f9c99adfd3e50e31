"""The hub's cache, for machines without a network."""

import logging
from pathlib import Path

from hart.errors import HartError, first_line

logger = logging.getLogger(__name__)


def cached_snapshot(name: str, revision: str | None = None) -> Path | None:
    """The folder of a data set's files that the hub's cache holds, if there is any; nothing is loaded.

    Said is that it may be a part of the data set, which nothing in the cache can tell.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    # Of no file, since only a whole snapshot counts as complete, and where it is is all that is asked.
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
        "%s: the hub is not asked or cannot be reached; only what its cache has is used%s",
        name,
        f", where {unfinished} downloads are unfinished" if unfinished else "",
    )
    return folder


def unreachable(name: str, verb: str, error: Exception, instead: str) -> HartError:
    """One line for the many errors of the hub's client."""
    reason = first_line(error)
    return HartError(f"{name}: cannot be {verb} ({reason}); {instead}")
