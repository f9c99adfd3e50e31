"""Tokenisation within length limits: fitting parts of a text, cutting, special tokens and chat templates.

These are the steps of `hart.data.input_format`, which decides what a model reads.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from jinja2 import TemplateError  # raised by the chat templates that transformers renders

from hart.data.prompts import Cuts, Tokenizer
from hart.errors import HartError, first_line


def begin_of(tokenizer: Any) -> list[int]:
    """The beginning-of-sequence token that a tokenizer puts before a decoder-only model's text, if it has one."""
    begin = getattr(tokenizer, "bos_token_id", None)
    if begin is None or tokenizer("a", add_special_tokens=True, verbose=False)["input_ids"][0] != begin:
        return []
    return [begin]


def in_template(tokenizer: Any, text: str, limit: int) -> tuple[list[int], bool]:
    """The tokens of a user's message in the tokenizer's chat template, up to the answer, and whether it fits.

    The end of a too long message is cut.

    Raises:
        HartError: as in `templated`, or no token of the message would be left.
    """
    read = tokens_of(tokenizer, text)
    kept = len(read)
    while True:
        message = text if kept == len(read) else tokenizer.decode(read[:kept])
        tokens = templated(tokenizer, [{"role": "user", "content": message}])
        if len(tokens) <= limit:
            return tokens, kept == len(read)
        around = len(tokens) - kept
        kept = limit - around
        if kept < 1:
            raise HartError(f"data.chat_template: adds {around} tokens to a message, and the limit is {limit}")


def templated(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """The tokens of messages in the tokenizer's chat template, up to the answer.

    Raises:
        HartError: the tokenizer has no template, or the template refuses the messages, as many do a system message or
            roles that do not alternate.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise HartError("data.chat_template: the base's tokenizer has no chat template; set it to false")
    try:
        tokens: list[int] = tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, tokenize=True, return_dict=False
        )
    except TemplateError as error:
        raise HartError(
            f"messages: the chat template of the base's tokenizer refuses them ({first_line(error)})"
        ) from error
    return tokens


def note_length(tokens: list[int], limit: int, eos: bool, what: str, cuts: Cuts | None, name: str) -> None:
    if cuts is not None and len(tokens) + eos > limit:
        cuts.note(f"cut the end of the {what} to stay within {limit} tokens", name)


def fitting(tokenizer: Tokenizer, parts: Sequence[str], tail: str, max_length: int) -> tuple[int, list[int]]:
    """The number of parts after the first one that fit into `max_length`, and the tokens of the text with them.

    The first part is always included. The tokens of a text are not the concatenated tokens of its parts, but grow with
    the number of parts, so the number is found by search, usually with two tokenisations.
    """
    sizes = list(accumulate(map(len, parts)))
    tokens: list[int] = []
    ratio = _CHARACTERS_PER_TOKEN
    fits, fails = -1, len(parts)
    while fails - fits > 1:
        guess = bisect_left(sizes, ratio * max_length - len(tail)) - 1
        guess = min(max(guess, fits + 1), fails - 1)
        text = "".join(parts[: guess + 1]) + tail
        tried = tokens_of(tokenizer, text)
        if len(tried) < max_length or not guess:  # leaves one for the end of sequence; the first part is kept anyway
            fits, tokens = guess, tried
        else:
            fails = guess
        ratio = len(text) / max(len(tried), 1)
    return fits, tokens


_CHARACTERS_PER_TOKEN = 4.0  # English; for the first guess


def tokens_of(tokenizer: Tokenizer, text: str) -> list[int]:
    # Without special tokens, so that cutting never touches the end-of-sequence token; not verbose,
    # because a text longer than what the tokenizer was configured for is expected here.
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def cut_to(tokens: list[int], max_length: int, tokenizer: Tokenizer, *, eos: bool = True) -> list[int]:
    """At most `max_length` tokens; with `eos`, or if there are none, the last is the end of sequence. Never empty."""
    return [*tokens[: max_length - 1], tokenizer.eos_token_id] if eos or not tokens else tokens[:max_length]
