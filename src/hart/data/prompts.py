"""Text of a task as models read it, and its tokens.

The format is Tk-Instruct's "Def+2Pos" (section 4.1; Wang et al. 2022), white space included: the
definition, a blank line, then the first positive examples, each introduced by a line that begins
with a space. Texts are stripped and closed with a full stop unless they end in punctuation. For
in-context models the query follows, unanswered. The hypernetwork reads the text without a query,
the main model the raw query alone (as HINT does).

P3's rows are whole prompts already (section 4.2), so there the format is "prompts": the input's and
then the target's tokens of each demonstration, as T0 reads and writes them, one after the other; the
target ends with the end-of-sequence token, which separates them. No definition is read.

Limits (section 8.1.3): an example is added only while the whole text still fits, the first that
does not fit ends the list; what is then still too long is cut from the end. No query is ever left
out. Every sequence ends with the end-of-sequence token, also where it was cut; a query has none where
the main model is to read it as T0 did.
"""

import logging
import string
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import accumulate
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


@dataclass(frozen=True)
class Lengths:
    """Longest sequences in tokens, end-of-sequence token included (section 8.1.3).

    Raises:
        HartError: a length that leaves no room for a token beside the end-of-sequence token.
    """

    demonstrations: int = 1024
    query: int = 384
    target: int = 128

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value < 2:
                raise HartError(f"max_{field.name}_length: must be at least 2 tokens, not {value}")


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
            name: what it was done to; the same one counts once. Empty: something without a name, each counts.
            detail: `kind` in the words of this one; told of the first.
        """
        message = detail or kind
        _, names = self._noted.setdefault(kind, (f"{name}: {message}" if name else message, {}))
        names[name] = 1 if name else names.get(name, 0) + 1

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
                logger.warning("%s; others may be cut, too", message)


def render_task(task: Task, *, num_demonstrations: int = 2, explanations: bool = False) -> str:
    """Definition and demonstrations, what the hypernetwork reads (Def+2Pos by default)."""
    return "".join(_pieces(task, num_demonstrations, explanations))


def render_in_context(task: Task, query: str, *, num_demonstrations: int = 2, explanations: bool = False) -> str:
    """Definition, demonstrations and the query to answer, what an in-context model reads.

    Raises:
        HartError: the query is empty.
    """
    return "".join(_pieces(task, num_demonstrations, explanations)) + _unanswered(query)


def encode_task(
    tokenizer: Tokenizer,
    task: Task,
    lengths: Lengths,
    *,
    num_demonstrations: int = 2,
    explanations: bool = False,
    prompt_format: PromptFormat = "instructions",
    cuts: Cuts | None = None,
) -> list[int]:
    """Tokens of a task without a query, at most ``lengths.demonstrations``.

    "instructions" is `render_task`, "prompts" the demonstrations alone, each with its own end of
    sequence. A definition, or a first demonstration's input, that alone is too long is cut from the
    end. What did not fit is noted in ``cuts``, and not told without it.

    Raises:
        HartError: a task without the definition that the format needs.
    """
    if prompt_format == "prompts":
        return _encode_prompts(tokenizer, task, [], lengths.demonstrations, num_demonstrations, cuts)
    return _encode_assembled(tokenizer, task, "", lengths.demonstrations, num_demonstrations, explanations, cuts)


def encode_in_context(
    tokenizer: Tokenizer,
    task: Task,
    query: str,
    max_length: int,
    *,
    num_demonstrations: int = 2,
    explanations: bool = False,
    prompt_format: PromptFormat = "instructions",
    input_eos: bool = True,
    cuts: Cuts | None = None,
    blank: bool = False,
) -> list[int]:
    """Tokens of definition, demonstrations and query, at most ``max_length``.

    Examples give way to the query. Where definition and query alone are too long, the end of the
    text is cut, as Tk-Instruct does. ``input_eos`` is whether a sequence of "prompts" ends with the
    end-of-sequence token. What did not fit is noted in ``cuts``, and not told without it. A query that is
    ``blank`` is refused unless that is expected, as of official data.

    Raises:
        HartError: the query is empty, or a task without the definition that the format needs.
    """
    if prompt_format == "prompts":
        read = _tokens(tokenizer, _not_empty(query, blank=blank))
        _note_length(read, max_length, input_eos, "query", cuts, f"task {task.label}")
        encoded = _cut(read, max_length, tokenizer, eos=input_eos)
        return _encode_prompts(tokenizer, task, encoded, max_length, num_demonstrations, cuts)
    tail = _unanswered(query, blank)
    return _encode_assembled(tokenizer, task, tail, max_length, num_demonstrations, explanations, cuts)


def encode_query(
    tokenizer: Tokenizer,
    text: str,
    lengths: Lengths,
    *,
    eos: bool = True,
    cuts: Cuts | None = None,
    name: str = "",
    blank: bool = False,
) -> list[int]:
    """Tokens of a raw query for the main model, at least one, cut from the end to ``lengths.query``.

    A query of characters that the tokenizer drops is read as the end of sequence alone, and so is a blank one, which is
    refused unless ``blank`` says that it is expected, as in official data. A cut is noted in ``cuts`` under ``name``
    ("query 3"), and not told without it.

    Raises:
        HartError: the query is empty, or holds half of a surrogate pair.
    """
    read = _tokens(tokenizer, _not_empty(text, name, blank))
    _note_length(read, lengths.query, eos, "query", cuts, name)
    return _cut(read, lengths.query, tokenizer, eos=eos)


def encode_target(
    tokenizer: Tokenizer, text: str, lengths: Lengths, *, cuts: Cuts | None = None, name: str = ""
) -> list[int]:
    """Tokens of a reference answer, cut from the end to ``lengths.target``; it may be empty.

    A cut is noted as by `encode_query`.
    """
    read = _tokens(tokenizer, check_text(text.strip(), name or "the answer"))
    _note_length(read, lengths.target, True, "target", cuts, name)
    return _cut(read, lengths.target, tokenizer)


def _note_length(tokens: list[int], limit: int, eos: bool, what: str, cuts: Cuts | None, name: str) -> None:
    if cuts is not None and len(tokens) + eos > limit:
        cuts.note(f"cut the end of the {what} to stay within {limit} tokens", name)


def _pieces(task: Task, num_demonstrations: int, explanations: bool) -> list[str]:
    """The definition, and each demonstration that is wanted."""
    _check_number(num_demonstrations)
    if not task.definition.strip():
        raise HartError(f"task {task.label}: the definition is empty; say what the task asks for")
    chosen = enumerate(task.demonstrations[:num_demonstrations], start=1)
    return [
        _sentence("Definition: ", task.definition) + "\n\n",
        *(_example(i, each, explanations) for i, each in chosen),
    ]


def _check_number(num_demonstrations: int) -> None:
    if num_demonstrations < 0:
        raise HartError(f"num_demonstrations: must be at least 0, not {num_demonstrations}")


def _example(number: int, demonstration: Demonstration, explanations: bool) -> str:
    lines = [
        f" Positive Example {number} -",
        _sentence("Input: ", demonstration.input),
        _sentence(" Output: ", demonstration.output),
    ]
    if explanations and demonstration.explanation.strip():
        lines.append(_sentence(" Explanation: ", demonstration.explanation))
    return "\n".join(lines) + "\n\n"


def _unanswered(query: str, blank: bool = False) -> str:
    query_line = _sentence("Input: ", _not_empty(query, blank=blank))
    return f"Now complete the following example -\n{query_line}\nOutput: "


def _sentence(opening: str, text: str) -> str:
    sentence = opening + text.strip()
    return sentence if sentence[-1] in string.punctuation else sentence + "."


def _not_empty(query: str, name: str = "", blank: bool = False) -> str:
    stripped = check_text(query.strip(), name or "the query")
    if not stripped and not blank:
        raise HartError(f"{name or 'the query'} is empty; give the text that the task is to be applied to")
    return stripped


def _encode_assembled(
    tokenizer: Tokenizer,
    task: Task,
    tail: str,
    max_length: int,
    num_demonstrations: int,
    explanations: bool,
    cuts: Cuts | None,
) -> list[int]:
    pieces = _pieces(task, num_demonstrations, explanations)
    kept, tokens = _fitting(tokenizer, pieces, tail, max_length)
    wanted = len(pieces) - 1
    if cuts is not None:
        limit = f"to stay within {max_length} tokens"
        numbers = ", ".join(str(number) for number in range(kept + 1, wanted + 1))
        left_out = f"left out demonstration {numbers} of {wanted}"
        if len(tokens) >= max_length:
            kind = f"cut the end of the {'text with its query' if tail else 'definition'} {limit}"
            cuts.note(kind, f"task {task.label}", f"{left_out} and {kind}" if kept < wanted else kind)
        elif kept < wanted:
            cuts.note(f"left out demonstrations {limit}", f"task {task.label}", f"{left_out} {limit}")
    return _cut(tokens, max_length, tokenizer)


def _fitting(tokenizer: Tokenizer, pieces: Sequence[str], tail: str, max_length: int) -> tuple[int, list[int]]:
    """How many demonstrations fit behind the definition, and the tokens of the text with them.

    Only the tokens of the whole text count, which are not those of its pieces one after the other. A longer list has
    never fewer of them, so the number is searched for: most often the first try is right, and the one above it.
    """
    sizes = list(accumulate(map(len, pieces)))
    tokens: list[int] = []
    ratio = _CHARACTERS_PER_TOKEN
    fits, fails = -1, len(pieces)
    while fails - fits > 1:
        guess = bisect_left(sizes, ratio * max_length - len(tail)) - 1
        guess = min(max(guess, fits + 1), fails - 1)
        text = "".join(pieces[: guess + 1]) + tail
        tried = _tokens(tokenizer, text)
        if len(tried) < max_length or not guess:  # one is left for the end of sequence; without any it is cut
            fits, tokens = guess, tried
        else:
            fails = guess
        ratio = len(text) / max(len(tried), 1)
    return fits, tokens


_CHARACTERS_PER_TOKEN = 4.0  # of English; the first guess


def _encode_prompts(
    tokenizer: Tokenizer,
    task: Task,
    query: list[int],
    max_length: int,
    num_demonstrations: int,
    cuts: Cuts | None,
) -> list[int]:
    """Demonstrations as many as fit before the query, in order; without a query at least one, cut if it must be."""
    _check_number(num_demonstrations)
    room = max_length - len(query)
    chosen = task.demonstrations[:num_demonstrations]
    tokens: list[int] = []
    for index, demonstration in enumerate(chosen):
        read = _tokens(tokenizer, demonstration.input.strip())
        answer = [*_tokens(tokenizer, demonstration.output.strip()), tokenizer.eos_token_id]
        if len(tokens) + len(read) + len(answer) > room:
            only = not tokens and not query
            parts = "input" if len(answer) <= room else "input and target"
            if only:
                answer = [*answer[: room - 1], tokenizer.eos_token_id] if len(answer) > room else answer
                tokens = read[: room - len(answer)] + answer
            if cuts is not None:
                limit = f"to stay within {max_length} tokens"
                kind = f"left out demonstrations {limit}"
                if only:
                    kind = f"cut the {parts} of the only demonstration that it shows {limit}"
                shown = "" if only else f"shows {index} of {len(chosen)} demonstrations {limit}"
                cuts.note(kind, f"task {task.label}", shown)
            break
        tokens += read + answer
    return tokens + query if tokens or query else [tokenizer.eos_token_id]


def _tokens(tokenizer: Tokenizer, text: str) -> list[int]:
    # Without special tokens, so that cutting never touches the end-of-sequence token; not verbose,
    # because a text longer than what the tokenizer was configured for is expected here.
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def _cut(tokens: list[int], max_length: int, tokenizer: Tokenizer, *, eos: bool = True) -> list[int]:
    """Never empty, which no model could read."""
    return [*tokens[: max_length - 1], tokenizer.eos_token_id] if eos or not tokens else tokens[:max_length]
