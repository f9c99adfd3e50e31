"""Formats of tables, their file endings, and the largest size of a row."""

from pathlib import Path
from typing import Literal, get_args

from hart.errors import HartError

Format = Literal["jsonl", "json", "csv", "tsv", "txt", "parquet"]
FORMATS: tuple[Format, ...] = get_args(Format)
ENDINGS: dict[str, Format] = {f".{name}": name for name in FORMATS} | {".ndjson": "jsonl"}

SPREADSHEETS = (".xlsx", ".xls", ".xlsm", ".ods")
"""Endings of files that no format of `FORMATS` reads."""

MAX_ROW_BYTES = 16 * 2**20
"""Largest row, a thousand times a model's input: a file without line ends is refused before it fills the memory."""
LONGEST = f"{MAX_ROW_BYTES // 2**20} MiB"


class RowError(HartError):
    """An error in one row; later rows can be read."""


def format_of(path: Path, option: str) -> Format:
    """The format by the ending of a file's name, without `.gz`.

    Args:
        option: option that sets the format, for the message.

    Raises:
        HartError: the ending is unknown, or that of a spreadsheet.
    """
    ending = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    found = ENDINGS.get(ending.lower())
    if ending.lower() in SPREADSHEETS:
        raise HartError(f'{path}: is a spreadsheet, which is neither read nor written; use CSV (Excel: "CSV UTF-8")')
    if found is None:
        raise HartError(
            f"{path}: unknown ending (known are {', '.join(ENDINGS)}); "
            f"name the format with {option} ({', '.join(FORMATS)})"
        )
    return found
