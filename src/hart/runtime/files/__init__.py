"""Reading and writing files and folders, so that a reader never sees half of them and nobody's file is destroyed.

What is written is put beside its place under another name and renamed, with the mode that an ordinary `open` or `mkdir`
gives. What a rename would destroy is not renamed over: a device, a pipe or `/dev/stdout` is written to, a symbolic link
is followed, a folder that cannot move (a mount point, the working directory) is filled where it is.
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
