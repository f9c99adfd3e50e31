"""What requests are checked by before the model sees them: tokens, of which a model reads so many and no more.

Tokenising takes time in proportion to the texts, which one request may have a mebibyte of. So it is done in a thread
beside the event loop, where it stops nobody; fast tokenizers work without the interpreter's lock.
"""

import asyncio
from bisect import bisect_left
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

from transformers import PreTrainedTokenizerBase

from hart.data.input_format import InputFormat
from hart.data.tasks import Task
from hart.errors import HartError

_UNLIMITED = 10**9

T = TypeVar("T")


class Checks:
    """The limits of a model, for callers in the thread that `aside` uses.

    Args:
        tokenizer: one that nobody else uses meanwhile.
        form: how the model reads.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, form: InputFormat) -> None:
        self._tokenizer = tokenizer
        self._form = form
        self._unlimited = replace(form, max_demonstrations_length=_UNLIMITED, max_target_length=_UNLIMITED)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tokens")

    async def aside(self, call: Callable[..., T], *args: Any) -> T:
        """What a function that tokenises gives, beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *args)

    def close(self) -> None:
        self._thread.shutdown()

    def task(self, task: Task) -> int:
        """How many demonstrations the model will read.

        Raises:
            HartError: the model needs a definition and there is none, or it is too long.
        """
        limit = self._form.max_demonstrations_length
        most = min(self._form.num_demonstrations, len(task.demonstrations))
        if self._form.prompt_format == "instructions":
            if not task.definition.strip():
                raise HartError("definition: is empty, and this model reads it; say what the task asks for")
            alone = len(self._encode_task(task, 0))
            if alone > limit:
                raise HartError(f"definition: has {alone} tokens with its heading, the model reads {limit}")

        def fits(count: int) -> bool:
            return len(self._encode_task(task, count)) <= limit

        # In growing steps, so that what is far beyond the limit is never looked at.
        low, step = 0, 1
        while low < most and fits(min(low + step, most)):
            low, step = min(low + step, most), 2 * step
        return low + bisect_left(range(low + 1, min(low + step, most)), True, key=lambda count: not fits(count))

    def query(self, text: str, where: str) -> None:
        """Check a query.

        Raises:
            HartError: it is longer than the model reads, or has nothing that the tokenizer sees.
        """
        count = len(self._tokenizer(text.strip(), add_special_tokens=False, verbose=False)["input_ids"])
        if not count:
            raise HartError(f"{where}: has no token of this model (characters without width?); give it a text")
        count += self._form.input_eos
        if count > self._form.max_query_length:
            raise HartError(f"{where}: has {count} tokens, the model reads {self._form.max_query_length}")

    def choice(self, text: str, where: str) -> None:
        """Raise `HartError` if an answer is longer than the model was trained to give."""
        count = len(self._unlimited.encode_target(self._tokenizer, text))  # end of sequence included
        if count > self._form.max_target_length:
            raise HartError(f"{where}: has {count} tokens, the model reads {self._form.max_target_length}")

    def _encode_task(self, task: Task, count: int) -> list[int]:
        return replace(self._unlimited, num_demonstrations=count).encode_task(self._tokenizer, task)
