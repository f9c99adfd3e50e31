"""Reading of users' files and texts, with errors of one line that name the file."""

import gzip
import zlib
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from hart.errors import HartError
from hart.runtime.files import refuse_lfs_pointer

_CONVERT = 'convert the file (iconv -f {} -t UTF-8 FILE; Excel saves "CSV UTF-8")'
CONVERT, CONVERT_UTF_16 = _CONVERT.format("WINDOWS-1252"), _CONVERT.format("UTF-16")
"""Advice for a text that is not UTF-8; the second for one that begins as UTF-16 or has zero bytes."""


def convert(start: bytes) -> str:
    """The advice for a text that is not UTF-8, by its first bytes."""
    return CONVERT_UTF_16 if start.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else CONVERT


def check_text(text: str, where: str) -> str:
    """Check that a text can be encoded as UTF-8, and return it.

    Raises:
        HartError: it has a lone surrogate, which no tokenizer accepts. JSON escapes and command-line arguments that are
            not UTF-8 can produce one.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        character = f"U+{ord(text[error.start]):04X}"
        raise HartError(
            f"{where} contains an invalid character (a lone surrogate, {character}, at position {error.start}); "
            "replace it"
        ) from None
    return text


def check_file(path: Path) -> None:
    """Raise `HartError` if `path` is a folder, cannot be opened, or is a Git LFS pointer."""
    try:
        path.open("rb").close()
    except OSError as error:
        raise HartError(f"{path}: cannot be read ({error.strerror})") from None
    refuse_lfs_pointer(path)


class Line(NamedTuple):
    """A non-blank line: its number from 1, the position of its first byte in the unpacked file, and its text."""

    number: int
    offset: int
    text: str


def open_bytes(path: Path) -> BinaryIO:
    """The file, opened for reading, and decompressed if its name ends in `.gz`."""
    return cast(BinaryIO, gzip.open(path) if path.suffix == ".gz" else path.open("rb"))


def read_lines(path: Path) -> Iterator[Line]:
    """The non-blank lines of a text file, which may be gzipped and may begin with a byte order mark.

    Raises:
        HartError: as in `check_file`, or the archive is damaged, or the text is not UTF-8.
    """
    check_file(path)
    number = offset = 0
    try:
        with open_bytes(path) as lines:
            for number, line in enumerate(lines, start=1):
                # Only a line feed ends a line, as JSON texts may have Python's other line ends.
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                if text.strip():
                    yield Line(number, offset, text)
                offset += len(line)
    except UnicodeDecodeError:
        raise HartError(f"{path}, line {number}: not UTF-8; {convert(line)}") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise HartError(f"{path}: damaged after line {number} ({error}); download it again") from error
    except OSError as error:
        raise HartError(f"{path}: cannot be read after line {number} ({error.strerror or error})") from error
