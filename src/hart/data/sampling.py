"""Random training examples: task, query, reference and demonstrations (sections 2.1 and 8.1.3).

Example i is a pure function of (seed, i): each draw has a counter-based random stream of its own,
so the examples do not depend on the number of workers or processes, nor on where a run resumed.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, NotRequired, TypedDict, get_args

import numpy as np
from torch.utils.data import Dataset

from hart.data.prompts import (
    Lengths,
    Tokenizer,
    encode_in_context,
    encode_query,
    encode_target,
    encode_task,
)
from hart.data.tasks import Demonstration, Instance, Task
from hart.errors import HartError

TaskSampling = Literal["proportional", "uniform"]
Demonstrations = Literal["fixed", "sampled"]
DemonstrationsTo = Literal["hypernetwork", "main", "nowhere"]


class Example(TypedDict):
    """One training example; token lists all end with the end-of-sequence token."""

    demo_ids: NotRequired[list[int]]  # only where the demonstrations go to the hypernetwork
    query_ids: list[int]
    labels: list[int]
    slot: int
    task_index: int


class TrainingDataset(Dataset[Example]):
    """``length`` examples drawn at random from the tasks.

    Args:
        tasks: training tasks, each with instances.
        length: how many examples, for a whole run: steps × global batch size.
        seed: of all draws.
        lengths: limits in tokens. With ``demonstrations_to="main"`` the whole input of the main
            model has the limit of the demonstrations (Tk-Instruct: 1024).
        task_sampling: "proportional" to the number of (capped) instances (section 2.1) or
            "uniform" over tasks (the wording of section 8.1.3).
        demonstrations: "fixed" takes the first demonstrations of the task file (S-NI, section
            4.1); "sampled" draws them from the task's instances, never the query itself (MetaICL,
            section 8.1.3).
        num_demonstrations: K of section 2.1.
        explanations: whether demonstrations show their explanation (Tk-Instruct).
        queries_per_task: m consecutive examples, ``m·g`` to ``m·(g+1) − 1``, are different queries of
            one task with the same demonstrations, so that one hypernetwork pass can serve them.
        demonstrations_to: who reads definition and demonstrations. "main" puts them before the
            query (the in-context baselines), "nowhere" leaves them out (FT-Zero-Shot).

    Raises:
        HartError: no tasks, a task without instances or with too few for its demonstrations, an
            empty query, or an unknown option. All is checked here, so that no run ends in it.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        tokenizer: Tokenizer,
        *,
        length: int,
        seed: int,
        lengths: Lengths,
        task_sampling: TaskSampling = "proportional",
        demonstrations: Demonstrations = "fixed",
        num_demonstrations: int = 2,
        explanations: bool = False,
        queries_per_task: int = 1,
        demonstrations_to: DemonstrationsTo = "hypernetwork",
    ) -> None:
        for name, value, options in (
            ("task_sampling", task_sampling, get_args(TaskSampling)),
            ("demonstrations", demonstrations, get_args(Demonstrations)),
            ("demonstrations_to", demonstrations_to, get_args(DemonstrationsTo)),
        ):
            if value not in options:
                raise HartError(f"{name}: '{value}' is not one of {', '.join(options)}")
        if seed < 0:
            raise HartError(f"seed: must be at least 0, not {seed}")
        if num_demonstrations < 0:
            raise HartError(f"num_demonstrations: must be at least 0, not {num_demonstrations}")
        if queries_per_task < 1:
            raise HartError(f"queries_per_task: must be at least 1, not {queries_per_task}")
        if not tasks:
            raise HartError("there are no tasks to train on; check the data folder and split")
        self.tasks = tuple(tasks)
        self._samples = demonstrations == "sampled" and demonstrations_to != "nowhere"
        for task in self.tasks:
            _check(task, other_inputs=num_demonstrations + queries_per_task - 1 if self._samples else 0)
        self._tokenizer = tokenizer
        self._length = length
        self._seed = seed
        self._lengths = lengths
        self._uniform = task_sampling == "uniform"
        self._num_demonstrations = num_demonstrations
        self._explanations = explanations
        self._queries_per_task = queries_per_task
        self._to = demonstrations_to
        self._ends = np.cumsum([len(task.instances) for task in self.tasks])
        # Encoded once, here: workers then share the lists, and warnings are given once.
        self._task_ids = (
            [self._encode_task(task) for task in self.tasks]
            if demonstrations_to == "hypernetwork" and not self._samples
            else []
        )

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Example:
        """Example ``index``; its ``slot`` is the index, its ``task_index`` points into `tasks`."""
        if not 0 <= index < self._length:
            raise IndexError(f"example {index} of {self._length}")
        # The group decides task, queries and demonstrations; each member has a stream of its own beside it.
        group, member = divmod(index, self._queries_per_task)
        rng = self._stream(group, 0)
        task_index, instance_index = self._draw(rng)
        task = self.tasks[task_index]
        members = np.array([instance_index])
        if self._queries_per_task > 1:
            # Different queries, as long as the task has enough.
            others = np.delete(np.arange(len(task.instances)), instance_index)
            members = np.resize(np.concatenate([members, rng.permutation(others)]), self._queries_per_task)
        instance = task.instances[members[member]]
        shown = task
        if self._samples:
            queries = {task.instances[i].input for i in members}
            shown = self._with_sampled_demonstrations(task, queries, rng)
        target = _draw_reference(instance, self._stream(group, member + 1))
        example = Example(
            query_ids=self._encode_query(shown, instance.input),
            labels=encode_target(self._tokenizer, target, self._lengths),
            slot=int(index),
            task_index=task_index,
        )
        if self._to == "hypernetwork":
            example["demo_ids"] = self._encode_task(shown) if self._samples else self._task_ids[task_index]
        return example

    def _stream(self, group: int, part: int) -> np.random.Generator:
        key = np.array([self._seed, group], dtype=np.uint64)
        counter = np.array([0, 0, 0, part], dtype=np.uint64)
        return np.random.Generator(np.random.Philox(key=key, counter=counter))

    def _draw(self, rng: np.random.Generator) -> tuple[int, int]:
        """A task and one of its instances, by their positions."""
        if self._uniform:
            task_index = int(rng.integers(len(self.tasks)))
            return task_index, int(rng.integers(len(self.tasks[task_index].instances)))
        # A uniform draw from all instances is a draw of the task in proportion to its size.
        position = int(rng.integers(self._ends[-1]))
        task_index = int(np.searchsorted(self._ends, position, side="right"))
        first = int(self._ends[task_index - 1]) if task_index else 0
        return task_index, position - first

    def _with_sampled_demonstrations(self, task: Task, queries: set[str], rng: np.random.Generator) -> Task:
        # Files repeat inputs; another instance with the query's text would give the answer away.
        others = [instance for instance in task.instances if instance.input not in queries]
        chosen = rng.choice(len(others), size=self._num_demonstrations, replace=False)
        demonstrations = tuple(Demonstration(others[at].input, _draw_reference(others[at], rng)) for at in chosen)
        return replace(task, demonstrations=demonstrations) if demonstrations else task

    def _encode_task(self, task: Task) -> list[int]:
        return encode_task(
            self._tokenizer,
            task,
            self._lengths,
            num_demonstrations=self._num_demonstrations,
            explanations=self._explanations,
        )

    def _encode_query(self, task: Task, query: str) -> list[int]:
        if self._to != "main":
            return encode_query(self._tokenizer, query, self._lengths)
        return encode_in_context(
            self._tokenizer,
            task,
            query,
            self._lengths.demonstrations,
            num_demonstrations=self._num_demonstrations,
            explanations=self._explanations,
        )


def _draw_reference(instance: Instance, rng: np.random.Generator) -> str:
    return instance.references[int(rng.integers(len(instance.references)))]


def _check(task: Task, *, other_inputs: int) -> None:
    """Raise unless every query of the task is usable and leaves enough others beside it."""
    if not task.instances:
        raise HartError(f"task {task.label}: has no Instances to train on")
    for position, instance in enumerate(task.instances):
        if not instance.input.strip():
            name = instance.id or f"number {position}"
            raise HartError(f"task {task.label}: instance {name} has an empty input; fill or remove it")
    distinct = len({instance.input for instance in task.instances})
    if distinct <= other_inputs:
        raise HartError(
            f"task {task.label}: has {distinct} different inputs, too few to sample "
            f"demonstrations beside its queries; at least {other_inputs + 1} are needed, lower num_demonstrations"
        )
