"""Log-probabilities of an answer's tokens, in OpenAI's two forms.

A token is shown as the text that it adds behind the one before it, so that the tokens together are the answer; special
tokens, the end of sequence among them, by their names.
"""

from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from hart.model.answering import Answer
from hart.serving.openai_replies import ChatLogProbs, LogProbs, TokenLogProb, TopLogProb

_LEAST = -9999.0
"""What OpenAI gives for an impossible token; JSON has no infinity."""


class Token(NamedTuple):
    """A token's text and log-probability, and those of the likeliest ones there, itself not counted among them."""

    text: str
    logprob: float
    top: list[tuple[str, float]]


def spelled(tokenizer: PreTrainedTokenizerBase, answer: Answer) -> list[Token]:
    """The tokens of an answer that has scores; takes time in proportion to how many likeliest ones it has."""
    scores = answer.scores or ()
    before = [None, *answer.ids[:-1]]
    pairs = [
        (previous, id)
        for previous, chosen, score in zip(before, answer.ids, scores, strict=True)
        for id in (chosen, *(each for each, _ in score.top))
    ]
    texts = iter(_added(tokenizer, pairs))
    tokens = []
    for score in scores:
        text = next(texts)
        top = [(next(texts), _finite(logprob)) for _, logprob in score.top]
        tokens.append(Token(text, _finite(score.logprob), top))
    return tokens


def of_completion(tokens: Sequence[Token]) -> LogProbs:
    offsets = [0]
    for token in tokens:
        offsets.append(offsets[-1] + len(token.text))
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
                **_shown(token.text, token.logprob).model_dump(),
                top_logprobs=[_shown(text, logprob) for text, logprob in token.top],
            )
            for token in tokens
        ]
    )


def _by_text(likeliest: Sequence[tuple[str, float]]) -> dict[str, float]:
    """Log-probabilities by the texts of tokens; of those that read alike that of the first."""
    found: dict[str, float] = {}
    for text, logprob in likeliest:
        found.setdefault(text, logprob)
    return found


def _shown(text: str, logprob: float) -> TopLogProb:
    whole = "\ufffd" not in text
    return TopLogProb(token=text, logprob=logprob, bytes=list(text.encode()) if whole else None)


def _finite(logprob: float) -> float:
    return max(logprob, _LEAST)


def _added(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[int | None, int]]) -> list[str]:
    """What the second token of each pair adds to the text of the first; without a first one its own text."""
    special = set(tokenizer.all_special_ids)
    different = list(dict.fromkeys(pairs))
    begins = [[] if first is None or first in special else [first] for first, _ in different]
    wholes = [[*begin, second] for begin, (_, second) in zip(begins, different, strict=True)]
    read = zip(different, tokenizer.batch_decode(begins), tokenizer.batch_decode(wholes), strict=True)
    texts = {
        pair: str(tokenizer.convert_ids_to_tokens(pair[1])) if pair[1] in special else whole[len(begin) :]
        for pair, begin, whole in read
    }
    return [texts[pair] for pair in pairs]
