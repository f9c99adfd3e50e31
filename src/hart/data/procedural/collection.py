"""The tasks of the procedural collection: combinations of primitives, their splits and their wordings.

The split of the grid of selectors × finishers is fixed (without a seed, so that a bundled base model trained
without the held-out combinations stays valid): each selector has one combination in the test split and one in
the validation split, chosen so that no training task is equivalent under another name (the first of the first
two words is the first of all words). Wordings of the training tasks follow a rotation that uses each phrasing
of each primitive. tests/data/test_procedural.py tests both.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hart.data.base import Collection
from hart.data.procedural.primitives import FINISHERS, SELECTORS, Finisher, Selector, draw_input
from hart.data.tasks import Demonstration, Instance, Task
from hart.errors import HartError
from hart.runtime.files import new_directory

if TYPE_CHECKING:
    from hart.data.config import DataConfig

SPLITS = ("train", "validation", "test")
DEMONSTRATIONS = 4
INSTANCES = 100
"""Default number of generated instances per task."""
PHRASINGS = 3
_WORDING = "_in_wording_"

_OPENINGS = (
    "You are given {source}. {Select}, then {finish}.",
    "The input is {source}. Your job: {select} and after that {finish}.",
    "In this task you see {source}. First {select}; second, {finish}.",
)


# selector → (finisher of its test task, finisher of its validation task)
_HELD_OUT: dict[str, tuple[str, str]] = {
    "keep_animal": ("plain", "plus"),
    "keep_fruit": ("first", "close"),
    "keep_color": ("repeat_each", "last"),
    "drop_animal": ("count", "reverse"),
    "drop_fruit": ("swap", "echo"),
    "drop_color": ("announce", "join"),
    "first_two": ("repeat_each", "plain"),
    "last_two": ("join", "repeat_each"),
    "all_but_first": ("close", "join"),
    "before_bar": ("count", "reverse"),
    "after_bar": ("last", "count"),
    "inside": ("first", "last"),
    "small": ("plain", "plus"),
    "large": ("first", "join"),
    "even": ("repeat_each", "swap"),
    "numbers": ("join", "repeat_each"),
    "words": ("plus", "announce"),
    "giver_receiver": ("close", "plain"),
    "color_thing": ("announce", "echo"),
    "day_place": ("repeat_each", "plain"),
    "keys": ("reverse", "first"),
    "values": ("swap", "reverse"),
    "lookup": ("last", "repeat_each"),
    "opposite": ("last", "plus"),
    "past": ("plus", "swap"),
    "plural": ("first", "swap"),
    "dedupe": ("count", "reverse"),
    "doubled": ("echo", "announce"),
}


@dataclass(frozen=True)
class Combination:
    """One task of the collection: two primitives, its split, and the phrasing of each in its definition."""

    selector: Selector
    finisher: Finisher
    split: str
    select_phrasing: int
    finish_phrasing: int

    @property
    def name(self) -> str:
        return f"procedural_{self.selector.key}_then_{self.finisher.key}"

    def definition(self, rotation: int = 0) -> str:
        """The task definition; `rotation` 0 is the standard one, 1 and 2 are other wordings."""
        i = (self.select_phrasing + rotation) % PHRASINGS
        j = (self.finish_phrasing + rotation) % PHRASINGS
        select, finish = self.selector.phrasings[i], self.finisher.phrasings[j]
        return _OPENINGS[(i + j) % PHRASINGS].format(
            source=self.selector.source.nouns[(i + 2 * j) % PHRASINGS],
            select=select,
            Select=select[0].upper() + select[1:],
            finish=finish,
        )

    def answer(self, text: str) -> str:
        """The only correct output for an input text."""
        return " ".join(self.finisher.apply(self.selector.apply(text)))

    def explain(self, text: str) -> str:
        """The explanation of a demonstration, with both steps."""
        found = " ".join(self.selector.apply(text))
        return f"The first step gives: {found}. The second step gives: {self.answer(text)}."

    def draw(self, count: int, *, salt: str = "") -> list[str]:
        """`count` distinct input texts, equal for equal `salt`."""
        key = hashlib.sha256(f"{self.name}/{salt}".encode()).digest()[:8]
        rng = np.random.default_rng(int.from_bytes(key, "little"))
        texts: dict[str, None] = {}
        for _ in range(50 * count):
            texts.setdefault(draw_input(self.selector, rng))
            if len(texts) == count:
                return list(texts)
        raise HartError(f"procedural: {self.name} has fewer than {count} different inputs; ask for fewer instances")


def _split(selector: Selector, finisher: Finisher) -> str:
    test, validation = _HELD_OUT[selector.key]
    return {test: "test", validation: "validation"}.get(finisher.key, "train")


def combinations(split: str | None = None) -> list[Combination]:
    """All combinations of the grid, or those of one split, in a fixed order.

    Raises:
        HartError: `split` is not one of train, validation, test.
    """
    if split is not None and split not in SPLITS:
        raise HartError(f"procedural: split '{split}' is unknown; use one of {', '.join(SPLITS)}")
    found = [
        Combination(
            selector,
            finisher,
            _split(selector, finisher),
            (i + j) % PHRASINGS,
            (i + j // PHRASINGS + j) % PHRASINGS,
        )
        for i, selector in enumerate(SELECTORS)
        for j, finisher in enumerate(FINISHERS)
    ]
    return [c for c in found if split is None or c.split == split]


def build_task(combination: Combination, instances: int, wording: int = 0) -> Task:
    """The combination as a `Task` with `DEMONSTRATIONS` explained demonstrations and `instances` instances.

    Each `wording` of the definition is a separate task with its own name and inputs.
    """
    name = f"{combination.name}{_WORDING}{wording + 1}" if wording else combination.name
    texts = combination.draw(DEMONSTRATIONS + instances, salt=str(wording) if wording else "")
    demonstrations = tuple(
        Demonstration(t, combination.answer(t), combination.explain(t)) for t in texts[:DEMONSTRATIONS]
    )
    rest = tuple(Instance(t, (combination.answer(t),), f"{name}-{i}") for i, t in enumerate(texts[DEMONSTRATIONS:]))
    return Task(
        definition=combination.definition(wording),
        demonstrations=demonstrations,
        name=name,
        categories=(combination.selector.family,),
        instances=rest,
    )


def load_procedural(split: str, *, max_instances: int = INSTANCES) -> list[Task]:
    """The tasks of one split, each with `max_instances` instances.

    Training combinations have all three wordings, each as a task: with only one wording per combination, a model
    would memorise combinations. Held-out combinations have one wording.

    Raises:
        HartError: the split is unknown, or a task has fewer distinct inputs than `max_instances`.
    """
    wordings = range(PHRASINGS) if split == "train" else (0,)
    return [build_task(combination, max_instances, w) for combination in combinations(split) for w in wordings]


class Procedural(Collection):
    name = "procedural"
    hub_name = None
    has_validation = True

    def load(self, data: "DataConfig", split: str) -> list[Task]:
        """As `Collection.load`; `data.validation_tasks` validation tasks (0: all), spread evenly over the selectors."""
        cap = data.max_test_instances if split == "test" else data.max_train_instances
        tasks = load_procedural(split, max_instances=cap or INSTANCES)
        wanted = data.validation_tasks
        if split == "validation" and 0 < wanted < len(tasks):
            tasks = [tasks[i * len(tasks) // wanted] for i in range(wanted)]
        return tasks

    def training_unit(self, task: Task) -> str:
        """As `Collection.training_unit`: the combination in all its wordings."""
        return task.name.split(_WORDING)[0]

    def other_definition(self, task: Task) -> str | None:
        """The definition in the next wording; None for tasks of other collections, and for tasks in another wording."""
        return next((each.definition(1) for each in combinations() if each.name == task.name), None)


def write_collection(directory: str | Path, *, instances: int = INSTANCES) -> None:
    """Write the collection as a folder in the official Super-NaturalInstructions layout.

    `tasks/*.json` have one task each, `splits/default/` the three lists. The folder is written atomically.

    Raises:
        HartError: `directory` exists already, or cannot be written.
    """
    directory = Path(directory)
    if directory.exists():
        raise HartError(f"{directory}: exists already; name a new folder for the collection")
    with new_directory(directory, replaces="splits") as partial:
        (partial / "tasks").mkdir()
        (partial / "splits" / "default").mkdir(parents=True)
        for split in SPLITS:
            tasks = load_procedural(split, max_instances=instances)
            for task in tasks:
                task.save(partial / "tasks" / f"{task.name}.json")
            listing = "".join(f"{task.name}\n" for task in tasks)
            (partial / "splits" / "default" / f"{split}_tasks.txt").write_text(listing, encoding="utf-8")
