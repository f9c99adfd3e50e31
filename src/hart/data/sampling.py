"""Random training examples: task, query, reference and demonstrations (§2.1, App. 8.1.3).

Example i is a pure function of (seed, i): each draw has its own counter-based random stream, so the examples are the
same for any number of workers and processes and after any resumption.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NotRequired, TypedDict, get_args

import numpy as np

from hart.data.input_format import InputFormat
from hart.data.lengths import tell_long
from hart.data.prompts import Cuts, Tokenizer
from hart.data.streams import in_first_worker, numbered_stream
from hart.data.tasks import Demonstration, Instance, Task
from hart.errors import HartError

logger = logging.getLogger(__name__)

TaskSampling = Literal["proportional", "uniform"]
Demonstrations = Literal["fixed", "sampled"]


class Example(TypedDict):
    """One training example. Token lists end with the end-of-sequence token; those of queries only with `input_eos`."""

    demo_ids: NotRequired[list[list[int]]]  # by groups; only where the demonstrations go to the hypernetwork
    query_ids: list[int]
    teacher_ids: NotRequired[list[int]]  # only where a teacher reads demonstrations before the query
    labels: list[int]
    slot: int
    task_index: int


class Examples(ABC):
    """The training examples of a run, by number; an example's `task_index` points into `tasks`.

    It has the interface of a torch data set but does not import torch: configurations import the collections, and are
    read before torch is loaded.
    """

    tasks: tuple[Task, ...]

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Example: ...


class TrainingDataset(Examples):
    """``length`` examples drawn at random from the tasks.

    Args:
        tasks: training tasks, each with instances. Instances with an empty input (official tasks have some) are
            left out, with one warning.
        form: how text becomes tokens, and who reads the demonstrations. One warning names the tasks that have too few
            other instances for the demonstrations that they show.
        length: number of examples for a whole run: steps × global batch size.
        seed: seed of all draws.
        task_sampling: "proportional" to the number of (capped) instances (§2.1) or "uniform" over tasks (the wording of
            App. 8.1.3).
        sizes: number of instances of each task for "proportional"; None: its actual number. A larger task is drawn
            less often than its actual number asks for, but from all of its instances (P3's cap).
        demonstrations: "fixed" takes the first demonstrations of the task file (S-NI, §4.1); "sampled" draws them from
            the task's instances, never the query itself (MetaICL, App. 8.1.3).
        queries_per_task: m consecutive examples, ``m·g`` to ``m·(g+1) − 1``, are different queries of
            one task with the same demonstrations, so that one hypernetwork pass can serve them.
        reader: tokenizer of the hypernetwork, if it is not the main model's.
        teacher: input format of a teacher that reads the task before the query, if there is one. It uses the main
            model's tokenizer, sees the same sampled demonstrations as the student, and always reads the whole task.
        cuts: records what the constructor leaves out of tasks or cuts, in place of its warnings. The constructor then
            does not report queries and targets that are too long.

    Raises:
        HartError: there are no tasks, an option is unknown, or a task has no usable instances, no other instance to
            show, or lacks the definition or demonstrations that the format needs. Everything is checked in the
            constructor, so that no run fails later; instances that stay on disk are checked only by their loader.

    Texts that are left out or cut to stay within the limits are reported once: by the constructor with counts if they
    are in memory and fixed, otherwise with the first example that is affected.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        tokenizer: Tokenizer,
        form: InputFormat,
        *,
        length: int,
        seed: int,
        task_sampling: TaskSampling = "proportional",
        sizes: Sequence[int] | None = None,
        demonstrations: Demonstrations = "fixed",
        queries_per_task: int = 1,
        reader: Tokenizer | None = None,
        teacher: InputFormat | None = None,
        cuts: Cuts | None = None,
    ) -> None:
        for name, value, options in (
            ("task_sampling", task_sampling, get_args(TaskSampling)),
            ("demonstrations", demonstrations, get_args(Demonstrations)),
        ):
            if value not in options:
                raise HartError(f"{name}: '{value}' is not one of {', '.join(options)}")
        if seed < 0:
            raise HartError(f"seed: must be at least 0, not {seed}")
        if queries_per_task < 1:
            raise HartError(f"queries_per_task: must be at least 1, not {queries_per_task}")
        if not tasks:
            raise HartError("there are no tasks to train on; check the data folder and split")
        told = Cuts() if cuts is None else cuts
        self.tasks = tuple(_without_blanks(task, told) for task in tasks)
        shows = form.demonstrations_to != "nowhere" or teacher is not None
        self._samples = demonstrations == "sampled" and shows
        self._positions = []
        for task in self.tasks:
            shots = form.most_demonstrations if self._samples else 0
            self._positions.append(_check(task, queries_per_task, shots, told))
            for each in (form, teacher):
                if each is not None:
                    each.check_whole(task, sampled=self._samples)
        self._tokenizer = tokenizer
        self._reader = tokenizer if reader is None else reader
        self._form = form
        self._teacher = teacher
        self._length = length
        self._seed = seed
        self._uniform = task_sampling == "uniform"
        self._queries_per_task = queries_per_task
        self._ends = np.cumsum(sizes or [len(task.instances) for task in self.tasks])
        # Encoded here, once, so that workers share the lists.
        self._task_ids = (
            [form.encode_groups(self._reader, task, told) for task in self.tasks]
            if form.demonstrations_to == "hypernetwork" and not self._samples
            else []
        )
        if cuts is None:
            told.tell(logger)
            tell_long(self.tasks, tokenizer, form)
        self._said: set[str] = set()
        self._last: tuple[int, _Group] | None = None

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Example:
        """Example ``index``; its ``slot`` is the index, its ``task_index`` points into `tasks`."""
        if not 0 <= index < self._length:
            raise IndexError(f"example {index} of {self._length}")
        # The stream of the group decides task, queries and demonstrations, that of a member its reference.
        number, member = divmod(index, self._queries_per_task)
        cuts = Cuts()
        group = self._group(number, cuts)
        task = self.tasks[group.task_index]
        instance = task.instances[group.members[member]]
        target = _draw_reference(instance, self._stream(number, member + 1))
        # The constructor has already reported texts in memory that are too long.
        unknown = cuts if self._positions[group.task_index] is None else None
        form, name = self._form, f"task {task.label}"
        noted = cuts if form.in_context else unknown
        example = Example(
            query_ids=form.encode_input(self._tokenizer, group.told, instance.input, noted, name=name),
            labels=form.encode_target(self._tokenizer, target, unknown, name=name),
            slot=int(index),
            task_index=group.task_index,
        )
        if form.demonstrations_to == "hypernetwork":
            example["demo_ids"] = group.demo_ids
        if self._teacher is not None:
            shown, own = group.shown, Cuts()
            example["teacher_ids"] = self._teacher.encode_in_context(self._tokenizer, shown, instance.input, own)
            if own:
                kind = f"the teacher's input does not fit into {self._teacher.max_demonstrations_length} tokens"
                cuts.note(kind, name)
        if in_first_worker():  # so that a warning appears once, not once per worker
            cuts.tell_first(logger, self._said)
        return example

    def _group(self, number: int, cuts: Cuts) -> "_Group":
        """The task, queries and demonstrations of a group. Members are read in sequence, so the last group is kept."""
        if self._last is not None and self._last[0] == number:
            return self._last[1]
        rng = self._stream(number, 0)
        task_index, instance_index = self._draw(rng)
        task = self.tasks[task_index]
        members = np.array([instance_index])
        if self._queries_per_task > 1:
            members = self._members(len(task.instances), instance_index, rng)
        shown = self._with_sampled_demonstrations(task_index, members, rng) if self._samples else task
        told = self._in_part(shown, number)
        demo_ids: list[list[int]] = []
        if self._form.demonstrations_to == "hypernetwork":
            encode = self._form.encode_groups
            known = told is task and not self._samples
            demo_ids = self._task_ids[task_index] if known else encode(self._reader, told, cuts)
        group = _Group(task_index, members, shown, told, demo_ids)
        self._last = number, group
        return group

    def _in_part(self, task: Task, number: int) -> Task:
        """The task without its definition or some demonstrations, as `definition_first` or a random draw decides."""
        form = self._form
        if number * self._queries_per_task < form.definition_first * self._length:
            return replace(task, demonstrations=(), instances=())
        without_definition, without_demonstrations = form.omit_definition, form.omit_demonstrations
        if not (without_definition or without_demonstrations or form.fewest_demonstrations):
            return task
        stream = self._stream(number, self._queries_per_task + 1)
        draw = stream.random()
        if without_definition <= draw < without_definition + without_demonstrations:
            return replace(task, demonstrations=(), instances=())
        shown = task.demonstrations[: form.most_demonstrations]
        if form.fewest_demonstrations is not None and len(shown) > form.fewest_demonstrations:
            shown = shown[: stream.integers(form.fewest_demonstrations, len(shown) + 1)]
        definition = "" if draw < without_definition else task.definition
        return replace(task, definition=definition, demonstrations=shown, instances=())

    def _stream(self, group: int, part: int) -> np.random.Generator:
        return numbered_stream(self._seed, group, (0, 0, 0, part))

    def _draw(self, rng: np.random.Generator) -> tuple[int, int]:
        """The positions of a random task and of one of its instances."""
        if self._uniform:
            task_index = int(rng.integers(len(self.tasks)))
            return task_index, int(rng.integers(len(self.tasks[task_index].instances)))
        # A uniform draw from all instances is a draw of the task in proportion to its size.
        position = int(rng.integers(self._ends[-1]))
        task_index = int(np.searchsorted(self._ends, position, side="right"))
        first = int(self._ends[task_index - 1]) if task_index else 0
        available = len(self.tasks[task_index].instances)
        if self._ends[task_index] - first != available:
            return task_index, int(rng.integers(available))
        return task_index, position - first

    def _members(self, available: int, first: int, rng: np.random.Generator) -> np.ndarray:
        """Positions of the queries of a group, `first` among them; all different if the task has enough instances."""
        wanted = self._queries_per_task
        if available > _MANY:
            # A permutation would list millions of rows.
            others = rng.choice(available - 1, size=wanted - 1, replace=False)
            return np.concatenate([[first], others + (others >= first)])
        others = rng.permutation(np.delete(np.arange(available), first))
        return np.resize(np.concatenate([[first], others]), wanted)

    def _with_sampled_demonstrations(self, task_index: int, members: np.ndarray, rng: np.random.Generator) -> Task:
        # Files repeat inputs: another instance with the text of the query would give its answer away.
        task, positions = self.tasks[task_index], self._positions[task_index]
        queries = {task.instances[i].input.strip() for i in members}  # as models read them
        # Equal inputs of instances on disk are not known beforehand; they are dropped after the draw.
        taken = np.unique(members) if positions is None else sorted({at for text in queries for at in positions[text]})
        available = len(task.instances) - len(taken)
        chosen = rng.choice(available, size=min(self._form.most_demonstrations, available), replace=False)
        for at in taken:
            chosen += chosen >= at
        shown = [task.instances[i] for i in chosen]
        demonstrations = tuple(
            Demonstration(each.input, _draw_reference(each, rng)) for each in shown if each.input.strip() not in queries
        )
        if self._form.num_demonstrations and not demonstrations:
            raise HartError(f"task {task.label}: all other rows repeat the query; replace the repetitions")
        # The task is only encoded; with its instances, all of them would be validated again.
        return replace(task, demonstrations=demonstrations, instances=()) if demonstrations else task


@dataclass(frozen=True)
class _Group:
    """The common part of the examples of one group.

    Attributes:
        task_index: position of the task.
        members: positions of the queries among the task's instances.
        shown: the task with the demonstrations of the group; a teacher reads it.
        told: `shown`, perhaps without its definition or some demonstrations; the student reads it.
        demo_ids: tokens of `told` for the hypernetwork, by groups of demonstrations.
    """

    task_index: int
    members: np.ndarray
    shown: Task
    told: Task
    demo_ids: list[list[int]]


# Number of instances above which positions are drawn without listing all of them.
_MANY = 100_000


def _draw_reference(instance: Instance, rng: np.random.Generator) -> str:
    return instance.references[int(rng.integers(len(instance.references)))]


def _without_blanks(task: Task, cuts: Cuts) -> Task:
    if not isinstance(task.instances, tuple):
        return task  # on disk: the loader has dropped them
    kept = tuple(instance for instance in task.instances if instance.input.strip())
    blank = len(task.instances) - len(kept)
    if not blank:
        return task
    if not kept:
        raise HartError(f"task {task.label}: all of its {blank} Instances have an empty input; fill or remove them")
    kind = "left out instances with an empty input"
    cuts.note(kind, f"task {task.label}", f"left out {blank} of {blank + len(kept)} instances, whose input is empty")
    return replace(task, instances=kept)


def _check(task: Task, queries: int, demonstrations: int, cuts: Cuts) -> dict[str, list[int]] | None:
    """Input (stripped) → positions of the instances that have it; None for instances on disk.

    Raises:
        HartError: the task has no instances, or too few for the queries of a group and one sampled demonstration.
    """
    positions: dict[str, list[int]] | None = None
    if not task.instances:
        raise HartError(f"task {task.label}: has no Instances to train on; add some")
    distinct = len(task.instances)
    if isinstance(task.instances, tuple):
        positions = {}
        for position, instance in enumerate(task.instances):
            positions.setdefault(instance.input.strip(), []).append(position)
        distinct = len(positions)
    if demonstrations and distinct <= queries:
        raise HartError(
            f"task {task.label}: has {distinct} different inputs, too few to sample "
            f"demonstrations beside its queries; at least {queries + 1} are needed"
        )
    if demonstrations and distinct < demonstrations + queries:
        said = f"has {distinct} different inputs, so it shows fewer than {demonstrations} demonstrations"
        cuts.note(f"shows fewer than {demonstrations} demonstrations", f"task {task.label}", said)
    return positions
