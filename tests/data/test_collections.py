"""From the data section to tasks: collections, splits and caps."""

from pathlib import Path

import pytest

from hart.data.collections import load_tasks
from hart.data.procedural import load_procedural
from hart.data.procedural.collection import INSTANCES
from hart.data.super_natural_instructions import load_sni
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
