"""Tasks from tables: choice of rows, names, definitions, formats, and refused tables."""

import io
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from hart import HartError, Task
from hart.data.own_tasks.folder import add_tasks, drawn_for_testing
from hart.data.own_tasks.making import Fields, choose, hold_out, make_tasks
from hart.data.own_tasks.sources import open_sources
from hart.data.super_natural_instructions import load_sni
from hart.data.task_folders import list_file, read_list
from hart.runtime.files import writing

ROWS = [("one", "eno"), ("two", "owt"), ("three", "eerht"), ("four", "ruof")]


def write_csv(path: Path, rows: list[tuple[str, ...]], header: str = "input,output") -> Path:
    path.write_text("\n".join([header, *(",".join(row) for row in rows)]) + "\n", encoding="utf-8")
    return path


def made(path: Path | str, fields: Fields | None = None, **options):
    (source,) = open_sources([str(path)])
    return make_tasks(source, fields or Fields(), **{"definition": "Turn it.", **options})


def test_the_first_rows_are_shown_and_the_others_asked(tmp_path: Path) -> None:
    (only,) = made(write_csv(tmp_path / "turned words.csv", ROWS))
    assert only.task.name == "turned_words" and only.task.definition == "Turn it."
    assert [(each.input, each.output) for each in only.task.demonstrations] == ROWS[:2]
    assert [(each.input, each.references) for each in only.task.instances] == [(a, (b,)) for a, b in ROWS[2:]]
    assert only.shown == (f"{tmp_path}/turned words.csv, line 2", f"{tmp_path}/turned words.csv, line 3")


def test_every_format_gives_the_same_task(tmp_path: Path) -> None:
    rows = [{"input": a, "output": b} for a, b in ROWS]
    write_csv(tmp_path / "t.csv", ROWS)
    (tmp_path / "t.tsv").write_text("input\toutput\n" + "".join(f"{a}\t{b}\n" for a, b in ROWS), encoding="utf-8")
    (tmp_path / "t.json").write_text(json.dumps(rows), encoding="utf-8")
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "t.parquet")
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved" / "t"))
    found = [made(tmp_path / f"t.{ending}")[0].task for ending in ("csv", "tsv", "json", "jsonl", "parquet")]
    found += [made(tmp_path / "saved" / "t")[0].task]
    stream = io.BytesIO((tmp_path / "t.csv").read_bytes())
    (source,) = open_sources(["-"], format="csv", standard_input=stream)
    found += [make_tasks(source, Fields(), name="t", definition="Turn it.")[0].task]
    assert found == [found[0]] * 7


def test_class_labels_and_splits_of_a_data_set(tmp_path: Path) -> None:
    features = datasets.Features(
        {"input": datasets.Value("string"), "output": datasets.ClassLabel(names=["no", "yes"])}
    )
    rows = datasets.Dataset.from_dict({"input": list("abcd"), "output": [1, 0, 1, 0]}, features=features)
    datasets.DatasetDict(train=rows, test=rows).save_to_disk(str(tmp_path / "d"))
    with pytest.raises(HartError, match="several splits; choose one of train, test with --split"):
        open_sources([str(tmp_path / "d")])
    (source,) = open_sources([str(tmp_path / "d")], split="test")
    (only,) = make_tasks(source, Fields(), definition="Say it.")
    assert [each.output for each in only.task.demonstrations] == ["yes", "no"]


def test_a_hub_name_offline_is_one_line() -> None:
    with pytest.raises(
        HartError, match="^nobody/nothing: cannot be loaded from the hub, and no such file exists"
    ) as refused:
        open_sources(["nobody/nothing"])
    assert "\n" not in str(refused.value)


def test_a_task_for_each_value(tmp_path: Path) -> None:
    rows = [(f"{kind}{i}", "x", kind, f"Do {kind}.") for i in range(4) for kind in ("a b", "c")]
    path = write_csv(tmp_path / "all.csv", rows, "input,output,kind,what")
    by_kind = [each.task for each in made(path, Fields(task="kind", definition="what"), definition=None)]
    assert [(each.name, each.definition) for each in by_kind] == [("a_b", "Do a b."), ("c", "Do c.")]
    by_definition = [each.task for each in made(path, Fields(definition="what"), definition=None)]
    assert [each.name for each in by_definition] == ["all_1", "all_2"]
    assert [each.definition for each in by_definition] == ["Do a b.", "Do c."]
    write_csv(path, [*rows, ("z", "x", "c", "Do other.")], "input,output,kind,what")
    with pytest.raises(HartError, match="line 10: the definition differs from that of other rows of task 'c'"):
        made(path, Fields(task="kind", definition="what"), definition=None)


@pytest.mark.parametrize("kinds", [("C", "C++"), ("a", "A"), ("x y", "x_y")])
def test_values_that_make_one_name_are_refused(kinds: tuple[str, str], tmp_path: Path) -> None:
    """One letter is one object in Python; on some disks a capital is no other letter."""
    path = write_csv(tmp_path / "all.csv", [(f"{i}", "x", kind) for i in range(3) for kind in kinds], "input,output,k")
    with pytest.raises(HartError, match="two tasks would be called"):
        made(path, Fields(task="k"))


def test_a_long_value_makes_a_name_that_a_disk_takes(tmp_path: Path) -> None:
    rows = [(f"{i}", "x", "ä" * 300) for i in range(3)]
    (only,) = made(write_csv(tmp_path / "all.csv", rows, "input,output,k"), Fields(task="k"))
    add_tasks(tmp_path / "d", [only.task], testing=None, overwrite=False)
    add_tasks(tmp_path / "d", [only.task], testing=None, overwrite=True)
    assert read_list(list_file(tmp_path / "d", "train")) == [only.task.name]


def test_the_definition_beside_a_table(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "t.csv", ROWS)
    with pytest.raises(HartError, match=r"no definition.*t\.definition\.txt"):
        made(path, definition=None)
    (tmp_path / "t.definition.txt").write_text("Turn the word.\n", encoding="utf-8")
    (only,) = made(path, definition=None)
    assert only.task.definition == "Turn the word."
    assert [each.name for each in open_sources([str(tmp_path)])] == ["t"]  # a folder of tables


def test_labels_are_shown_in_turn() -> None:
    outputs = ["a"] * 5 + ["b"] * 3 + ["c"]
    assert choose(outputs, 5, None, "t") == ([0, 5, 8, 1, 6], 3)
    random, labels = choose(outputs, 3, 1, "t")
    assert labels == 3 and {outputs[index] for index in random} == {"a", "b", "c"}
    assert random == choose(outputs, 3, 1, "t")[0]
    free = [str(number) for number in range(9)]
    assert choose(free, 2, None, "t") == ([0, 1], 0)
    assert len({tuple(choose(free, 2, seed, "t")[0]) for seed in range(10)}) > 5


def test_what_is_shown_is_not_asked(tmp_path: Path) -> None:
    (only,) = made(write_csv(tmp_path / "t.csv", [*ROWS, ROWS[0]]))
    assert only.left_out == 1 and ROWS[0][0] not in [each.input for each in only.task.instances]
    # White space around a text is nothing that a model reads.
    (only,) = made(write_csv(tmp_path / "t.csv", [*ROWS, (f" {ROWS[0][0]} ", ROWS[0][1])]))
    assert only.left_out == 1 and [each.input for each in only.task.instances] == ["three", "four"]


def test_no_input_is_shown_twice(tmp_path: Path) -> None:
    (only,) = made(write_csv(tmp_path / "t.csv", [ROWS[0], ROWS[0], (f"{ROWS[0][0]} ", "no"), *ROWS[1:]]))
    assert [(each.input, each.output) for each in only.task.demonstrations] == ROWS[:2] and only.left_out == 2


def test_spellings_of_a_label_are_one_label() -> None:
    outputs = ["spam", "Spam", "SPAM ", "spam", "ham", "ham"]
    assert choose(outputs, 2, None, "t") == ([0, 4], 2)


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([("one",)], "line 2: has 1 fields, and the header has 2"),
        ([("one", " ")], "line 2: 'output' is empty"),
        ([(" ", "x")], "line 2: 'input' is empty"),
        ([("one", "x")], "has 1 rows with different inputs, too few for 2 demonstrations"),
        ([("one", "x"), ("one ", "y")], "has 1 rows with different inputs, too few for 2 demonstrations"),
        ([], "has no rows"),
    ],
)
def test_bad_tables(rows: list[tuple[str, ...]], told: str, tmp_path: Path) -> None:
    with pytest.raises(HartError, match=told):
        made(write_csv(tmp_path / "t.csv", rows))


def test_columns_and_files_that_are_not_there(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "t.csv", ROWS)
    with pytest.raises(
        HartError, match="has no field 'text', only 'input', 'output'; name the right one with --input-f"
    ):
        made(path, Fields(input="text"))
    with pytest.raises(HartError, match="cannot be read"):
        made(tmp_path / "none.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(HartError, match="holds no table"):
        open_sources([str(tmp_path / "empty")])
    with pytest.raises(HartError, match="has no outputs"):
        open_sources([str(tmp_path / "t.txt")])


def test_wrong_rows_can_be_left_out(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "t.csv", [("only",), *ROWS])
    told: list[str] = []
    (only,) = made(path, skip=lambda error: told.append(str(error)))
    assert len(told) == 1 and len(only.task.instances) == 2
    rows = [{"input": "only"}, *({"input": a, "output": b} for a, b in ROWS)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (only,) = made(tmp_path / "t.jsonl", skip=lambda error: told.append(str(error)))
    assert "line 1: has no field 'output'" in told[1] and len(only.task.instances) == 2


def test_no_number_is_no_answer(tmp_path: Path) -> None:
    """What pandas writes for an empty cell."""
    rows = [{"input": "a", "output": 1.0}, {"input": "b", "output": float("nan")}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "t.parquet")
    with pytest.raises(HartError, match="'output' is empty"):
        made(tmp_path / "t.parquet")


@pytest.mark.parametrize("option", ["split", "subset"])
def test_options_of_data_sets_alone(option: str, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "t.csv", ROWS)
    with pytest.raises(HartError, match=f"--{option}: is for a data set"):
        open_sources([str(path)], **{option: "train"})


def task(name: str, instances: int = 1) -> Task:
    from hart import Instance

    return Task(f"Do {name}.", [("a", "b")], name=name, instances=[Instance("c", ("d",))] * instances)


def test_tasks_are_added_to_a_folder_and_read_by_training(tmp_path: Path) -> None:
    add_tasks(tmp_path, [task("a"), task("b")], testing={"b"}, overwrite=False)
    add_tasks(tmp_path, [task("c"), task("d", instances=0)], testing=(), overwrite=False)
    assert [each.name for each in load_sni(tmp_path, "train", max_instances=None)] == ["a", "c"]
    assert [each.name for each in load_sni(tmp_path, "test", max_instances=None)] == ["b"]
    assert Task.from_file(tmp_path / "tasks" / "d.json").definition == "Do d."
    with pytest.raises(HartError, match=r"tasks/b\.json: exists; give --overwrite"):
        add_tasks(tmp_path, [task("b")], testing=(), overwrite=False)
    add_tasks(tmp_path, [task("b", 2), task("e")], testing=None, overwrite=True)  # stays where it is
    assert read_list(list_file(tmp_path, "train")) == ["a", "c", "e"]
    assert read_list(list_file(tmp_path, "test")) == ["b"]
    add_tasks(tmp_path, [task("b")], testing=(), overwrite=True)
    assert read_list(list_file(tmp_path, "train")) == ["a", "c", "e", "b"] and not list_file(tmp_path, "test").exists()
    assert not [each for each in tmp_path.iterdir() if each.name.startswith(".")]


def test_nothing_is_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_tasks(tmp_path, [task("a")], testing=(), overwrite=False)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    replace = writing._replace

    def fails(target: Path, *rest: Any) -> None:
        if target.name == "c.json":
            raise OSError(28, "No space left on device")
        replace(target, *rest)

    monkeypatch.setattr(writing, "_replace", fails)
    with pytest.raises(HartError, match=f"^{tmp_path}: cannot be written .No space left on device.$"):
        add_tasks(tmp_path, [task("a", 2), task("c")], testing=(), overwrite=True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_labels_become_choices(tmp_path: Path) -> None:
    """In the first spelling of each, so that the answer is one of the choices."""
    rows = [(f"query {number}", ["yes", "No", "no ", "YES"][number % 4]) for number in range(12)]
    (whole,) = made(write_csv(tmp_path / "t.csv", rows), choices=True)
    assert {each.choices for each in whole.task.instances} == {("yes", "No")} and whole.task.multiple_choice
    assert {each.references for each in whole.task.instances} == {("yes",), ("No",)}
    whole.task.save(tmp_path / "t.json")
    assert Task.from_file(tmp_path / "t.json").multiple_choice
    assert hold_out(whole, 3, 0)[1].multiple_choice
    with pytest.raises(HartError, match="task t: has 21 different outputs, and choices"):
        made(write_csv(tmp_path / "t.csv", [(f"q {n}", f"a {n}") for n in range(21)]), choices=True)


def test_held_out_rows_share_no_input_with_those_that_are_left(tmp_path: Path) -> None:
    """Rows with one input stay together, another seed draws others, and the names go into the list of test tasks."""
    rows = [(f"query {number // 2}", f"answer {number}") for number in range(40)]
    (whole,) = made(write_csv(tmp_path / "t.csv", rows))
    left, held = hold_out(whole, 9, 0)
    assert len(held.instances) == 10 and len(left.task.instances) + 10 == len(whole.task.instances)
    assert not {each.input for each in held.instances} & {each.input for each in left.task.instances}
    assert held.name == "t_held_out" and held.demonstrations == whole.task.demonstrations
    assert hold_out(whole, 9, 0)[1].instances == held.instances != hold_out(whole, 9, 1)[1].instances
    add_tasks(tmp_path / "own", [left.task], testing=None, overwrite=False, held_out=[held])
    assert read_list(list_file(tmp_path / "own", "train")) == ["t"]
    assert read_list(list_file(tmp_path / "own", "test")) == ["t_held_out"]


def test_rows_of_one_input_cannot_be_held_out(tmp_path: Path) -> None:
    rows = [("a", "1"), ("b", "2"), ("c", "3"), ("c", "4"), ("c", "5")]
    (whole,) = made(write_csv(tmp_path / "t.csv", rows))
    with pytest.raises(HartError, match="task t has 3 rows of 1 inputs, 2 cannot be held out"):
        hold_out(whole, 2, 0)


def test_tasks_to_test_on() -> None:
    names = list("abcde")
    assert drawn_for_testing(names, 2, 0) == drawn_for_testing(names[::-1], 2, 0)
    assert len(drawn_for_testing(names, 2, 0)) == 2 and not drawn_for_testing(names, 0, 0)
    with pytest.raises(HartError, match="5 of 5 tasks cannot be set aside"):
        drawn_for_testing(names, 5, 0)
