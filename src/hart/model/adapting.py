"""Adapting to tasks: the hypernetwork's pass (§2.2), also for tasks whose demonstrations arrive over time."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from hart.data.collate import pad, pad_groups
from hart.data.input_format import InputFormat
from hart.data.prompts import Cuts
from hart.data.tasks import Demonstration, Task
from hart.errors import HartError
from hart.hypernetwork.network import HyperNetwork, HyperOutput
from hart.model.adaptation import Adaptation
from hart.model.familiarity import note_unfamiliar_task
from hart.model.modes import evaluating
from hart.peft.base import Blocks

if TYPE_CHECKING:
    from hart.model.hart_model import HartModel

logger = logging.getLogger(__name__)

_NO_LIMIT = 2**31


def adapt(model: "HartModel", tasks: Sequence[Task], form: InputFormat, cuts: Cuts | None) -> Adaptation:
    """`HartModel.adapt` with the tasks read in a given format."""
    told = Cuts() if cuts is None else cuts
    for each in tasks:
        form.check_readable(each)
        form.note_unread(each, told)
        inputs = [example.input for example in each.demonstrations[: form.most_demonstrations]]
        note_unfamiliar_task(model.name, inputs, model.main.tokenizer, told, f"task {each.label}")
    made = read(model, tasks, form, told) if model.hypernetwork is not None else None
    if cuts is None:
        told.tell(logger)
    return _adaptation(model, tasks, made, form)


def read(model: "HartModel", tasks: Sequence[Task], form: InputFormat, cuts: Cuts) -> HyperOutput:
    """The hypernetwork's pass over tasks, without dropout."""
    network = _network(model)
    encoded = [form.encode_groups(model.reader, each, cuts) for each in tasks]
    ids, mask = pad_groups(encoded, model.reader.pad_token_id, model.device)
    # The main model too, because the hypernetwork may use its encoder.
    with evaluating(network, model.main):
        output: HyperOutput = network(ids, mask)
    return output


class IncrementalTask:
    """A task whose demonstrations arrive over time; each is encoded once.

    Demonstrations are encoded in groups of the size used in training, each group after the definition, and generation
    attends to all groups regardless of their order. The cost of `add` depends only on the new demonstrations, the cost
    of `adaptation` on all that were added. Each call of `add` begins new groups. The definition is encoded alone only
    while there are no demonstrations.

        growing = model.incremental(task)
        growing.add([("plum lion", "plum")]).adaptation()

    Args:
        model: a model with a hypernetwork that reads demonstrations.
        task: the task at the start; its demonstrations are encoded at once.

    Raises:
        HartError: the model has no hypernetwork or reads no demonstrations, or the task has no text that the model
            reads.
    """

    def __init__(self, model: "HartModel", task: Task) -> None:
        _network(model)
        form = model.input_format
        if not form.num_demonstrations:
            raise HartError(f"{model.name or 'model'}: was trained without demonstrations; use model.adapt(task)")
        form.check_readable(task)
        self._model = model
        self._form = replace(form, demonstration_groups=_NO_LIMIT)
        self._memories: list[Tensor] = []
        self._groups = 0
        self.task = replace(task, instances=())
        if task.demonstrations:
            self._read(task.demonstrations)

    def add(self, demonstrations: Sequence[Demonstration | tuple[str, str]]) -> Self:
        """Encode more demonstrations, in new groups.

        Raises:
            HartError: none are given, or one is malformed.
        """
        if not demonstrations:
            raise HartError("add needs at least one demonstration")
        more = Task(self.task.definition, demonstrations, name=self.task.name).demonstrations
        self._read(more)
        self.task = replace(self.task, demonstrations=(*self.task.demonstrations, *more))
        return self

    def adaptation(self) -> Adaptation:
        """The adaptation to all demonstrations so far: one pass of the hypernetwork's decoder."""
        network = _network(self._model)
        if not self._memories:
            return self._model.adapt(self.task)
        memory = torch.cat(self._memories)[None]
        with torch.no_grad(), evaluating(network):
            made = network.generate_blocks(memory, memory.new_ones(memory.shape[:2], dtype=torch.int64))
        form = replace(self._model.input_format, demonstration_groups=self._groups)
        return _adaptation(self._model, [self.task], made, form)

    @torch.no_grad()
    def _read(self, demonstrations: Sequence[Demonstration]) -> None:
        cuts, model = Cuts(), self._model
        new = replace(self.task, demonstrations=tuple(demonstrations))
        self._form.note_unread(new, cuts)
        encoded = self._form.encode_groups(model.reader, new, cuts)
        self._groups += len(encoded)
        ids, mask = pad(encoded, model.reader.pad_token_id, model.device)
        network = _network(model)
        with evaluating(network, model.main):
            memory, _ = network.encode(ids, mask)
        cuts.tell(logger)
        self._memories.append(memory[mask.bool()])


def _network(model: "HartModel") -> HyperNetwork:
    if model.hypernetwork is None:
        raise HartError(f"{model.name or 'model'}: has no hypernetwork to read tasks; use model.adapt(task)")
    return model.hypernetwork


def _adaptation(model: "HartModel", tasks: Sequence[Task], made: HyperOutput | None, form: InputFormat) -> Adaptation:
    """The adaptation with the generated output, or, without a hypernetwork, with the learned parameters per task."""
    blocks: Blocks = {}
    memory = memory_mask = None
    if made is not None:
        blocks = made.blocks
        if not all(bool(values.isfinite().all()) for values in (*blocks.values(), made.memory)):
            raise HartError(f"{model.name or 'model'}: generates NaN or infinite parameters; its weights are damaged")
        memory, memory_mask = (made.memory, made.memory_mask) if model.gives_memory else (None, None)
    elif model.learned is not None:
        # A copy, because training may continue.
        blocks = {name: rows.detach().repeat(len(tasks), 1, 1, 1) for name, rows in model.learned().items()}
    return Adaptation(
        blocks=blocks,
        memory=memory,
        memory_mask=memory_mask,
        peft=[kind.to_config() for kind in model.kinds],
        **model.main.identity,
        input_format=form,
        model=model.name,
        tasks=[{"name": each.name, **replace(each, instances=()).to_dict()} for each in tasks],
    )
