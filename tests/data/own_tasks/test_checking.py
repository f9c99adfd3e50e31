"""Checking a folder: counts, refused tasks, and the same cuts as in training."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from hart import HartError, Instance, Task
from hart.data.input_format import InputFormat
from hart.data.own_tasks.checking import Limits, check_folder, count_tasks
from hart.data.own_tasks.folder import add_tasks
from hart.data.sampling import TrainingDataset
from hart.data.super_natural_instructions import load_sni


def task(name: str, pairs: list[tuple[str, str]], definition: str = "") -> Task:
    instances = [Instance(a, (b,)) for a, b in pairs]
    return Task(definition or f"Do {name}.", [("shown", "s"), ("too", "t")], name=name, instances=instances)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    train = [
        task("good", [("a", "b"), ("c", "d")]),
        task("bad", [("a", "b"), ("a", "b "), ("a", "x"), ("shown", "s"), ("", "y"), ("z", " ")]),
        task("leak", [("q", "r"), ("u", "v")], definition="do   TEST."),
    ]
    add_tasks(tmp_path, [*train, task("test", [("q", "r"), ("w", "v")])], testing={"test"}, overwrite=False)
    return tmp_path


def test_what_is_counted(folder: Path) -> None:
    report = check_folder(folder)
    assert vars(report.splits["train"]) == {
        "tasks": 3,
        "rows": 10,
        "repeated": 1,
        "contradicting": 1,
        "shown": 1,
        "empty_inputs": 1,
        "empty_outputs": 1,
        "same_definition": 1,
        "same_rows": 1,
    }
    assert report.splits["test"].tasks == 1 and report.splits["test"].rows == 2
    assert report.refused == [] and report.lengths == {} and count_tasks(folder) == 4
    assert report.warnings["is a training task and has rows of a test task"] == ["leak"]
    assert report.warnings["has rows with the same input and different outputs"] == ["bad"]
    assert "has several demonstrations with the same input" not in report.warnings
    twice = Task("Do it.", [("a", "b"), (" a", "c")], name="good", instances=[Instance("c", ("d",))])
    twice.save(folder / "tasks" / "good.json")
    assert check_folder(folder).warnings["has several demonstrations with the same input"] == ["good"]


def test_what_training_refuses(folder: Path) -> None:
    (folder / "tasks" / "bad.json").write_text("{", encoding="utf-8")
    task("good", []).save(folder / "tasks" / "good.json")
    (folder / "tasks" / "leak.json").unlink()
    task("other", [("a", "b")]).save(folder / "tasks" / "other.json")
    report = check_folder(folder)
    assert [line.rpartition("/")[2].partition(":")[0] for line in report.refused] == [
        "good.json",
        "bad.json",
        "leak.json",
    ]
    assert report.warnings["is in neither list of tasks and is never read"] == ["other"]
    for line in report.refused:
        assert "\n" not in line
    with pytest.raises(HartError, match="no such folder"):
        check_folder(folder / "none")
    assert "train_tasks.txt: no such file; write one task name per line" in check_folder(folder / "tasks").refused[0]


def test_what_a_configuration_asks_for(folder: Path, tiny_tokenizer) -> None:
    limits = Limits(InputFormat(), tiny_tokenizer, tiny_tokenizer, validation_tasks=3)
    assert "validation_tasks: 3 of the 3 training tasks" in check_folder(folder, limits).refused[0]
    limits = Limits(InputFormat(num_demonstrations=1, demonstration_groups=2), tiny_tokenizer, tiny_tokenizer)
    assert check_folder(folder, limits).lengths["task"].texts == 8  # two groups of each
    sampled = Limits(InputFormat(), tiny_tokenizer, tiny_tokenizer, demonstrations="sampled")
    assert check_folder(folder, sampled).lengths["task"].texts == 1  # what evaluation reads of the test task


def test_the_same_is_cut_as_in_training(folder: Path, tiny_tokenizer, caplog: pytest.LogCaptureFixture) -> None:
    long = [("word " * number, "answer " * number) for number in range(1, 20)]
    add_tasks(folder, [task("long", long, definition="Say it. " * 20)], testing=(), overwrite=False)
    form = InputFormat(max_demonstrations_length=64, max_query_length=16, max_target_length=16)
    report = check_folder(folder, Limits(form, tiny_tokenizer, tiny_tokenizer))
    tasks = load_sni(folder, "train", max_instances=None)
    with caplog.at_level(logging.WARNING):
        TrainingDataset(tasks, tiny_tokenizer, form, length=1, seed=0)
    told = "\n".join(caplog.messages)
    for kind in ("cut the end of the definition to stay within 64 tokens", "left out instances with an empty input"):
        assert kind in report.warnings
    assert "cut the end of the definition to stay within 64 tokens" in told
    # Training's own count of queries and targets of these tasks; the test task adds none.
    assert f"queries: {report.lengths['query'].cut} of" in told
    assert f"targets: {report.lengths['target'].cut} of" in told
    assert report.lengths["query"].longest == max(len(form_of(query, tiny_tokenizer)) for query, _ in long), (
        "measured as it is, not as it is cut"
    )
    assert report.lengths["task"].cut == 5  # each loses a demonstration at least


def form_of(query: str, tokenizer) -> list[int]:
    return InputFormat(max_query_length=10_000).encode_query(tokenizer, query)


def test_sampled_demonstrations_need_enough_rows(folder: Path, tiny_tokenizer) -> None:
    limits = Limits(InputFormat(), tiny_tokenizer, tiny_tokenizer, demonstrations="sampled", queries_per_task=2)
    refused = check_folder(folder, limits).refused
    assert len(refused) == 2 and all("too few to sample demonstrations" in line for line in refused)


def test_tasks_of_one_part_are_told(folder: Path, tiny_tokenizer) -> None:
    for name, part in (("good", {"definition": ""}), ("bad", {"demonstrations": ()})):
        path = folder / "tasks" / f"{name}.json"
        replace(Task.from_file(path), **part).save(path)
    report = check_folder(folder)
    assert report.warnings["has no definition; a model that reads definitions cannot be trained on it"] == ["good"]
    assert report.warnings["has no demonstrations; to train on it, data.num_demonstrations must be 0"] == ["bad"]
    assert report.refused == []
    refused = check_folder(folder, Limits(InputFormat(), tiny_tokenizer, tiny_tokenizer)).refused
    assert ["the definition is empty" in refused[0], "has no demonstrations" in refused[1]] == [True, True]
    form = InputFormat(num_demonstrations=0)
    (line,) = check_folder(folder, Limits(form, tiny_tokenizer, tiny_tokenizer)).refused
    assert "task good: the definition is empty" in line
