"""From the data section to tasks: collections, splits and caps."""

from pathlib import Path

import pytest

from hart.data.collections import COLLECTIONS, load_tasks
from hart.data.procedural import load_procedural
from hart.data.procedural.collection import INSTANCES
from hart.data.super_natural_instructions import load_sni
from hart.data.tasks import Demonstration, Task
from hart.errors import HartError
from hart.training.config import DataConfig


def procedural(**fields: int | None) -> DataConfig:
    return DataConfig(collection="procedural", **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_procedural_tasks_under_the_caps(split: str):
    data = procedural(max_train_instances=3, max_test_instances=2)
    assert load_tasks(data, split) == load_procedural(split, max_instances=2 if split == "test" else 3)


def test_procedural_without_a_cap_has_an_end():
    tasks = load_tasks(procedural(max_test_instances=None, max_train_instances=1), "test")
    assert {len(task.instances) for task in tasks} == {INSTANCES}


@pytest.mark.parametrize("wanted", [1, 7, 27])
def test_some_validation_tasks_are_spread_over_all(wanted: int):
    everything = [task.name for task in load_tasks(procedural(max_train_instances=1), "validation")]
    some = load_tasks(procedural(max_train_instances=1, validation_tasks=wanted), "validation")
    places = [everything.index(task.name) for task in some]
    assert len(places) == wanted and places == sorted(set(places))
    gaps = {b - a for a, b in zip(places, [*places[1:], len(everything)], strict=True)}
    assert max(gaps) - min(gaps) <= 1


def test_asking_for_all_or_more_validation_tasks_gives_all():
    everything = load_tasks(procedural(max_train_instances=1), "validation")
    for wanted in (len(everything), len(everything) + 1):
        assert load_tasks(procedural(max_train_instances=1, validation_tasks=wanted), "validation") == everything


def test_folder_is_read_under_its_own_caps_and_seed(toy_data_dir: Path):
    data = DataConfig(dir=str(toy_data_dir), max_train_instances=4, max_test_instances=2, validation_tasks=1, seed=3)
    held_out = {"seed": 3, "validation_tasks": 1}
    for split, cap in (("train", 4), ("validation", 4), ("test", 2)):
        assert load_tasks(data, split) == load_sni(toy_data_dir, split, max_instances=cap, **held_out)
    names = [{task.name for task in load_tasks(data, split)} for split in ("train", "validation", "test")]
    assert [len(each) for each in names] == [2, 1, 1] and len(set.union(*names)) == sum(map(len, names))


def test_missing_folder_is_refused(tmp_path: Path):
    with pytest.raises(HartError, match="nowhere: no such folder"):
        load_tasks(DataConfig(dir=str(tmp_path / "nowhere")), "train")


def test_few_training_tasks_are_among_many_and_come_in_all_wordings():
    everything = load_tasks(procedural(max_train_instances=1), "train")
    few, many = (
        [t.name for t in load_tasks(procedural(max_train_instances=1, training_tasks=n), "train")] for n in (5, 40)
    )
    assert (len(few), len(many)) == (15, 120) and set(few) < set(many) < {task.name for task in everything}
    assert [name for name in many if name in few] == few, "another order"
    others = load_tasks(procedural(max_train_instances=1, training_tasks=5, seed=1), "train")
    assert {task.name for task in others} != set(few)
    assert load_tasks(procedural(max_train_instances=1, training_tasks=280), "train") == everything
    held_out = procedural(max_train_instances=1, training_tasks=5)
    assert len(load_tasks(held_out, "validation")) == len(load_tasks(held_out, "test")) == 28


def test_few_training_tasks_of_a_folder_are_none_that_were_set_aside(toy_data_dir: Path):
    data = DataConfig(dir=str(toy_data_dir), training_tasks=1, validation_tasks=1, seed=3)
    assert len(load_tasks(data, "train")) == 1
    assert load_tasks(data, "train")[0].name != load_tasks(data, "validation")[0].name


def test_templates_of_a_p3_data_set_are_one_training_task():
    unit = COLLECTIONS["p3"].training_unit
    named = [
        Task(definition="", demonstrations=(Demonstration("a", "b"),), name=name)
        for name in ("glue_mrpc_equivalent", "glue_mrpc_want_to_know")
    ]
    assert unit(named[0]) == unit(named[1]) == "glue_mrpc"


def test_more_training_tasks_than_there_are_is_refused(toy_data_dir: Path):
    with pytest.raises(HartError, match="data.training_tasks: 4 is more than the 3 that sni has; lower it"):
        load_tasks(DataConfig(dir=str(toy_data_dir), training_tasks=4), "train")


def test_training_tasks_of_text_are_refused():
    with pytest.raises(HartError, match="data.training_tasks: must be null with four_segments, which is text"):
        DataConfig(collection="four_segments", num_demonstrations=1, training_tasks=3)
