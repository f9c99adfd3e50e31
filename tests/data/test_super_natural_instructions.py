"""S-NI from a folder and in the hub's layout: splits, caps, draws, and malformed collections."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pytest

from hart.data.super_natural_instructions import load_sni
from hart.data.tasks import Task
from hart.errors import HartError

TRAIN = [f"task{number:03d}_train" for number in range(8)]
TEST = ["task101_test", "task100_test"]  # the order of the list is kept
INSTANCES = 12


def content(name: str) -> dict[str, Any]:
    return {
        "Definition": [f"Definition of {name}."],
        "Categories": ["Some"],
        "Positive Examples": [
            {"input": f"{name} in {k}", "output": f"out {k}", "explanation": f"why {k}"} for k in range(2)
        ],
        "Instances": [
            # As in the real files: some inputs come twice, and answers vary in number.
            {
                "id": f"{name}-{k}",
                "input": f"query {k // 2}",
                "output": [f"{k}", "b", "c"][: 1 + k % 3],
            }
            for k in range(INSTANCES)
        ],
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "splits" / "default").mkdir(parents=True)
    for split, names in (("train", TRAIN), ("test", TEST), ("excluded", ["task200_absent"])):
        file = tmp_path / "splits" / "default" / f"{split}_tasks.txt"
        file.write_text("\n".join(names) + "\n")
    for name in TRAIN + TEST:
        (tmp_path / "tasks" / f"{name}.json").write_text(json.dumps(content(name)))
    return tmp_path


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same tasks as a local data set in the layout of the hub's."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    root = tmp_path / "hub"
    for split, names in (("train", TRAIN), ("test", TEST)):
        (root / split).mkdir(parents=True)
        for position, name in enumerate(names):
            # One file per task; files are read in the order of their names.
            file = root / split / f"{position:02d}_{name}_{split}.jsonl"
            file.write_text("".join(json.dumps(row) + "\n" for row in hub_rows(name)))
    return root


def hub_rows(name: str) -> list[dict[str, Any]]:
    task = content(name)
    examples = {
        f"pos_{index}_{key}": value
        for index, example in enumerate(task["Positive Examples"])
        for key, value in example.items()
    }
    return [
        {
            "task_name": name,
            "id": instance["id"],
            "definition": task["Definition"][0],
            "inputs": instance["input"],
            "targets": output,
            "eval": False,
            **examples,
        }
        for instance in task["Instances"]
        for output in instance["output"]
    ]


def names(tasks: list[Task]) -> list[str]:
    return [task.name for task in tasks]


def ids(task: Task) -> list[str]:
    return [instance.id for instance in task.instances]


def in_file(task: Task) -> list[str]:
    return [f"{task.name}-{k}" for k in range(INSTANCES)]


def test_test_split_is_the_first_instances_in_file_order(folder: Path) -> None:
    tasks = load_sni(folder, "test", max_instances=5, seed=3)
    assert names(tasks) == TEST
    assert [ids(task) for task in tasks] == [in_file(task)[:5] for task in tasks]


def test_training_instances_are_a_shuffle_by_seed_and_name(folder: Path) -> None:
    whole = load_sni(folder, "train", max_instances=None, seed=1)
    assert names(whole) == TRAIN
    for task in whole:
        assert ids(task) != in_file(task) and sorted(ids(task)) == sorted(in_file(task))
    capped = load_sni(folder, "train", max_instances=4, seed=1)
    assert [ids(task) for task in capped] == [ids(task)[:4] for task in whole]
    other = load_sni(folder, "train", max_instances=None, seed=2)
    assert [ids(task) for task in other] != [ids(task) for task in whole]

    def positions(task: Task) -> list[str]:
        return [identifier.rsplit("-", 1)[1] for identifier in ids(task)]

    assert len({tuple(positions(task)) for task in whole}) > 1  # each task has its own shuffle


def test_a_task_keeps_its_instances_whatever_else_the_split_names(folder: Path) -> None:
    before = load_sni(folder, "train", max_instances=4)
    (folder / "splits/default/train_tasks.txt").write_text(f"{TRAIN[5]}\n\n{TRAIN[2]}\n")
    after = load_sni(folder, "train", max_instances=4)
    assert after == [before[5], before[2]]


def test_validation_tasks_leave_the_training_split(folder: Path) -> None:
    arguments: dict[str, Any] = {"max_instances": 4, "validation_tasks": 3}
    drawn = set()
    for seed in range(5):
        training = load_sni(folder, "train", seed=seed, **arguments)
        validation = load_sni(folder, "validation", seed=seed, **arguments)
        assert len(validation) == 3
        assert sorted(names(training) + names(validation)) == TRAIN
        assert validation == load_sni(folder, "validation", seed=seed, **arguments)
        assert all(len(task.instances) == 4 for task in validation)
        drawn.add(tuple(names(validation)))
    assert len(drawn) > 1
    assert names(load_sni(folder, "test", seed=0, **arguments)) == TEST


def test_validation_tasks_do_not_depend_on_the_order_of_the_list(folder: Path) -> None:
    before = load_sni(folder, "validation", max_instances=1, validation_tasks=3)
    (folder / "splits/default/train_tasks.txt").write_text("\n".join(reversed(TRAIN)))
    after = load_sni(folder, "validation", max_instances=1, validation_tasks=3)
    assert after == before[::-1]


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize("max_instances", [5, None])
def test_hub_rows_become_the_tasks_of_the_folder(
    folder: Path, hub: Path, split: str, max_instances: int | None
) -> None:
    arguments: dict[str, Any] = {"max_instances": max_instances, "validation_tasks": 2, "seed": 4}
    from_hub = load_sni(None, split, hub_name=str(hub), **arguments)
    from_folder = load_sni(folder, split, **arguments)
    assert names(from_hub) == names(from_folder)
    for got, wanted in zip(from_hub, from_folder, strict=True):
        assert got.definition == wanted.definition
        assert got.demonstrations == wanted.demonstrations
        assert got.instances == wanted.instances
        assert got.categories == ()  # the rows do not have them


@pytest.mark.parametrize("missing", ["", None])
def test_hub_task_with_one_example_leaves_the_second_empty(hub: Path, missing: str | None) -> None:
    file = next((hub / "test").glob(f"*{TEST[0]}*"))
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        row.update(dict.fromkeys(("pos_1_input", "pos_1_output", "pos_1_explanation"), missing))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = load_sni(None, "test", max_instances=1, hub_name=str(hub))
    assert [len(task.demonstrations) for task in tasks] == [1, 2]


def test_hub_that_cannot_be_reached_is_one_line() -> None:
    with pytest.raises(HartError, match=r"nobody/nothing: cannot be loaded from the hub, split 'test'") as caught:
        load_sni(None, "test", max_instances=1, hub_name="nobody/nothing")
    assert "\n" not in str(caught.value)


def test_a_cache_of_the_hub_needs_no_network(
    hub: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What another program downloaded is enough, though `datasets` has not prepared it."""
    repository = tmp_path / "cache" / "datasets--jayelm--natural-instructions"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("c" * 40)
    (repository / "snapshots").mkdir()
    hub.rename(repository / "snapshots" / ("c" * 40))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    tasks = load_sni(None, "test", max_instances=None)
    assert [task.instances for task in tasks] == [
        task.instances for task in load_sni(folder, "test", max_instances=None)
    ]
    assert "only its local cache is used" in caplog.messages[-1]


def test_hub_without_demonstrations_is_refused(hub: Path) -> None:
    for file in hub.glob("*/*.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        kept = [{k: v for k, v in row.items() if not k.startswith("pos_")} for row in rows]
        file.write_text("".join(json.dumps(row) + "\n" for row in kept))
    with pytest.raises(HartError, match="no column pos_0_input, pos_0_output"):
        load_sni(None, "test", max_instances=1, hub_name=str(hub))


def remove_list(folder: Path) -> None:
    (folder / "splits/default/train_tasks.txt").unlink()


def remove_tasks(folder: Path) -> None:
    (folder / "tasks").rename(folder / "renamed")


def name_absent_task(folder: Path) -> None:
    (folder / "splits/default/train_tasks.txt").write_text(f"{TRAIN[0]}\ntask999_absent\n")


def empty_list(folder: Path) -> None:
    (folder / "splits/default/train_tasks.txt").write_text("\n")


def break_task(folder: Path) -> None:
    (folder / "tasks" / f"{TRAIN[1]}.json").write_text("{")


def remove_instances(folder: Path) -> None:
    entries = content(TRAIN[1])
    del entries["Instances"]
    (folder / "tasks" / f"{TRAIN[1]}.json").write_text(json.dumps(entries))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove_list, "train_tasks.txt: no such file"),
        (remove_tasks, "tasks: no such folder"),
        (name_absent_task, "train_tasks.txt: names the task 'task999_absent', but .* not exist"),
        (empty_list, "train_tasks.txt: lists no task"),
        (break_task, f"{TRAIN[1]}.json: not a task file, the text is not JSON"),
        (remove_instances, f"task '{TRAIN[1]}' has no Instances"),
    ],
)
def test_damaged_folder_is_refused_in_one_line(folder: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(folder)
    with pytest.raises(HartError, match=message) as caught:
        load_sni(folder, "train", max_instances=1)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HartError, match="absent: no such folder; the data folder must be laid out"):
        load_sni(tmp_path / "absent", "train", max_instances=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "dev"}, "split: 'dev' is not one of train, validation, test"),
        ({"split": "train", "max_instances": 0}, "max_instances: must be at least 1"),
        ({"split": "validation"}, "validation_tasks: is 0"),
        ({"split": "train", "validation_tasks": 8}, "validation_tasks: 8 of the 8 training tasks"),
        ({"split": "train", "validation_tasks": -1}, "validation_tasks: -1 of the 8"),
    ],
)
def test_bad_argument_is_refused(folder: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(HartError, match=message):
        load_sni(folder, **{"max_instances": 1, **arguments})


def test_real_collection(shared_data: Path) -> None:
    root = shared_data / "sni"
    listed = {
        split: (root / "splits/default" / f"{split}_tasks.txt").read_text().split() for split in ("train", "test")
    }
    training = load_sni(root, "train", max_instances=100, validation_tasks=10)
    validation = load_sni(root, "validation", max_instances=100, validation_tasks=10)
    test = load_sni(root, "test", max_instances=100)
    assert sorted(names(training) + names(validation)) == sorted(listed["train"])
    assert names(test) == listed["test"]
    for task in [*training, *validation, *test]:
        raw = json.loads((root / "tasks" / f"{task.name}.json").read_text())["Instances"]
        assert len(task.instances) == min(100, len(raw))
        if task in test:
            assert ids(task) == [instance["id"] for instance in raw[:100]]
