"""Stop sequences: texts that end an answer, which is cut before them.

Of several stop sequences the first complete one counts, and of those complete at the same character the longest. So the
cut only depends on the text, not on its division into tokens or pieces of a stream.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, StoppingCriteria

from hart.model.answering import Answer


def find_stop(text: str, stop: Sequence[str]) -> int | None:
    """The position at which a text is cut; None if it has no stop sequence."""
    found = [(begin + len(each), begin) for each in stop if (begin := text.find(each)) >= 0]
    return min(found)[1] if found else None


def cut_at_stop(answer: Answer, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> Answer:
    """The answer with its text cut before the first stop sequence, and tokens up to the one that completes it."""
    begin = find_stop(answer.text, stop)
    if begin is None:
        return answer

    def stopped(count: int) -> bool:
        return find_stop(str(tokenizer.decode(list(answer.ids[:count]), skip_special_tokens=True)), stop) is not None

    count = bisect_left(range(answer.tokens), True, key=stopped)
    scores = None if answer.scores is None else answer.scores[:count]
    return replace(answer, text=answer.text[:begin], ids=answer.ids[:count], finished=True, scores=scores)


class StopRows(StoppingCriteria):
    """Stopping criterion that ends each row with a stop sequence; for one call of `generate`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> None:
        self._tokenizer, self._stop = tokenizer, stop
        self._begin: int | None = None
        # Number of last tokens that can contain a just completed sequence, as a token has at least one byte of UTF-8.
        self._window = 4 * max(map(len, stop)) + 8

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        if self._begin is None:  # the first call, with answers of one token
            self._begin = input_ids.shape[1] - 1
        begin = max(self._begin, input_ids.shape[1] - self._window)
        texts = self._tokenizer.batch_decode(input_ids[:, begin:], skip_special_tokens=True)
        stopped = [find_stop(text, self._stop) is not None for text in texts]
        return torch.tensor(stopped, device=input_ids.device)


class HoldBack:
    """Passes on the pieces of a text up to its first stop sequence, holding back text that may become part of one."""

    def __init__(self, stop: Sequence[str], emit: Callable[[str], None]) -> None:
        self._stop, self._emit = stop, emit
        self._held: str | None = ""

    def __call__(self, piece: str, end: bool = False) -> None:
        """Process the next piece; `end`: it is the last."""
        if self._held is None:  # after a stop sequence
            return
        text = self._held + piece
        cut = find_stop(text, self._stop)
        safe = cut if cut is not None else len(text) if end else self._safe(text)
        self._held = None if cut is not None else text[safe:]
        if safe:
            self._emit(text[:safe])

    def _safe(self, text: str) -> int:
        """Number of characters before the longest end of the text that is the beginning of a stop sequence."""
        longest = max(map(len, self._stop), default=1)
        ends = range(max(0, len(text) - longest + 1), len(text))
        return next((begin for begin in ends if any(each.startswith(text[begin:]) for each in self._stop)), len(text))
