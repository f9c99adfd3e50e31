"""Reading text and JSON, with detection of Git LFS pointers."""

import json
import sys
from pathlib import Path
from typing import Any

from hart.errors import HartError
from hart.runtime.files.writing import reason

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""First bytes of a Git LFS pointer, which stands in the place of another file."""


def read_text(path: str | Path, what: str, *, missing: str | None = None) -> str:
    """The text of a file in UTF-8, with or without a byte order mark.

    Args:
        what: expected kind of file, for messages: "a task file".
        missing: the message for a missing file; None: a default.

    Raises:
        HartError: the file is missing, cannot be read, is not text, or is a Git LFS pointer.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        raise HartError(missing or f"{path}: no such file; give {what}") from None
    except UnicodeDecodeError:
        raise HartError(f"{path}: not {what}, the text is not UTF-8") from None
    except (OSError, ValueError) as error:  # ValueError: an impossible file name
        raise HartError(f"{path}: cannot be read ({reason(error)}); give {what}") from None
    if text.startswith(LFS_POINTER.decode()):
        raise HartError(lfs_message(str(path)))
    return text


def read_json(path: str | Path, what: str, *, missing: str | None = None) -> Any:
    """The value in a JSON file, with or without a byte order mark.

    Args:
        what, missing: as in `read_text`.

    Raises:
        HartError: as in `read_text` and `parse_json`.
    """
    return parse_json(read_text(path, what, missing=missing), str(path), what)


def parse_json(content: bytes | str, source: str, what: str, *, whole: bool = True) -> Any:
    """The value that a JSON text describes.

    Args:
        source: origin of the text, with which messages begin: "tasks.jsonl, line 3".
        what: expected content, for messages: "a task".
        whole: refuse a lone surrogate in any text; False if the caller checks the texts that it uses.

    Raises:
        HartError: the text is not UTF-8 or not JSON, or has a number of thousands of digits, too deep nesting, or a
            lone surrogate (half a character), which tokenizers and files cannot hold.
    """
    wrong = f"{source}: not {what}"
    try:
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content.removeprefix("\ufeff")
    except UnicodeDecodeError:
        raise HartError(f"{wrong}, the text is not UTF-8") from None
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if text.startswith(LFS_POINTER.decode()):
            raise HartError(lfs_message(source)) from None
        raise HartError(f"{wrong}, the text is not JSON ({error})") from None
    except ValueError:
        raise HartError(f"{wrong}, a number has more than {sys.get_int_max_str_digits()} digits") from None
    except RecursionError:
        raise HartError(f"{wrong}, its brackets are nested too deeply") from None
    # UTF-8 has no surrogates, so a lone one can only come from an escape.
    if whole and ("\\ud" in text or "\\uD" in text):
        half = half_character(value)
        if half is not None:
            raise HartError(f"{wrong}, {half} contains half of a character; write the whole one, or leave it out")
    return value


def half_character(value: Any) -> str | None:
    """The path to the first text with a lone surrogate, which UTF-8 cannot encode; None if there is none."""
    waiting: list[tuple[str, Any]] = [("", value)]
    while waiting:
        place, item = waiting.pop()
        if isinstance(item, str):
            try:
                item.encode()
            except UnicodeEncodeError:
                return place.removeprefix(".") or "the text"
        elif isinstance(item, dict):
            waiting += [(f"{place} (a name in it)", key) for key in reversed(item)]
            waiting += [(f"{place}.{key}", each) for key, each in reversed(item.items())]
        elif isinstance(item, list):
            waiting += [(f"{place}[{index}]", each) for index, each in reversed(list(enumerate(item)))]
    return None


def refuse_lfs_pointer(path: str | Path) -> None:
    """Raise `HartError` if a file is a Git LFS pointer; other and missing files pass."""
    try:
        with open(path, "rb") as file:
            begins = file.read(len(LFS_POINTER))
    except OSError:
        return
    if begins == LFS_POINTER:
        raise HartError(lfs_message(str(path)))


def lfs_message(source: str) -> str:
    """The error message for a Git LFS pointer."""
    return f"{source}: is a Git LFS pointer, not the file itself; run 'git lfs pull' in its repository"
