"""What requests are checked by before the model sees them: tokens, of which a model reads so many and no more.

Tokenising takes time in proportion to the texts, which one request may have a mebibyte of. So it is done in a thread
beside the event loop, where it stops nobody; fast tokenizers work without the interpreter's lock.
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
    """The limits of a model, for callers in the thread that `aside` uses; so is its `tokenizer`.

    Args:
        tokenizer, reader: the main model's and its hypernetwork's, which nobody else uses meanwhile.
        form: how the model reads.
        room: tokens that a query and its answer may have together; None: any number.
        model: its name, by which bundled ones are known.
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
        # Beginning and end of sequence, or the chat template.
        self._around = len(self._unlimited.encode_query(tokenizer, "a")) - len(self._tokens("a"))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tokens")

    async def aside(self, call: Callable[..., T], *args: Any) -> T:
        """What a function that tokenises gives, beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *args)

    def close(self) -> None:
        self._thread.shutdown()

    def task(self, task: Task) -> int:
        """How many demonstrations the model will read.

        Raises:
            HartError: the model would read nothing of it, or what stands first is too long.
        """
        limit, form = self._form.max_demonstrations_length, self._form
        lacking = form.lacks(task)
        if lacking is not None:
            raise HartError(f"{lacking}: empty, and this model reads nothing else of a task")
        if form.prompt_format == "instructions":
            defined = bool(task.definition.strip())
            first = "definition" if defined else "demonstrations.0"
            alone = len(self._encode_task(task, 0 if defined else 1))
            if alone > limit:
                raise HartError(f"{first}: has {alone} tokens with its heading, the model reads {limit}")
        return sum(map(self._read, form.groups(task)))

    def _read(self, task: Task) -> int:
        """How many demonstrations of a group will be read."""
        limit = self._form.max_demonstrations_length
        most = min(self._form.num_demonstrations, len(task.demonstrations))

        def fits(count: int) -> bool:
            return len(self._encode_task(task, count)) <= limit

        # In growing steps, so that what is far beyond the limit is never looked at.
        low, step = 0, 1
        while low < most and fits(min(low + step, most)):
            low, step = min(low + step, most), 2 * step
        return low + bisect_left(range(low + 1, min(low + step, most)), True, key=lambda count: not fits(count))

    def query(self, text: str, where: str, answer: int) -> None:
        """Check a query that is to have an answer of so many tokens at most.

        Raises:
            HartError: it is longer than the model reads, or has nothing that the tokenizer sees.
        """
        count = len(self._tokens(text.strip()))
        if not count:
            raise HartError(f"{where}: has no token of this model (characters without width?); give it a text")
        self._fits(count + self._around, where, answer)

    def far(self, texts: Sequence[str]) -> list[int]:
        """Numbers of the queries, from 0, that are far from what a bundled model was trained on."""
        return [number for number, text in enumerate(texts) if is_far(self._model, self._tokens(text.strip()))]

    def conversation(self, messages: Sequence[Mapping[str, str]], where: str, answer: int) -> list[int]:
        """The tokens of a conversation that is to have an answer of so many tokens at most.

        Raises:
            HartError: they are more than the model reads, or its chat template refuses the messages.
        """
        tokens = self._form.encode_conversation(self.tokenizer, messages)
        self._fits(len(tokens), where, answer)
        return tokens

    def _fits(self, count: int, where: str, answer: int) -> None:
        if count > self._form.max_query_length:
            raise TooLong(f"{where}: has {count} tokens, the model reads {self._form.max_query_length}")
        # The last token of an answer is not read.
        if self._room is not None and count + answer - 1 > self._room:
            raise TooLong(
                f"{where}: has {count} tokens, and an answer of {answer} goes beyond the {self._room} positions of the "
                "model; shorten one of the two"
            )

    def choice(self, text: str, where: str) -> int:
        """The tokens of an answer.

        Raises:
            HartError: they are more than the model was trained to give.
        """
        count = len(self._unlimited.encode_target(self.tokenizer, text))  # end of sequence included
        if count > self._form.max_target_length:
            raise HartError(f"{where}: has {count} tokens, the model reads {self._form.max_target_length}")
        return count

    def classes(self, choices: Sequence[str], where: str) -> tuple[list[str], int]:
        """Choices to choose from without white space around them, and the tokens of the longest.

        Raises:
            HartError: as `choice`, or two of them read the same, or are the same to the model.
        """
        texts = check_classes(choices, where)
        longest = max(self.choice(text, f"{where}.{number}") for number, text in enumerate(texts))
        check_tokens(self.tokenizer, texts, self._form.max_target_length, where)
        return texts, longest

    def _encode_task(self, task: Task, count: int) -> list[int]:
        return replace(self._unlimited, num_demonstrations=count).encode_task(self._reader, task)

    def _tokens(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
