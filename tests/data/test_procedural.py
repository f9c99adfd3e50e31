"""The bundled collection: correct answers, and held-out tasks that are new combinations of known parts."""

import hashlib
import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hart.data.procedural import SPLITS, Combination, collection, combinations, load_procedural, write_collection
from hart.data.procedural.collection import DEMONSTRATIONS, PHRASINGS
from hart.data.procedural.lexicon import ALL_WORDS, CATEGORIES, FRAME, NUMBERS, OPPOSITES, PAST, vocabulary
from hart.data.procedural.primitives import FINISHERS, SELECTORS
from hart.data.super_natural_instructions import load_sni
from hart.data.tasks import Task
from hart.errors import HartError

LEAST_TASKS, LEAST_FAMILIES = 150, 10
"""What the collection promises."""
COMPARED, LEAST_DIFFERENT = 200, 0.2
"""Inputs on which two tasks are compared, and the share of them on which they must differ."""
INSTANCES = 5
SIGNS = set("#();?")

HELD_OUT = [c for c in combinations() if c.split != "train"]


def named(name: str) -> Combination:
    return next(c for c in combinations() if c.name == f"procedural_{name}")


def digest() -> str:
    """Of everything a task file would hold."""
    content = [[t.name, *t.to_dict().values()] for split in SPLITS for t in load_procedural(split, max_instances=2)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def test_size_and_splits():
    assert len(combinations()) >= LEAST_TASKS
    assert len({c.selector.family for c in combinations()}) >= LEAST_FAMILIES
    names = [c.name for split in SPLITS for c in combinations(split)]
    assert len(names) == len(set(names)) == len(combinations())
    for split in ("validation", "test"):
        assert [c.selector.key for c in combinations(split)] == [s.key for s in SELECTORS]


def parts(combination: Combination) -> Iterator[str]:
    """Each primitive in the words of the combination's definition, and what else the definition is made of."""
    select = combination.selector.phrasings[combination.select_phrasing]
    finish = combination.finisher.phrasings[combination.finish_phrasing]
    definition = combination.definition()
    assert select.lower() in definition.lower() and finish in definition
    yield f"select {select}"
    yield f"finish {finish}"
    (noun,) = [noun for noun in combination.selector.source.nouns if noun in definition]
    yield f"noun {noun}"
    opening = definition.replace(noun, "").replace(finish, "")
    yield "opening " + re.sub(re.escape(select), "", opening, flags=re.IGNORECASE)


def test_every_wording_of_a_held_out_definition_occurs_in_training():
    trained = {part for c in combinations("train") for part in parts(c)}
    unknown = {part for c in HELD_OUT for part in parts(c)} - trained
    assert not unknown


def test_training_uses_every_phrasing_of_every_primitive():
    trained = combinations("train")
    selects = {(c.selector.key, c.select_phrasing) for c in trained}
    finishes = {(c.finisher.key, c.finish_phrasing) for c in trained}
    assert selects == {(s.key, i) for s in SELECTORS for i in range(PHRASINGS)}
    assert finishes == {(f.key, i) for f in FINISHERS for i in range(PHRASINGS)}


def test_phrasings_are_unambiguous():
    for primitives in (SELECTORS, FINISHERS):
        phrasings = [phrasing for primitive in primitives for phrasing in primitive.phrasings]
        assert len(phrasings) == len(set(phrasings))
        assert len({primitive.key for primitive in primitives}) == len(primitives)


def test_no_held_out_task_is_another_task_under_a_new_name():
    """As functions: on inputs of the held-out task, every other task that takes them answers otherwise."""
    same_source: dict[str, list[Combination]] = defaultdict(list)
    for combination in combinations():
        same_source[combination.selector.source.key].append(combination)
    alike = []
    for held_out in HELD_OUT:
        texts = held_out.draw(COMPARED)
        answers = [held_out.answer(text).split() for text in texts]
        selected = {
            s: [s.apply(text) for text in texts] for s in SELECTORS if s.source.key == held_out.selector.source.key
        }
        for other in same_source[held_out.selector.source.key]:
            theirs = map(other.finisher.apply, selected[other.selector])
            different = sum(their != answer for their, answer in zip(theirs, answers, strict=True))
            if other.name != held_out.name and different < LEAST_DIFFERENT * COMPARED:
                alike.append((held_out.name, other.name, different / COMPARED))
    assert not alike


WORD = re.compile(r"\w+")

INDEPENDENT: dict[str, Callable[[str], str]] = {
    "keep_animal_then_reverse": lambda t: " ".join(sorted(_only(t, "animal"), key=t.split().index, reverse=True)),
    "drop_color_then_count": lambda t: NUMBERS[len(t.split()) - len(_only(t, "color"))],
    "last_two_then_join": lambda t: re.sub(r".* (\w+) (\w+)$", r"\1 and \2", t),
    "all_but_first_then_announce": lambda t: "answer" + t[t.index(" ") :],
    "before_bar_then_plus": lambda t: t.partition(" # ")[0].replace(" ", " plus "),
    "after_bar_then_last": lambda t: WORD.findall(t)[-1],
    "inside_then_first": lambda t: re.search(r"\( (\w+)", t)[1],  # type: ignore[index]
    "even_then_repeat_each": lambda t: " ".join(f"{w} {w}" for w in t.split() if w in NUMBERS[::2]),
    "large_then_plain": lambda t: " ".join(w for w in t.split() if w in NUMBERS[11:]),
    "giver_receiver_then_swap": lambda t: re.sub(r".* (\w+) gave .* to (\w+) in .*", r"\2 \1", t),
    "keys_then_plain": lambda t: " ".join(re.findall(r"(\w+) \w+(?: ;|$)", t)),
    "values_then_count": lambda t: NUMBERS[t.count(";") + 1],
    "lookup_then_plain": lambda t: re.search(rf"{t.split()[0]} (\w+ \w+)( ;|$)", t[t.index("?") :])[1],  # type: ignore[index]
    "opposite_then_first": lambda t: OPPOSITES[WORD.findall(t)[0]],
    "past_then_reverse": lambda t: " ".join(PAST[w] for w in reversed(t.split())),
    "doubled_then_join": lambda t: " and ".join(dict.fromkeys(re.findall(r"\b(\w+)\b(?=.*\b\1\b)", t))),
}


def _only(text: str, category: str) -> list[str]:
    return [word for word in text.split() if word in CATEGORIES[category]]


@pytest.mark.parametrize("name", INDEPENDENT)
def test_answers_agree_with_an_independent_implementation(name: str):
    combination = named(name)
    for text in combination.draw(COMPARED):
        assert combination.answer(text) == INDEPENDENT[name](text), text


def test_tasks_are_complete_and_explained():
    for task in load_procedural("test", max_instances=INSTANCES):
        combination = named(task.name.removeprefix("procedural_"))
        assert task.definition == combination.definition()
        assert len(task.demonstrations) == DEMONSTRATIONS and len(task.instances) == INSTANCES
        inputs = [d.input for d in task.demonstrations] + [i.input for i in task.instances]
        assert len(set(inputs)) == len(inputs), "a demonstration gives the answer of an instance away"
        for demonstration in task.demonstrations:
            found = " ".join(combination.selector.apply(demonstration.input))
            answer = " ".join(combination.finisher.apply(found.split()))
            assert demonstration.output == answer
            assert f"first step gives: {found}." in demonstration.explanation
            assert f"second step gives: {answer}." in demonstration.explanation


def test_definitions_have_three_wordings_and_end_as_sentences():
    for combination in combinations():
        wordings = {combination.definition(rotation) for rotation in range(PHRASINGS)}
        assert len(wordings) == PHRASINGS
        for wording in wordings:
            assert wording[0].isupper() and wording.endswith(".") and "{" not in wording


def test_vocabulary_covers_inputs_and_outputs():
    tasks = [task for split in SPLITS for task in load_procedural(split, max_instances=INSTANCES)]
    outputs = {word for task in tasks for i in task.instances for word in i.references[0].split()}
    inputs = {word for task in tasks for i in task.instances for word in i.input.split()}
    assert outputs <= {*vocabulary()}
    assert inputs <= {*vocabulary(), *FRAME, *SIGNS}
    assert list(vocabulary()) == sorted(set(vocabulary()))


def test_a_word_has_one_category_and_one_opposite():
    assert len(set(ALL_WORDS)) == len(ALL_WORDS)
    assert all(OPPOSITES[OPPOSITES[word]] == word for word in OPPOSITES)


def test_selectors_find_something_in_every_input():
    for combination in combinations("test"):
        found = [combination.selector.apply(text) for text in combination.draw(COMPARED)]
        assert all(found)
        shorter = sum(len(words) < 2 for words in found)
        assert shorter <= LEAST_DIFFERENT * COMPARED


def test_another_process_makes_the_same_tasks():
    program = f"import runpy; print(runpy.run_path({str(Path(__file__))!r})['digest']())"
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    made = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert made.stdout.strip() == digest()


def comparable(task: Task) -> Task:
    """Training instances are shuffled on loading."""
    instances = sorted(task.instances, key=lambda instance: instance.id)
    return Task(task.definition, task.demonstrations, task.name, task.categories, instances)


def test_written_folder_reads_back_as_the_same_tasks(tmp_path: Path):
    folder = tmp_path / "new" / "collection"
    write_collection(folder, instances=INSTANCES)
    for split in ("train", "test"):
        read = load_sni(folder, split, max_instances=None)
        made = load_procedural(split, max_instances=INSTANCES)
        assert [comparable(task) for task in read] == [comparable(task) for task in made]
    listed = (folder / "splits" / "default" / "validation_tasks.txt").read_text().split()
    read = [Task.from_file(folder / "tasks" / f"{name}.json") for name in listed]
    assert read == load_procedural("validation", max_instances=INSTANCES)


def test_folder_that_exists_is_refused(tmp_path: Path):
    with pytest.raises(HartError, match="exists already"):
        write_collection(tmp_path)
    assert not any(tmp_path.iterdir())


def test_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(HartError, match="No space left"):
        write_collection(tmp_path / "collection", instances=1)
    assert not any(tmp_path.iterdir())


def test_unknown_split_is_refused():
    with pytest.raises(HartError, match="'dev' is unknown; use one of train, validation, test"):
        load_procedural("dev")


def test_more_instances_than_there_are_inputs_are_refused(monkeypatch: pytest.MonkeyPatch):
    few = iter(["cat dog"] * 1000)
    monkeypatch.setattr(collection, "draw_input", lambda *_: next(few))
    with pytest.raises(HartError, match="fewer than 2 different inputs"):
        named("plural_then_first").draw(2)
