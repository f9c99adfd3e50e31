"""Checks of requests against the model's length limits in tokens, before the model runs.

The time of tokenisation is proportional to the texts, up to a mebibyte per request, so it runs in a separate thread and
does not block the event loop; fast tokenizers release the interpreter's lock.
"""

import asyncio
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

from transformers import PreTrainedTokenizerBase

from hart.data.input_format import InputFormat
from hart.data.tasks import Task
from hart.errors import HartError
from hart.model.classifying import check_classes, check_tokens
from hart.model.familiarity import is_far

_UNLIMITED = 10**9

T = TypeVar("T")


class TooLong(HartError):
    """A text has more tokens than the model reads."""


class Checks:
    """Checks by the limits of a model; all methods and `tokenizer` are for use in the thread of `aside`.

    Args:
        tokenizer, reader: tokenizers of the main model and of its hypernetwork, for exclusive use.
        form: the model's input format.
        room: most tokens of a query with its answer; None: any number.
        model: name of the model, by which bundled models are recognised.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        reader: PreTrainedTokenizerBase,
        form: InputFormat,
        room: int | None = None,
        model: str = "",
    ) -> None:
        self._model = model
        self.tokenizer = tokenizer
        self._reader = reader
        self._form = form
        self._room = room
        self._unlimited = replace(
            form,
            max_demonstrations_length=_UNLIMITED,
            max_query_length=_UNLIMITED,
            max_target_length=_UNLIMITED,
        )
        # Number of tokens for beginning and end of sequence, or for the chat template.
        self._around = len(self._unlimited.encode_query(tokenizer, "a")) - len(self._tokens("a"))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tokens")

    async def aside(self, call: Callable[..., T], *args: Any) -> T:
        """The result of a call that tokenises, run in the thread beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *args)

    def close(self) -> None:
        self._thread.shutdown()

    def task(self, task: Task) -> int:
        """The number of demonstrations that the model will read.

        Raises:
            HartError: the model would read no text of the task, or its first text is too long.
        """
        limit, form = self._form.max_demonstrations_length, self._form
        lacking = form.lacks(task)
        if lacking is not None:
            raise HartError(f"{lacking}: is empty, and this model reads nothing else of a task")
        if form.prompt_format == "instructions":
            defined = bool(task.definition.strip())
            first = "definition" if defined else "demonstrations.0"
            alone = len(self._encode_task(task, 0 if defined else 1))
            if alone > limit:
                raise HartError(
                    f"{first}: has {alone} tokens with its heading, and the model reads {limit}; shorten it"
                )
        return sum(map(self._read, form.groups(task)))

    def _read(self, task: Task) -> int:
        """The number of demonstrations in a group that will be read."""
        limit = self._form.max_demonstrations_length
        most = min(self._form.num_demonstrations, len(task.demonstrations))

        def fits(count: int) -> bool:
            return len(self._encode_task(task, count)) <= limit

        # In growing steps, so that texts far beyond the limit are not tokenised.
        low, step = 0, 1
        while low < most and fits(min(low + step, most)):
            low, step = min(low + step, most), 2 * step
        return low + bisect_left(range(low + 1, min(low + step, most)), True, key=lambda count: not fits(count))

    def query(self, text: str, where: str, answer: int) -> None:
        """Check a query with an answer of at most `answer` tokens.

        Raises:
            HartError: the query is too long, or has no tokens.
        """
        count = len(self._tokens(text.strip()))
        if not count:
            raise HartError(f"{where}: has no tokens in this model (characters without width?); give it a text")
        self._fits(count + self._around, where, answer)

    def far(self, texts: Sequence[str]) -> list[int]:
        """Indices of the queries that are far from a bundled model's training data."""
        return [number for number, text in enumerate(texts) if is_far(self._model, self._tokens(text.strip()))]

    def conversation(self, messages: Sequence[Mapping[str, str]], where: str, answer: int) -> list[int]:
        """The tokens of a conversation, checked for an answer of at most `answer` tokens.

        Raises:
            HartError: the conversation is too long, or the chat template refuses the messages.
        """
        tokens = self._form.encode_conversation(self.tokenizer, messages)
        self._fits(len(tokens), where, answer)
        return tokens

    def _fits(self, count: int, where: str, answer: int) -> None:
        if count > self._form.max_query_length:
            raise TooLong(f"{where}: has {count} tokens, the model reads {self._form.max_query_length}")
        # The model does not read the last token of an answer.
        if self._room is not None and count + answer - 1 > self._room:
            raise TooLong(
                f"{where}: has {count} tokens, and an answer of {answer} goes beyond the {self._room} positions of the "
                "model; shorten one of the two"
            )

    def choice(self, text: str, where: str) -> int:
        """The number of tokens of a choice.

        Raises:
            HartError: it is above the model's limit of targets.
        """
        count = len(self._unlimited.encode_target(self.tokenizer, text))  # end of sequence included
        if count > self._form.max_target_length:
            raise HartError(f"{where}: has {count} tokens, the model reads {self._form.max_target_length}")
        return count

    def classes(self, choices: Sequence[str], where: str) -> tuple[list[str], int]:
        """The stripped choices, and the number of tokens of the longest.

        Raises:
            HartError: as in `choice`, or two choices are equal (`check_classes`) or have the same tokens.
        """
        texts = check_classes(choices, where)
        longest = max(self.choice(text, f"{where}.{number}") for number, text in enumerate(texts))
        check_tokens(self.tokenizer, texts, self._form.max_target_length, where)
        return texts, longest

    def _encode_task(self, task: Task, count: int) -> list[int]:
        return replace(self._unlimited, num_demonstrations=count).encode_task(self._reader, task)

    def _tokens(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
