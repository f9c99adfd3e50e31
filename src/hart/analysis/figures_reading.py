"""States and attention of trained hypernetworks on unseen tasks, computed once per model for all figures.

The tasks are evenly spread over the test split of the run's configuration.
"""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hart.analysis.figures_runs import Source
from hart.analysis.figures_style import NotDrawable
from hart.data.collate import pad_groups
from hart.data.collections import load_tasks
from hart.data.config import DataConfig
from hart.data.input_format import InputFormat
from hart.data.tasks import Demonstration, Task
from hart.hypernetwork.schemes.bidirectional import Bidirectional
from hart.model.hart_model import HartModel

MAX_TASKS = 16
SCATTERED_TASKS, SCATTERED_SETS = 4, 8
"""Tasks, and demonstration sets per task, of Fig. 5; the paper has four tasks and leaves the sets open."""
POOL = 64
"""The most instances of a task from which demonstration sets are drawn."""
TASKS_PER_PASS = 8


@dataclass(frozen=True)
class Reading:
    """Measurements of one model.

    Attributes:
        scheme: name of the generation scheme.
        stacks: names of the main model's stacks, in the order of axis 1 of the states.
        depths: number of layers of each stack.
        tasks: number of tasks that were read for `cosines` and `attention`.
        cosines: cosines between the states of layers of one stack, mean over tasks, float64 `[S, L, L]`.
        attention: mean over heads, rows of a state and tasks, float64 `[S, L, L]`; None for schemes without it.
        layer_of_step: layers in the order of their generation, if there is an order.
        names: names of the tasks in `states`.
        states: states under several demonstration sets, float32 `[tasks, sets, S, L, m·d]`; None if all layers share
            one state.
    """

    scheme: str
    stacks: tuple[str, ...]
    depths: tuple[int, ...]
    tasks: int
    cosines: np.ndarray
    attention: np.ndarray | None
    layer_of_step: tuple[int, ...] | None
    names: tuple[str, ...]
    states: np.ndarray | None


class Reader:
    """Makes readings of models, and loads each model only once.

    Args:
        max_tasks: the most tasks for attention and cosines.
        data: tasks for models without a run; None: the bundled procedural collection.
        data_dir: replaces `data.dir` of the configurations; None: keeps it.
        base: location of the base; None: the location that the model names.
        device: device of the models.
    """

    def __init__(
        self,
        *,
        max_tasks: int = MAX_TASKS,
        data: DataConfig | None = None,
        data_dir: str | None = None,
        base: str | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.max_tasks, self.data_dir, self.base, self.device = max_tasks, data_dir, base, device
        self._data = data or DataConfig(collection="procedural")
        self.on_task: Callable[[int], None] = lambda number: None
        """Called after each batch with the number of tasks that were read."""
        self._readings: dict[str, Reading] = {}
        self._tasks: dict[str, list[Task]] = {}

    def read(self, source: Source) -> Reading:
        """Measure the newest model of a run.

        Raises:
            NotDrawable: the run has no model yet, or its model does not generate weights from tasks.
            HartError: model, base or tasks cannot be loaded.
        """
        if source.model is None:
            raise NotDrawable(f"{source.name}: has no model yet")
        key = str(source.model)
        if key not in self._readings:
            if source.config is not None and source.config.data.segments:
                raise NotDrawable(f"{source.name}: is trained on text, which has no tasks to read")
            model = self._model(source, source.model)
            if model.hypernetwork is None or model.hypernetwork.scheme is None:
                raise NotDrawable(f"{source.name}: generates no weights, so it has no layer states")
            self._readings[key] = self._read(model, self._load(source))
        return self._readings[key]

    def _model(self, source: Source, folder: Path) -> HartModel:
        if source.config is None or not folder.name.startswith("checkpoint-"):
            return HartModel.from_pretrained(folder, base=self.base, device=self.device)
        # A checkpoint has further tensors, which `from_pretrained` would report as damage.
        config = source.config.model.changed(base=self.base or source.config.model.base, init_from=None)
        model = HartModel.from_config(config, source.config.data)
        model.load_trained(folder)
        return model.eval().to(self.device)

    def _load(self, source: Source) -> list[Task]:
        config = self._data if source.config is None else source.config.data
        kept = max(config.max_test_instances or POOL, POOL)
        config = config.changed(max_test_instances=kept, dir=self.data_dir or config.dir)
        key = json.dumps(config.to_dict(), sort_keys=True)
        if key not in self._tasks:
            self._tasks[key] = load_tasks(config, "test")
        return self._tasks[key]

    @torch.no_grad()
    def _read(self, model: HartModel, tasks: Sequence[Task]) -> Reading:
        network, form = model.hypernetwork, model.input_format
        assert network is not None and network.scheme is not None
        shape = model.main.shape
        shown = [form.shown(task) for task in evenly(tasks, self.max_tasks)]
        attends = isinstance(network.scheme, Bidirectional)
        cosines, maps = [], []
        for part in _batches(shown):
            ids, mask = _encoded(model, form, part)
            states = network(ids, mask).states
            cosines.append(layer_cosines(states).double().cpu())
            if attends:
                maps.append(network.attention_maps(ids, mask).double().cpu())
            self.on_task(len(part))
        names, scattered = [task.label for task in evenly(tasks, SCATTERED_TASKS)], None
        if not network.one_state:
            sets = [each for task in evenly(tasks, SCATTERED_TASKS) for each in demonstration_sets(task, form)]
            read = [network(*_encoded(model, form, part)).states.flatten(3).float().cpu() for part in _batches(sets)]
            scattered = torch.cat(read).unflatten(0, (len(names), -1)).numpy()
            self.on_task(len(sets))
        order = getattr(network.scheme, "layer_order", None)
        return Reading(
            scheme=network.scheme.name,
            stacks=shape.stacks,
            depths=shape.depths,
            tasks=len(shown),
            cosines=torch.cat(cosines).mean(0).numpy(),
            attention=torch.cat(maps).mean(0).numpy() if attends else None,
            layer_of_step=None if order is None else tuple(order.layer_of_step),
            names=tuple(names),
            states=scattered,
        )


def evenly(tasks: Sequence[Task], number: int) -> list[Task]:
    """At most `number` of the tasks, evenly spread over their order."""
    if number >= len(tasks):
        return list(tasks)
    return [tasks[at] for at in np.linspace(0, len(tasks) - 1, number).round().astype(int)]


def demonstration_sets(task: Task, form: InputFormat, number: int = SCATTERED_SETS) -> list[Task]:
    """The task with `number` random demonstration sets, as large as the format shows, the same in every process.

    They are drawn from the task's demonstrations and its first `POOL` instances.
    """
    instances = [Demonstration(each.input, each.references[0]) for each in task.instances[:POOL] if each.input.strip()]
    pool = list({each.input: each for each in [*instances, *task.demonstrations]}.values())
    shots = min(form.most_demonstrations, len(pool))
    draws = (random.Random(f"{task.name}/{at}").sample(pool, shots) for at in range(number))
    return [replace(task, demonstrations=tuple(draw), instances=()) for draw in draws]


def layer_cosines(states: Tensor) -> Tensor:
    """Cosine between the states of each pair of layers of a stack: `[n, S, L, m, d]` → `[n, S, L, L]`."""
    unit = torch.nn.functional.normalize(states.flatten(3).float(), dim=-1)
    return unit @ unit.transpose(-1, -2)


def _batches(tasks: Sequence[Task]) -> list[Sequence[Task]]:
    return [tasks[at : at + TASKS_PER_PASS] for at in range(0, len(tasks), TASKS_PER_PASS)]


def _encoded(model: HartModel, form: InputFormat, tasks: Sequence[Task]) -> tuple[Tensor, Tensor]:
    return pad_groups(
        [form.encode_groups(model.reader, task) for task in tasks], model.reader.pad_token_id, model.device
    )
