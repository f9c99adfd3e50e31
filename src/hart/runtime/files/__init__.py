"""Reading and atomic writing of files and folders: readers never see half of one, and no foreign file is destroyed.

New content is written beside its place under another name and then renamed, with the mode of an ordinary `open` or
`mkdir`. Targets that a rename would destroy are handled in place: a device, a pipe or `/dev/stdout` is written to, a
symbolic link is followed, a folder that cannot be moved (a mount point, the working directory) is filled in place.
"""

from hart.runtime.files.folders import (
    CHECKSUMS_FILE,
    check_folder_target,
    content_of,
    damage,
    new_directory,
    ordinary_modes,
    seal,
    sha256,
)
from hart.runtime.files.places import cache_folder, ensure_home
from hart.runtime.files.reading import parse_json, read_json, read_text, refuse_lfs_pointer
from hart.runtime.files.writing import check_file_target, open_target, write_bytes, write_json, write_text

__all__ = [
    "CHECKSUMS_FILE",
    "cache_folder",
    "check_file_target",
    "check_folder_target",
    "content_of",
    "damage",
    "ensure_home",
    "new_directory",
    "open_target",
    "ordinary_modes",
    "parse_json",
    "read_json",
    "read_text",
    "refuse_lfs_pointer",
    "seal",
    "sha256",
    "write_bytes",
    "write_json",
    "write_text",
]
