"""What tables are called and how large their rows may be."""

from pathlib import Path
from typing import Literal, get_args

from hart.errors import HartError

Format = Literal["jsonl", "json", "csv", "tsv", "txt", "parquet"]
FORMATS: tuple[Format, ...] = get_args(Format)
ENDINGS: dict[str, Format] = {f".{name}": name for name in FORMATS} | {".ndjson": "jsonl"}

MAX_ROW_BYTES = 16 * 2**20
"""Longest row, a thousand times what a model reads: a file without line ends is refused before it fills the memory."""
LONGEST = f"{MAX_ROW_BYTES // 2**20} MiB"


class RowError(HartError):
    """One row is wrong; those behind it can be read."""


def format_of(path: Path, option: str) -> Format:
    """The format that the ending of a file's name says; `.gz` behind it does not count.

    Args:
        option: how the user names a format that the ending does not, for the message.

    Raises:
        HartError: the ending is none of these.
    """
    ending = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    found = ENDINGS.get(ending.lower())
    if found is None:
        raise HartError(
            f"{path}: the ending does not say what it holds ({', '.join(ENDINGS)} would); "
            f"say it with {option} ({', '.join(FORMATS)})"
        )
    return found
