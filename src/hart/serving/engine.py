"""A HART model behind the server: what its thread computes, and which adaptations are at hand."""

import asyncio
import copy
import dataclasses
import hashlib
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from transformers import StoppingCriteria, TextStreamer

from hart.adaptation import Adaptation
from hart.data.prompts import Lengths, encode_query, encode_target, encode_task
from hart.data.tasks import Task
from hart.errors import HartError
from hart.scoring import score_choices
from hart.serving.batching import Batcher, Job
from hart.serving.metrics import Metrics
from hart.serving.settings import MEMORY_BYTES
from hart.store import Record, Store, adaptation_id
from hart.system import HartModel

logger = logging.getLogger(__name__)

_UNLIMITED = 10**9


class StoreTrouble(Exception):
    """The store cannot be read or written; the log says why."""


class Options(NamedTuple):
    """How answers are generated; rows of equal options share a batch."""

    max_new_tokens: int
    num_beams: int = 1
    temperature: float = 0.0
    top_p: float = 1.0

    def to_kwargs(self) -> dict[str, Any]:
        """Keyword arguments of `MainModel.generate`."""
        kwargs: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "num_beams": self.num_beams}
        if self.temperature > 0:
            kwargs |= {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": 0}
        return kwargs


@dataclass
class Query:
    """One row to answer, or to score if it has `choices`."""

    text: str
    adaptation: Adaptation | None
    choices: list[str] = dataclasses.field(default_factory=list)
    emit: Callable[[str], None] | None = None


@dataclass
class Adapted:
    """An adaptation at hand.

    Attributes:
        new: whether it was generated for this request.
        seconds: of the forward pass; 0 where it was there already.
    """

    id: str
    adaptation: Adaptation
    new: bool
    seconds: float


class Engine:
    """Runs in the event loop, but for `run`, which the batcher calls in the model's thread.

    Args:
        model: what is served.
        store: where adaptations are kept.
    """

    def __init__(self, model: HartModel, store: Store, metrics: Metrics) -> None:
        self.model = model.eval()
        self.store = store
        self.form = model.input_format
        self.fingerprint = model_fingerprint(model)
        self.batcher: Batcher | None = None
        self._metrics = metrics
        # Of its own: the model's thread uses the other one at the same time.
        self._tokenizer = copy.deepcopy(model.main.tokenizer)
        self._memory: OrderedDict[str, Adaptation] = OrderedDict()
        self._memory_bytes = 0
        self._making: dict[str, asyncio.Task[Adapted]] = {}
        self._uses: dict[str, int] = {}

    def warm_up(self) -> None:
        """Use the model once, so that the first request does not wait for what libraries load late."""
        adaptation = self.model.adapt(Task("a", [("a", "a")]))
        self.model.generate("a", adaptation, max_new_tokens=2)

    # In the event loop.

    def id_of(self, task: Task) -> str:
        return adaptation_id(self.model.main.fingerprint, self.fingerprint, task)

    async def adapt(self, task: Task) -> Adapted:
        """The adaptation to a task: from memory, from the store, or generated and stored.

        Several requests for one task share one pass, which goes on if the first of them leaves.
        """
        id = self.id_of(task)
        found = await self.find(id)
        # Looked up again: while the store was asked, another request may have had it made.
        found = found or self._memory.get(id)
        if found is not None:
            return Adapted(id, found, False, 0.0)
        if id not in self._making:
            making = asyncio.create_task(self._generate_adaptation(id, task))
            self._making[id] = making
            making.add_done_callback(lambda done: self._making.pop(id, None) and done.cancelled())
        return await asyncio.shield(self._making[id])

    async def find(self, id: str) -> Adaptation | None:
        """The adaptation of an id, if this model has generated it and it is still there."""
        if id not in self._memory:
            found = await self._from_store(self._stored, id)
            if found is None:
                return None
            self._remember(id, found)
        self._memory.move_to_end(id)
        self._uses[id] = self._uses.get(id, 0) + 1
        return self._memory[id]

    async def keep(self, adapted: Adapted) -> Record:
        """Make sure that the store has it.

        Raises:
            StoreTrouble: it cannot be written.
        """
        record = await self._from_store(self.store.record, adapted.id)
        if record is None:
            record = await self._from_store(
                self.store.put, adapted.adaptation, model_fingerprint=self.fingerprint, seconds=adapted.seconds
            )
        return record

    async def record(self, id: str) -> Record | None:
        record = await self._from_store(self.store.record, id)
        return record if record is not None and record.model_fingerprint == self.fingerprint else None

    async def forget(self, id: str) -> bool:
        """Delete an adaptation of this model; whether there was one."""
        remembered = self._memory.pop(id, None)
        if remembered is not None:
            self._memory_bytes -= _bytes(remembered)
        if await self.record(id) is None:
            return remembered is not None
        return await self._from_store(self.store.delete, id)

    async def records(self, limit: int, offset: int) -> list[Record]:
        """What this model has adapted to, the last used first."""
        found: list[Record] = await self._from_store(self.store.records, self.fingerprint, limit=limit, offset=offset)
        return found

    async def totals(self) -> tuple[int, int]:
        """Number and bytes of all adaptations in the store."""
        found: tuple[int, int] = await self._from_store(self.store.totals)
        return found

    async def note_uses(self) -> None:
        """Tell the store what was used since the last time."""
        uses, self._uses = self._uses, {}
        if uses:
            await self._from_store(self.store.touch, uses)

    async def _from_store(self, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """What a method of the store gives; it may wait for a disk, or for another process."""
        try:
            return await asyncio.to_thread(call, *args, **options)
        except HartError as problem:
            # For the operator: it names files of this machine.
            logger.error("%s", problem)
            raise StoreTrouble from problem

    def check_task(self, task: Task) -> int:
        """How many demonstrations the model will read.

        Raises:
            HartError: the model needs a definition and there is none, or it is too long.
        """
        limit = self.form.max_demonstrations_length
        most = min(self.form.num_demonstrations, len(task.demonstrations))
        if self.form.prompt_format == "instructions":
            if not task.definition.strip():
                raise HartError("definition: is empty, and this model reads it; say what the task asks for")
            alone = len(self._encode_task(task, 0))
            if alone > limit:
                raise HartError(f"definition: has {alone} tokens with its heading, the model reads {limit}")
        for count in range(most, 0, -1):
            if len(self._encode_task(task, count)) <= limit:
                return count
        return 0

    def check_query(self, text: str, where: str) -> int:
        """Tokens of a query.

        Raises:
            HartError: it is longer than the model reads.
        """
        count = len(encode_query(self._tokenizer, text, Lengths(query=_UNLIMITED), eos=self.form.input_eos))
        if count > self.form.max_query_length:
            raise HartError(f"{where}: has {count} tokens, the model reads {self.form.max_query_length}")
        return count

    def check_choice(self, text: str, where: str) -> int:
        """Tokens of an answer; raises `HartError` if it is longer than the model was trained to give."""
        count = self.count_answer(text)
        if count > self.form.max_target_length:
            raise HartError(f"{where}: has {count} tokens, the model reads {self.form.max_target_length}")
        return count

    def count_answer(self, text: str) -> int:
        """Tokens of an answer, end of sequence included."""
        return len(encode_target(self._tokenizer, text, Lengths(target=_UNLIMITED)))

    def _encode_task(self, task: Task, count: int) -> list[int]:
        shown = {**self.form.shown, "num_demonstrations": count}
        return encode_task(self._tokenizer, task, Lengths(demonstrations=_UNLIMITED), **shown)

    async def _generate_adaptation(self, id: str, task: Task) -> Adapted:
        assert self.batcher is not None
        job = Job("adapt", (), task, task=id)
        self.batcher.submit([job])
        adaptation, seconds = await job.result
        self._metrics.adapted.inc()
        self._remember(id, adaptation)
        return Adapted(id, adaptation, True, seconds)

    def _stored(self, id: str) -> Adaptation | None:
        record = self.store.record(id)
        if record is None or record.model_fingerprint != self.fingerprint:
            return None
        found = self.store.get(id)
        return None if found is None else found.to(self.model.device)

    def _remember(self, id: str, adaptation: Adaptation) -> None:
        if id in self._memory:
            return
        self._memory[id] = adaptation
        self._memory_bytes += _bytes(adaptation)
        while self._memory_bytes > MEMORY_BYTES and len(self._memory) > 1:
            _, dropped = self._memory.popitem(last=False)
            self._memory_bytes -= _bytes(dropped)

    # In the model's thread.

    def run(self, batch: Sequence[Job]) -> list[Any]:
        """Results of the jobs of one batch, which are all of one kind and key."""
        kind, key = batch[0].kind, batch[0].key
        if kind == "adapt":
            return self._adapt([job.payload for job in batch])
        queries: list[Query] = [job.payload for job in batch]
        # The key says whether the rows are adapted: all are, or none.
        first = queries[0].adaptation
        adaptation = first
        if first is not None and any(query.adaptation is not first for query in queries):
            adaptation = Adaptation.stack([query.adaptation for query in queries if query.adaptation is not None])
        main, texts = self.model.main, [query.text for query in queries]
        read: Any = texts
        if adaptation is None:
            read = [encode_query(main.tokenizer, text, self.form.lengths, eos=self.form.input_eos) for text in texts]
        if kind == "score":
            choices, rows = [query.choices for query in queries], len(queries)
            return score_choices(main, read, choices, adaptation, normalisation=key[1], batch_size=rows)  # type: ignore[index]
        options: Options = key[1]  # type: ignore[index]
        kwargs = options.to_kwargs() | {"stopping_criteria": [_Abandoned(batch)], "batch_size": len(batch)}
        if queries[0].emit is not None:
            kwargs["streamer"] = _Stream(main.tokenizer, queries[0].emit)
        return main.generate(read, adaptation, **kwargs)

    def _adapt(self, tasks: list[Task]) -> list[tuple[Adaptation, float]]:
        start = time.perf_counter()
        adaptation = self.model.adapt(tasks)
        seconds = time.perf_counter() - start
        return [(adaptation[row], seconds) for row in range(len(tasks))]


class _Abandoned(StoppingCriteria):
    """Ends a generation that nobody waits for any more."""

    def __init__(self, batch: Sequence[Job]) -> None:
        self._batch = batch

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        gone = all(job.abandoned for job in self._batch)
        return torch.full((input_ids.shape[0],), gone, device=input_ids.device, dtype=torch.bool)


class _Stream(TextStreamer):
    """Hands the text on as it is generated, piece by piece."""

    def __init__(self, tokenizer: Any, emit: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._emit = emit

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self._emit(text)


def model_fingerprint(model: HartModel) -> str:
    """Hex digest over all that decides what a model generates for a task, its base excepted."""
    adapter = model.hypernetwork or model.learned
    form = json.dumps(dataclasses.asdict(model.input_format), sort_keys=True)
    digest = hashlib.sha256(f"{form} {model.fusion} {[kind.to_config() for kind in model.kinds]}\n".encode())
    for name, tensor in sorted(adapter.state_dict().items()) if adapter is not None else ():
        digest.update(f"{name} {list(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _bytes(adaptation: Adaptation) -> int:
    tensors = [*adaptation.blocks.values(), adaptation.memory, adaptation.memory_mask]
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)
