"""Text of a task as models read it.

The format is Tk-Instruct's "Def+2Pos" (§4.1; Wang et al. 2022), including its white space: the definition, a blank
line, then the first positive examples, each introduced by a line that begins with a space. Texts are stripped and
closed with a full stop unless they end in punctuation. For in-context models the query follows, unanswered. The
hypernetwork reads the text without a query, the main model only the raw query (as HINT does). A task without a
definition has neither the definition's line nor the blank line, and a task without demonstrations has no examples, as
in Tk-Instruct's code.

P3's rows are whole prompts already (§4.2), so its format is "prompts": the input and then the target of each
demonstration, as T0 reads and writes them. Definitions are not read.
`hart.data.input_format` turns texts into tokens and shortens those that are too long.
"""

import logging
import string
from typing import Any, Literal, Protocol

from hart.data.reading import check_text
from hart.data.tasks import Demonstration, Task
from hart.errors import HartError

PromptFormat = Literal["instructions", "prompts"]


class Tokenizer(Protocol):
    """The part of the interface of a `transformers` tokenizer that this package uses."""

    @property
    def eos_token_id(self) -> Any: ...

    def __call__(self, text: str, *, add_special_tokens: bool, verbose: bool) -> Any: ...


NAMES = 10_000
"""The most names that `Cuts` remembers per kind, so that a million cut queries do not fill the memory."""


class Cuts:
    """A record of texts that exceed limits, so that each kind of shortening is reported once for all tasks."""

    def __init__(self) -> None:
        self._noted: dict[str, tuple[str, dict[str, int]]] = {}

    def __bool__(self) -> bool:
        return bool(self._noted)

    def note(self, kind: str, name: str, detail: str = "") -> None:
        """Record that `kind` applies to `name` ("task a", "query 3").

        Args:
            kind: what was done, in words without details, which are equal for every name.
            name: the text it was done to; a name counts once (among the first `NAMES`). Empty: counts every time.
            detail: `kind` with the details of this name; the report has those of the first name.
        """
        message = detail or kind
        _, names = self._noted.setdefault(kind, (f"{name}: {message}" if name else message, {}))
        if len(names) >= NAMES and name not in names:
            name = ""
        names[name] = 1 if name else names.get(name, 0) + 1

    def found(self) -> dict[str, list[str]]:
        """Kind → the names to which it applies (the first `NAMES`)."""
        return {kind: [name for name in names if name] for kind, (_, names) in self._noted.items()}

    def tell(self, logger: logging.Logger) -> None:
        """Log one warning per kind, with up to three names and a count, and clear the record."""
        noted, self._noted = self._noted, {}
        for message, names in noted.values():
            others = [name for name in names if name][1:3]
            more = sum(names.values()) - 1 - len(others)
            same = [", ".join(others)] * bool(others) + [f"{more} more"] * bool(more)
            logger.warning("%s%s", message, f"; the same for {' and '.join(same)}" if same else "")

    def tell_first(self, logger: logging.Logger, said: set[str]) -> None:
        """Log one warning, with the first name, per kind that is not yet in `said`; add it there, clear the record."""
        noted, self._noted = self._noted, {}
        for kind, (message, _) in noted.items():
            if kind not in said:
                said.add(kind)
                logger.warning("%s; the same may hold for others", message)


def render_task(task: Task, *, num_demonstrations: int = 2, explanations: bool = False) -> str:
    """Definition and demonstrations as text, the input of the hypernetwork (Def+2Pos by default)."""
    return "".join(pieces(task, num_demonstrations, explanations))


def render_in_context(task: Task, query: str, *, num_demonstrations: int = 2, explanations: bool = False) -> str:
    """Definition, demonstrations and the query to answer as text, the input of an in-context model.

    Raises:
        HartError: the query is empty.
    """
    return "".join(pieces(task, num_demonstrations, explanations)) + unanswered(query)


def pieces(task: Task, num_demonstrations: int, explanations: bool) -> list[str]:
    """The text of the definition (empty if there is none), then those of the first demonstrations."""
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
    """The text of the query after the demonstrations; an empty query is refused unless `blank`."""
    query_line = _sentence("Input: ", query_text(query, blank=blank))
    return f"Now complete the following example -\n{query_line}\nOutput: "


def _sentence(opening: str, text: str) -> str:
    sentence = opening + text.strip()
    return sentence if sentence[-1] in string.punctuation else sentence + "."


def query_text(query: str, name: str = "", blank: bool = False) -> str:
    """The query without surrounding white space.

    Raises:
        HartError: the query is empty and `blank` is False, or it holds half of a surrogate pair.
    """
    stripped = check_text(query.strip(), name or "the query")
    if not stripped and not blank:
        raise HartError(f"{name or 'the query'} is empty; give the text that the task is to be applied to")
    return stripped
