"""Text of a task as models read it.

The format is Tk-Instruct's "Def+2Pos" (section 4.1; Wang et al. 2022), white space included: the
definition, a blank line, then the first positive examples, each introduced by a line that begins
with a space. Texts are stripped and closed with a full stop unless they end in punctuation. For
in-context models the query follows, unanswered. The hypernetwork reads the text without a query,
the main model the raw query alone (as HINT does). Of a task without a definition the definition's
line and the blank line are left out, of one without demonstrations these, as Tk-Instruct's code
leaves out what its settings do not ask for.

P3's rows are whole prompts already (section 4.2), so there the format is "prompts": the input and
then the target of each demonstration, as T0 reads and writes them. No definition is read.
How texts become tokens, and what gives way where they are too long: `hart.data.input_format`.
"""

import logging
import string
from typing import Any, Literal, Protocol

from hart.data.reading import check_text
from hart.data.tasks import Demonstration, Task
from hart.errors import HartError

PromptFormat = Literal["instructions", "prompts"]


class Tokenizer(Protocol):
    """The part of a `transformers` tokenizer that is needed here."""

    @property
    def eos_token_id(self) -> Any: ...

    def __call__(self, text: str, *, add_special_tokens: bool, verbose: bool) -> Any: ...


NAMES = 10_000
"""How many names `Cuts` remembers of each kind, so that a million cut queries do not fill the memory."""


class Cuts:
    """What did not fit into the limits, collected so that each condition is told once, however many tasks it meets."""

    def __init__(self) -> None:
        self._noted: dict[str, tuple[str, dict[str, int]]] = {}

    def __bool__(self) -> bool:
        return bool(self._noted)

    def note(self, kind: str, name: str, detail: str = "") -> None:
        """Remember that `kind` holds of `name` ("task a", "query 3").

        Args:
            kind: what was done, in words that are equal for all that it is done to.
            name: what it was done to; the same one counts once (of the first `NAMES`). Empty: something without a
                name, each counts.
            detail: `kind` in the words of this one; told of the first.
        """
        message = detail or kind
        _, names = self._noted.setdefault(kind, (f"{name}: {message}" if name else message, {}))
        if len(names) >= NAMES and name not in names:
            name = ""
        names[name] = 1 if name else names.get(name, 0) + 1

    def found(self) -> dict[str, list[str]]:
        """Each kind, and the names that it holds of (of the first `NAMES`)."""
        return {kind: [name for name in names if name] for kind, (_, names) in self._noted.items()}

    def tell(self, logger: logging.Logger) -> None:
        """One warning for each kind, with up to three names and a count; what was told is forgotten."""
        noted, self._noted = self._noted, {}
        for message, names in noted.values():
            others = [name for name in names if name][1:3]
            more = sum(names.values()) - 1 - len(others)
            same = [", ".join(others)] * bool(others) + [f"{more} more"] * bool(more)
            logger.warning("%s%s", message, f"; the same for {' and '.join(same)}" if same else "")

    def tell_first(self, logger: logging.Logger, said: set[str]) -> None:
        """One warning for each kind that is not in `said`, and is from now on: of the first, since more may come."""
        noted, self._noted = self._noted, {}
        for kind, (message, _) in noted.items():
            if kind not in said:
                said.add(kind)
                logger.warning("%s; the same may hold for others", message)


def render_task(task: Task, *, num_demonstrations: int = 2, explanations: bool = False) -> str:
    """Definition and demonstrations, what the hypernetwork reads (Def+2Pos by default)."""
    return "".join(pieces(task, num_demonstrations, explanations))


def render_in_context(task: Task, query: str, *, num_demonstrations: int = 2, explanations: bool = False) -> str:
    """Definition, demonstrations and the query to answer, what an in-context model reads.

    Raises:
        HartError: the query is empty.
    """
    return "".join(pieces(task, num_demonstrations, explanations)) + unanswered(query)


def pieces(task: Task, num_demonstrations: int, explanations: bool) -> list[str]:
    """The definition, empty where there is none, and each demonstration that is wanted."""
    chosen = enumerate(task.demonstrations[:num_demonstrations], start=1)
    return [
        _sentence("Definition: ", task.definition) + "\n\n" if task.definition.strip() else "",
        *(_example(i, each, explanations) for i, each in chosen),
    ]


def _example(number: int, demonstration: Demonstration, explanations: bool) -> str:
    lines = [
        f" Positive Example {number} -",
        _sentence("Input: ", demonstration.input),
        _sentence(" Output: ", demonstration.output),
    ]
    if explanations and demonstration.explanation.strip():
        lines.append(_sentence(" Explanation: ", demonstration.explanation))
    return "\n".join(lines) + "\n\n"


def unanswered(query: str, blank: bool = False) -> str:
    """The query behind the demonstrations; one without a word is refused unless it is expected (`blank`)."""
    query_line = _sentence("Input: ", query_text(query, blank=blank))
    return f"Now complete the following example -\n{query_line}\nOutput: "


def _sentence(opening: str, text: str) -> str:
    sentence = opening + text.strip()
    return sentence if sentence[-1] in string.punctuation else sentence + "."


def query_text(query: str, name: str = "", blank: bool = False) -> str:
    """The query without the white space around it.

    Raises:
        HartError: nothing is left, unless that is expected (`blank`), or it holds half of a surrogate pair.
    """
    stripped = check_text(query.strip(), name or "the query")
    if not stripped and not blank:
        raise HartError(f"{name or 'the query'} is empty; give the text that the task is to be applied to")
    return stripped
