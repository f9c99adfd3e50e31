"""The engine of the server: a HART model with its adaptations in memory and in the store."""

import asyncio
import copy
import dataclasses
import logging
import re
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from hart.data.prompts import Cuts
from hart.data.tasks import Task
from hart.errors import HartError
from hart.model.adaptation import Adaptation
from hart.model.answering import Answer
from hart.model.hart_model import HartModel
from hart.runtime.fingerprints import tokenizer_digest
from hart.runtime.identity import peft_digest
from hart.serving.access import exchange
from hart.serving.batching import Batcher, Job, Stopped
from hart.serving.checks import Checks
from hart.serving.metrics import Metrics
from hart.serving.running import Runner
from hart.serving.settings import MEMORY_BYTES
from hart.serving.store import Record, Store, adaptation_id

logger = logging.getLogger(__name__)

_HEALTH_SECONDS = 1.0
"""Seconds for which the result of a check of the store is reused."""

T = TypeVar("T")


class StoreTrouble(Exception):
    """The store cannot be read or written; the log says why."""


@dataclass
class Adapted:
    """An adaptation for a request.

    Attributes:
        new: whether it was generated for this request.
        record: its record in the store; None if the store was not asked, or does not have it.
    """

    id: str
    adaptation: Adaptation
    new: bool
    record: Record | None


class Engine:
    """A served model with its batcher and store, in the event loop; `hart.serving.running` has the model's thread.

    Args:
        model: the model to serve.
        store: storage of adaptations.
    """

    def __init__(self, model: HartModel, store: Store, metrics: Metrics) -> None:
        self.model = model.eval()
        self.store = store
        self.form = model.input_format
        self.run = Runner(model).run
        self.fingerprint = model_fingerprint(model)
        self.batcher: Batcher | None = None
        self._metrics = metrics
        self.checks = Checks(
            copy.deepcopy(model.main.tokenizer),
            copy.deepcopy(model.reader),
            model.input_format,
            model.main.room(model.kinds),
            model.name,
        )
        self._memory: OrderedDict[str, Adaptation] = OrderedDict()
        self._memory_bytes = 0
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._sections: set[asyncio.Task[Any]] = set()
        self._uses: dict[str, int] = {}
        self._store_seen = (-_HEALTH_SECONDS, True)

    def warm_up(self) -> None:
        """Use the model once, so that the first request does not wait for lazy loading in libraries."""
        adaptation = self.model.adapt(Task("a", [("a", "a")]), cuts=Cuts())
        self.model.answers("a", adaptation, max_new_tokens=2, cuts=Cuts())

    def id_of(self, task: Task) -> str:
        return adaptation_id(self.model.main.fingerprint, self.fingerprint, task)

    def check_running(self) -> None:
        """Raise `Stopped` unless the server answers requests."""
        if self.batcher is None:
            raise Stopped("the application was not started; run its lifespan in the application that mounts it")
        if not self.batcher.alive:
            raise Stopped("the model's thread has ended")

    def check_ready(self) -> None:
        """Raise `Stopped` unless the server accepts requests now."""
        self.check_running()
        assert self.batcher is not None
        self.batcher.check_ready()

    def count(self, answers: Sequence[Answer]) -> None:
        """Count the tokens of answers, for the metrics and the log."""
        exchange().count(answers)
        self._metrics.tokens_in.inc(sum(each.query_tokens for each in answers))
        self._metrics.tokens_out.inc(sum(each.tokens for each in answers))

    def submit(self, jobs: Sequence[Job]) -> None:
        """As `Batcher.submit`; also raises `Stopped` before the batcher exists."""
        self.check_running()
        assert self.batcher is not None
        self.batcher.submit(jobs)

    async def close(self) -> None:
        """Finish all accepted requests."""
        if self.batcher is not None:
            await self.batcher.close()
        await asyncio.gather(*self._sections, return_exceptions=True)
        try:
            await self.note_uses()
        except StoreTrouble:
            pass  # logged
        self.checks.close()

    async def adapt(self, task: Task, *, keep: bool = False) -> Adapted:
        """The adaptation to a task: from memory, from the store, or generated and stored.

        Several requests for one task share one pass, which continues if the first of them is cancelled.

        Args:
            keep: whether it must be in the store.

        Raises:
            StoreTrouble: with `keep`, the store cannot be used; without `keep` the adaptation is then only in memory.
        """
        id = self.id_of(task)
        found = None if keep else self._recall(id)
        if found is not None:
            return Adapted(id, found, False, None)
        return await self._exclusively(id, lambda: self._adapt_to(id, task, keep))

    async def _adapt_to(self, id: str, task: Task, keep: bool) -> Adapted:
        try:
            found = await self._load(id)
        except StoreTrouble:
            found = None  # it is in neither place, and can be generated
        new, seconds = found is None, 0.0
        if found is None:
            job = Job("adapt", (), task, task=id)
            self.submit([job])
            found, seconds = await job.result
            self._metrics.adapted.inc()
            self._remember(id, found)
        record = None
        if new or keep:
            try:
                record = await self._from_store(self.store.record, id)
                if record is None:
                    record = await self._from_store(
                        self.store.put, found, model_fingerprint=self.fingerprint, seconds=seconds
                    )
            except StoreTrouble:
                if keep:
                    raise
        return Adapted(id, found, new, record)

    async def find(self, id: str) -> Adaptation | None:
        """The adaptation with this id; None if this model has not generated it, or it was deleted."""
        found = self._recall(id)
        return found if found is not None else await self._exclusively(id, lambda: self._load(id))

    async def forget(self, id: str) -> bool:
        """Delete an adaptation of this model; returns whether it existed.

        Work on it that began before is finished before the deletion, so that only a later request can create it again.
        """
        return await self._exclusively(id, lambda: self._forget(id))

    async def _forget(self, id: str) -> bool:
        deleted = await self.record(id) is not None and await self._from_store(self.store.delete, id)
        remembered = self._memory.pop(id, None)
        self._uses.pop(id, None)
        if remembered is not None:
            self._memory_bytes -= _bytes(remembered)
        return deleted or remembered is not None

    async def _exclusively(self, id: str, work: Callable[[], Awaitable[T]]) -> T:
        """The result of `work`, while no other work finds, generates or deletes the adaptation with this id.

        The work is completed even if its request is cancelled.
        """
        lock = self._locks.get(id)
        if lock is None:
            lock = self._locks[id] = asyncio.Lock()

        async def section() -> T:
            async with lock:
                return await work()

        task = asyncio.create_task(section())
        self._sections.add(task)
        task.add_done_callback(self._sections.discard)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # retrieved, as no caller may be left
        return await asyncio.shield(task)

    async def record(self, id: str) -> Record | None:
        record = await self._from_store(self.store.record, id)
        return record if record is not None and record.model_fingerprint == self.fingerprint else None

    async def store_works(self) -> bool:
        """Whether the store can be written; checked at most once per second."""
        when, works = self._store_seen
        if time.monotonic() - when >= _HEALTH_SECONDS:
            self._store_seen = (time.monotonic(), works)  # for requests during the check
            try:
                await self._from_store(self.store.check)
                works = True
            except StoreTrouble:
                works = False
            self._store_seen = (time.monotonic(), works)
        return works

    async def ids(self, prefix: str) -> list[str]:
        """At most two ids of this model's adaptations that begin with `prefix`.

        A whole id is returned unchanged. A prefix with fewer than eight digits, or with other characters, has none.
        """
        if len(prefix) == 64:
            return [prefix]
        if not re.fullmatch(r"[0-9a-f]{8,63}", prefix):
            return []
        found = {id for id in self._memory if id.startswith(prefix)}
        try:
            found.update(await self._from_store(self.store.ids, prefix, self.fingerprint))
        except StoreTrouble:
            if not found:
                raise
        return sorted(found)[:2]

    async def records(self, limit: int, offset: int) -> list[Record]:
        """The records of this model's adaptations, the most recently used first."""
        found: list[Record] = await self._from_store(self.store.records, self.fingerprint, limit=limit, offset=offset)
        return found

    async def totals(self) -> tuple[int, int]:
        """Number and bytes of all adaptations in the store."""
        found: tuple[int, int] = await self._from_store(self.store.totals)
        return found

    async def note_uses(self) -> None:
        """Record the uses of adaptations since the last call in the store."""
        uses, self._uses = self._uses, {}
        if uses:
            await self._from_store(self.store.touch, uses)

    async def _from_store(self, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """The result of a method of the store, in a thread, as it may wait for a disk or another process."""
        try:
            return await asyncio.to_thread(call, *args, **options)
        except HartError as problem:
            # Only logged, because the message names files of this machine.
            logger.error("%s", problem)
            raise StoreTrouble from problem

    def _recall(self, id: str) -> Adaptation | None:
        """The adaptation in memory, which counts as used; None if it is not in memory."""
        found = self._memory.get(id)
        if found is not None:
            self._memory.move_to_end(id)
            self._uses[id] = self._uses.get(id, 0) + 1
        return found

    async def _load(self, id: str) -> Adaptation | None:
        """The adaptation in memory or in the store; only for calls within `_exclusively`."""
        found = self._recall(id)
        if found is None:
            found = await self._from_store(self._stored, id)
            if found is not None:
                self._remember(id, found)
                self._recall(id)
        return found

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


def model_fingerprint(model: HartModel) -> str:
    """Hex digest of everything that determines what a model generates for a task, except its base."""
    kinds = [kind.to_config() for kind in model.kinds]
    form = dataclasses.asdict(model.input_format)
    # Weights do not determine the order of a scheme's layers, or the layers whose states are read.
    network = model.hypernetwork
    made = [] if network is None else [network.config.scheme, network.config.encoder_layers]
    # The hypernetwork of a T5 uses the base's tokenizer, which is part of the base's fingerprint.
    reader = [] if model.reader is model.main.tokenizer else [tokenizer_digest(model.reader)]
    return peft_digest(model.peft_source, form, model.fusion, kinds, made, *reader)


def _bytes(adaptation: Adaptation) -> int:
    tensors = [*adaptation.blocks.values(), adaptation.memory, adaptation.memory_mask]
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)
