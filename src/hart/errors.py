"""The one exception that stands for a mistake of the user rather than of the program, and parts of its messages."""

import difflib
from collections.abc import Collection


class HartError(Exception):
    """Something the user gave cannot be used.

    The message is one line that names the file and field and says what to do. The command line
    prints it as ``hart: error: <message>`` and exits with status 2; everything else that is raised
    is a defect of ours.
    """


def first_line(error: Exception) -> str:
    """The first line of a library's message, or what it is called if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def suggestion(wrong: str, known: Collection[str]) -> str:
    """The name that was probably meant, else what there is to choose from."""
    near = difflib.get_close_matches(wrong, known, n=1)
    return f"did you mean {near[0]}?" if near else f"choose one of {', '.join(known)}"
