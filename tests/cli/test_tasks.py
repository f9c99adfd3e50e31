"""hart tasks: from a table to a folder that commands read, and the check of a folder."""

import json
import re
from pathlib import Path

import pytest

from hart import HartModel, Task
from hart.data.task_folders import list_file, read_list
from hart.training.config import load
from hart.training.train import train

TABLE = "text,label\n" + "".join(f"ticket {i},{'abc'[i % 3]}\n" for i in range(12))
OPTIONS = ("--input-field", "text", "--output-field", "label", "--definition", "- Name the letter: a, b or c.")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "tickets.csv"
    path.write_text(TABLE, encoding="utf-8")
    return path


def test_from_a_table_to_an_adaptation(table: Path, model_dir: Path, tmp_path: Path, ok) -> None:
    out = ok("tasks", "make", table, *OPTIONS, "--output-dir", tmp_path / "own")
    assert "10 instances; demonstrations (the first row of each of 2 of 3 labels)" in out
    file = tmp_path / "own" / "tasks" / "tickets.json"
    assert Task.from_file(file).definition == "- Name the letter: a, b or c."
    ok("adapt", model_dir, "--task", file, "--output-dir", tmp_path / "a")


def test_rows_are_held_out_to_test_on(table: Path, tmp_path: Path, ok) -> None:
    out = ok("tasks", "make", table, *OPTIONS, "--test-rows", "3", "--output-dir", tmp_path / "own")
    assert "tickets: 7 instances" in out and "1 tasks (0 to test on); 3 held-out rows in 1 more test tasks" in out
    left, held = (
        Task.from_file(tmp_path / "own" / "tasks" / f"{name}.json") for name in ("tickets", "tickets_held_out")
    )
    assert (left.definition, left.demonstrations) == (held.definition, held.demonstrations)
    assert len(left.instances) == 7 and len(held.instances) == 3
    assert not {each.input for each in left.instances} & {each.input for each in held.instances}
    checked = json.loads(ok("tasks", "check", tmp_path / "own", "--format", "json"))[0]
    assert {split: checked["splits"][split]["tasks"] for split in ("train", "test")} == {"train": 1, "test": 1}


def test_rows_of_a_test_task_are_not_held_out(tmp_path: Path, hart) -> None:
    """A replaced task stays in the list of test tasks; only the others are split, and told of without it."""
    (tmp_path / "t.csv").write_text("task," + TABLE.replace("ticket", "a,ticket"), encoding="utf-8")
    with (tmp_path / "t.csv").open("a", encoding="utf-8") as file:
        file.writelines(f"b,ticket {i},a\n" for i in range(12))
    make = ("tasks", "make", tmp_path / "t.csv", *OPTIONS, "--task-field", "task", "--output-dir", tmp_path / "own")
    assert hart(*make, "--test-tasks", "1").status == 0
    (tested,) = read_list(list_file(tmp_path / "own", "test"))
    (trained,) = read_list(list_file(tmp_path / "own", "train"))
    split = hart(*make, "--test-rows", "3", "--overwrite")
    assert "2 tasks (1 to test on); 3 held-out rows in 1 more test tasks" in split.out
    assert "all its rows" not in split.err
    assert len(Task.from_file(tmp_path / "own" / "tasks" / f"{tested}.json").instances) == 10
    assert read_list(list_file(tmp_path / "own", "test")) == [tested, f"{trained}_held_out"]
    again = hart(*make, "--overwrite")
    assert f"task {trained}: is trained on all its rows, and the test task {trained}_held_out" in again.err
    assert f"task {tested}:" not in again.err


def test_labels_that_nothing_names(table: Path, tmp_path: Path, hart, ok) -> None:
    options = ("--input-field", "text", "--output-field", "label", "--definition", "Do it.")
    told = hart("tasks", "make", table, *options, "--output-dir", tmp_path / "own")
    assert told.status == 0 and "neither the definition nor a demonstration names the labels 'c'" in told.err
    assert "first row of each of 3 labels in turn" in ok(
        "tasks", "make", table, *options, "--demonstrations", "3", "--output-dir", tmp_path / "three"
    )


def test_existing_tasks_are_refused_without_overwrite(table: Path, tmp_path: Path, ok, refused) -> None:
    make = ("tasks", "make", table, *OPTIONS, "--output-dir", tmp_path / "own")
    ok(*make)
    assert "exists; give --overwrite" in refused(*make, "--seed", "1")
    ok(*make, "--seed", "1", "--overwrite")


def test_check_as_table_and_as_json(table: Path, model_dir: Path, config_file: Path, tmp_path: Path, hart, ok) -> None:
    ok("tasks", "make", table, *OPTIONS, "--output-dir", tmp_path / "own", "--name", "letters")
    out = ok("tasks", "check", tmp_path / "own")
    assert "give --model or --config" in out
    found = json.loads(ok("tasks", "check", tmp_path / "own", "--model", model_dir, "--format", "json"))
    assert found[0]["splits"]["train"] | {"tasks": 1, "rows": 10} == found[0]["splits"]["train"]
    assert found[0]["lengths"]["query"]["limit"] == 64 and found[0]["refused"] == []
    assert "target" in ok("tasks", "check", tmp_path / "own", "--config", config_file)
    (tmp_path / "own" / "tasks" / "letters.json").unlink()
    result = hart("tasks", "check", tmp_path / "own")
    assert result.status == 1 and "refused: " in result.out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("tickets.csv", "--definition", " "), "--definition: is empty"),
        (("tickets.csv", "--definition", "a", "--definition-field", "b"), "give one"),
        (("-", "--definition", "a"), "--input-format"),
        (("none.csv", "--definition", "a"), "cannot be read"),
        (("tickets.csv", "--definition", "a"), "--input-field"),
        (("tickets.csv", "tickets.csv", "--name", "x", "--definition", "a"), "--name"),
        (("tickets.csv", "tickets.csv", *OPTIONS), "two tasks would be called 'tickets'"),
        (("tickets.csv", *OPTIONS, "--test-tasks", "1"), "--test-tasks"),
        (("tickets.csv", *OPTIONS, "--test-rows", "10"), "--test-rows: task tickets has 10 rows beside"),
    ],
)
def test_refusals(words: tuple[str, ...], told: str, table: Path, tmp_path: Path, refused, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert told in refused("tasks", "make", *words, "--output-dir", "own")
    assert not (tmp_path / "own").exists()


def test_a_missing_folder_and_another_collection(tmp_path: Path, refused) -> None:
    assert "no such folder" in refused("tasks", "check", tmp_path / "none")
    (tmp_path / "c.yaml").write_text("data: {collection: procedural}", encoding="utf-8")
    assert "needs sni" in refused("tasks", "check", tmp_path, "--config", tmp_path / "c.yaml")


REPOSITORY = Path(__file__).resolve().parents[2]


def test_the_guide_in_small(tiny_base_dir: Path, tmp_path: Path, ok, hart, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guide's own Python and commands, with 12 tasks and 3 steps of a tiny model."""
    guide = (REPOSITORY / "docs" / "own_tasks.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(import csv.*?)```", guide, re.DOTALL)
    (commands,) = re.findall(r"```\n(hart tasks make replace.*?)```", guide, re.DOTALL)
    make, check, training, evaluation = commands.replace("\\\n", "").splitlines()
    monkeypatch.chdir(tmp_path)
    exec(code.replace("200", "12"), {})
    config = REPOSITORY / "configs" / "mini" / "hart_own.yaml"
    small = ["--model.base", str(tiny_base_dir), "--training.max_steps", "3", "--training.batch_size", "4"]
    small += ["--training.trackers", "[]", "--training.save_every", "3"]
    out = ok(*make.split()[1:-5], "3", *make.split()[-4:])  # three tasks to test on
    assert "12 tasks (3 to test on): replace" in out
    assert "│ rows" in ok(*check.replace("configs/mini/hart_own.yaml", str(config)).split()[1:])
    words = training.replace("configs/mini/hart_own.yaml", str(config)).split()[1:]
    assert hart(*words, *small, "--device", "cpu").status == 0
    assert hart(*evaluation.split()[1:], "--max-instances", "1", "--device", "cpu").status == 0
    assert len(json.loads(Path("results.json").read_text(encoding="utf-8"))["tasks"]) == 3
    overrides = ["--data.dir", "replace", *small, "--training.output_dir", "from-python"]
    final = HartModel.from_pretrained(train(load(config, overrides), quiet=True))
    trained = HartModel.from_pretrained("runs/mini/hart_own/final")
    for one, other in zip(final.hypernetwork.parameters(), trained.hypernetwork.parameters(), strict=True):
        assert one.equal(other)
