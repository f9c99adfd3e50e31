"""The exception for errors in the user's input, and helpers for its messages."""

import difflib
from collections.abc import Collection


class HartError(Exception):
    """An input of the user cannot be used.

    The message is one line that names the file and field and says what to do. The command line prints it as
    ``hart: error: <message>`` and exits with status 2. Any other exception is a bug in hart.
    """


def first_line(error: Exception) -> str:
    """The first line of a library's error message, or the name of the exception if the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def suggestion(wrong: str, known: Collection[str]) -> str:
    """A hint for an error message: the closest known name, or all known names if none is close."""
    near = difflib.get_close_matches(wrong, known, n=1)
    return f"did you mean {near[0]}?" if near else f"choose one of {', '.join(known)}"
