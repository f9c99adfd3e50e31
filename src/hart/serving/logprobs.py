"""Log-probabilities of an answer's tokens, in OpenAI's two formats.

A token is shown as the text that it adds to the tokens before it, so that all tokens together are the answer. If a
character takes several tokens, the last one shows it and the others are empty. Special tokens, including the end of
sequence, are shown by their names.
"""

from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from hart.model.answering import Answer
from hart.serving.openai_replies import ChatLogProbs, LogProbs, TokenLogProb, TopLogProb

_LEAST = -9999.0
"""OpenAI's value for an impossible token, as JSON has no infinity."""


class Token(NamedTuple):
    """A token's text and log-probability, and those of the likeliest other tokens at its position.

    `part`: whether it is one of several tokens of a character; `special`: whether it is not in the answer's text.
    """

    text: str
    logprob: float
    top: list[tuple[str, float]]
    part: bool = False
    special: bool = False


def spelled(tokenizer: PreTrainedTokenizerBase, answer: Answer) -> list[Token]:
    """The tokens of an answer with scores; the time is proportional to the number of likeliest tokens."""
    scores = answer.scores or ()
    before = [None, *answer.ids[:-1]]
    others = [(previous, id) for previous, score in zip(before, scores, strict=True) for id, _ in score.top]
    texts = iter(_added(tokenizer, others))
    special = set(tokenizer.all_special_ids)
    tokens = []
    for id, (text, part), score in zip(answer.ids, _in_turn(tokenizer, answer.ids), scores, strict=True):
        top = [(next(texts), _finite(logprob)) for _, logprob in score.top]
        tokens.append(Token(text, _finite(score.logprob), top, part, id in special))
    return tokens


def of_completion(tokens: Sequence[Token]) -> LogProbs:
    offsets = [0]
    for token in tokens:
        offsets.append(offsets[-1] + (0 if token.special else len(token.text)))
    return LogProbs(
        tokens=[token.text for token in tokens],
        token_logprobs=[token.logprob for token in tokens],
        top_logprobs=[_by_text([*token.top, (token.text, token.logprob)]) for token in tokens],
        text_offset=offsets[:-1],
    )


def of_chat(tokens: Sequence[Token]) -> ChatLogProbs:
    return ChatLogProbs(
        content=[
            TokenLogProb(
                **_shown(token.text, token.logprob, token.part).model_dump(),
                top_logprobs=[_shown(text, logprob) for text, logprob in token.top],
            )
            for token in tokens
        ]
    )


def _by_text(likeliest: Sequence[tuple[str, float]]) -> dict[str, float]:
    """Text of a token → log-probability; for tokens with the same text, that of the first."""
    found: dict[str, float] = {}
    for text, logprob in likeliest:
        found.setdefault(text, logprob)
    return found


def _shown(text: str, logprob: float, part: bool = False) -> TopLogProb:
    whole = "\ufffd" not in text and not part
    return TopLogProb(token=text, logprob=logprob, bytes=list(text.encode()) if whole else None)


def _finite(logprob: float) -> float:
    return max(logprob, _LEAST)


def _in_turn(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[tuple[str, bool]]:
    """The text that each token adds to those before it, and whether it is one of several tokens of a character."""
    special = set(tokenizer.all_special_ids)
    found: list[tuple[str, bool]] = []
    begin: list[int] = []  # the last token of the text so far, as the first token of a text may be decoded differently
    waiting: list[int] = []
    for position, id in enumerate(ids):
        if id in special:
            found.append((str(tokenizer.convert_ids_to_tokens(id)), False))
            continue
        waiting.append(id)
        text = str(tokenizer.decode([*begin, *waiting]))[len(str(tokenizer.decode(begin))) :]
        ends = position + 1 == len(ids) or ids[position + 1] in special
        if text.endswith("\ufffd") and not ends:
            found.append(("", True))
            continue
        found.append((text, len(waiting) > 1))
        begin, waiting = [id], []
    return found


def _added(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[int | None, int]]) -> list[str]:
    """The text that the second token of each pair adds to the first; without a first token, its own text."""
    special = set(tokenizer.all_special_ids)
    if not pairs:
        return []
    different = list(dict.fromkeys(pairs))
    begins = [[] if first is None or first in special else [first] for first, _ in different]
    wholes = [[*begin, second] for begin, (_, second) in zip(begins, different, strict=True)]
    read = zip(different, tokenizer.batch_decode(begins), tokenizer.batch_decode(wholes), strict=True)
    texts = {
        pair: str(tokenizer.convert_ids_to_tokens(pair[1])) if pair[1] in special else whole[len(begin) :]
        for pair, begin, whole in read
    }
    return [texts[pair] for pair in pairs]
