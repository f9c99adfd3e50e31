"""The one exception that stands for a mistake of the user rather than of the program."""


class HartError(Exception):
    """Something the user gave cannot be used.

    The message is one line that names the file and field and says what to do. The command line
    prints it as ``hart: error: <message>`` and exits with status 2; everything else that is raised
    is a defect of ours.
    """


def first_line(error: Exception) -> str:
    """The first line of a library's message, or what it is called if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
