"""Task files and tasks built in Python, and the errors for invalid ones."""

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hart.data.tasks import Demonstration, Instance, Task
from hart.errors import HartError

OFFICIAL: dict[str, Any] = {
    "Contributors": ["someone"],
    "Categories": ["Text Matching"],
    "Definition": ["Say whether the texts match.", "Another wording."],
    "Positive Examples": [
        {"input": "a / a", "output": "yes", "explanation": "They are equal."},
        {"input": "a / b", "output": "no", "explanation": ""},
    ],
    "Negative Examples": [{"input": "a / a", "output": "no", "explanation": "Wrong."}],
    "Instances": [
        {"id": "task9-1", "input": "c / c", "output": ["yes", "Yes"]},
        {"input": "c / d", "output": ["no"]},
    ],
}

TASK = Task(
    definition="Say whether the texts match.",
    demonstrations=[("a / a", "yes", "They are equal."), ("a / b", "no")],
    name="task9_match",
    categories=("Text Matching",),
    instances=[Instance("c / c", ("yes", "Yes"), "task9-1"), Instance("c / d", ("no",))],
)


def write(folder: Path, content: Any) -> Path:
    file = folder / "task9_match.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    return file


def changed(**entries: Any) -> dict[str, Any]:
    return {**OFFICIAL, **{key.replace("_", " "): value for key, value in entries.items()}}


def test_official_file_is_read_and_other_keys_are_ignored(tmp_path: Path) -> None:
    assert Task.from_file(write(tmp_path, OFFICIAL)) == TASK


@pytest.mark.parametrize(
    ("content", "definition", "demonstrations"),
    [
        ({"Definition": "Copy.", "Positive Examples": [{"input": "a", "output": "a"}]}, "Copy.", [("a", "a")]),
        ({"Definition": "Copy."}, "Copy.", []),
        ({"Definition": ["Copy."], "Positive Examples": []}, "Copy.", []),
        ({"Positive Examples": [{"input": "a", "output": "a"}]}, "", [("a", "a")]),
        ({"Definition": None, "Positive Examples": [{"input": "a", "output": "a"}]}, "", [("a", "a")]),
        ({"Definition": ["  \n"], "Positive Examples": [{"input": "a", "output": "a"}]}, "", [("a", "a")]),
        ({"Definition": [], "Positive Examples": [{"input": "a", "output": "a"}]}, "", [("a", "a")]),
    ],
)
def test_a_custom_file_needs_a_definition_or_positive_examples(
    content: dict[str, Any], definition: str, demonstrations: list[tuple[str, str]], tmp_path: Path
) -> None:
    task = Task.from_file(write(tmp_path, content))
    assert task == Task(definition, demonstrations, name="task9_match")
    assert task.instances == () and task.categories == ()
    assert Task.from_dict(task.to_dict(), source="here", name=task.name) == task


def test_demonstrations_are_normalised_from_every_form() -> None:
    wanted = Demonstration("a", "b", "c")
    forms = [wanted, ("a", "b", "c"), ["a", "b", "c"]]
    mapping = {"input": "a", "output": "b", "explanation": "c"}
    assert Task("Do.", [*forms, mapping]).demonstrations == (wanted,) * 4
    assert Task("Do.", (pair for pair in [("a", "b")])).demonstrations == (Demonstration("a", "b"),)


def test_task_is_immutable_hashable_replaceable_and_picklable() -> None:
    with pytest.raises(AttributeError):
        TASK.definition = "Other."  # type: ignore[misc]
    assert replace(TASK, name="other") != TASK
    assert replace(TASK) == TASK and hash(replace(TASK)) == hash(TASK)
    assert pickle.loads(pickle.dumps(TASK)) == TASK


@pytest.mark.parametrize("text", ["plain", "Grüße, 世界 🙂", 'a "quoted"\nline\ttab'])
def test_saved_task_comes_back(tmp_path: Path, text: str) -> None:
    task = replace(TASK, definition=text, instances=(Instance(text, (text, "")),))
    file = tmp_path / "new" / f"{task.name}.json"
    task.save(file)
    assert Task.from_file(file) == task
    assert Task.from_dict(task.to_dict(), source="here", name=task.name) == task
    assert [path.name for path in file.parent.iterdir()] == [file.name]  # nothing half-written


def test_task_that_cannot_be_saved_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HartError, match="cannot be written"):
        TASK.save(tmp_path / "file" / "task.json")
    (tmp_path / "task.json").mkdir()
    with pytest.raises(HartError, match="is a folder"):
        TASK.save(tmp_path / "task.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "task.json"]


def test_label_names_a_task_in_messages() -> None:
    assert TASK.label == "task9_match"
    assert Task("Do\nit.").label == "'Do it.'"
    assert Task(" ", [("a\nb", "c")]).label == "'a b'"


BAD_CONTENT = {
    "list": ([OFFICIAL], "must be a JSON object, not a list"),
    "neither": (changed(Definition=[" "], Positive_Examples=[]), "Definition and Positive Examples are both missing"),
    "neither key": ({"Instances": OFFICIAL["Instances"]}, "Definition and Positive Examples are both missing"),
    "number definition": (changed(Definition=[3]), "Definition must be a text, not a number"),
    "object examples": (
        changed(Positive_Examples={}),
        "Positive Examples must be a list, not an object",
    ),
    "text example": (
        changed(Positive_Examples=["a"]),
        r"Positive Examples\[0\] must be a JSON object, not a text",
    ),
    "example without output": (
        changed(Positive_Examples=[{"input": "a"}]),
        r"Positive Examples\[0\]: output is missing",
    ),
    "example with list output": (
        changed(Positive_Examples=[{"input": "a", "output": ["b"]}]),
        r"Positive Examples\[0\]: output must be a text, not a list",
    ),
    "null explanation": (
        changed(Positive_Examples=[{"input": "a", "output": "b", "explanation": None}]),
        r"Positive Examples\[0\]: explanation must be a text, not null",
    ),
    "object instances": (changed(Instances={}), "Instances must be a list, not an object"),
    "number instance": (
        changed(Instances=[1]),
        r"Instances\[0\] must be a JSON object, not a number",
    ),
    "empty output list": (
        changed(Instances=[OFFICIAL["Instances"][1], {"id": "x", "input": "a", "output": []}]),
        r"Instances\[1\] \(x\): output is an empty list",
    ),
    "text output": (
        changed(Instances=[{"input": "a", "output": "b"}]),
        r"Instances\[0\]: output must be a list of texts, not a text",
    ),
    "boolean output": (
        changed(Instances=[{"input": "a", "output": ["b", True]}]),
        r"Instances\[0\]: output\[1\] must be a text, not true or false",
    ),
    "instance without input": (
        changed(Instances=[{"output": ["b"]}]),
        r"Instances\[0\]: input is missing",
    ),
    "text categories": (changed(Categories="a"), "Categories must be a list, not a text"),
    "number category": (changed(Categories=[1]), r"Categories\[0\] must be a text, not a number"),
}


@pytest.mark.parametrize("case", BAD_CONTENT)
def test_bad_file_is_refused_in_one_line_that_names_file_and_field(tmp_path: Path, case: str) -> None:
    content, message = BAD_CONTENT[case]
    file = write(tmp_path, content)
    with pytest.raises(HartError, match=message) as caught:
        Task.from_file(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{'Definition': 1}", "the text is not JSON"),
        (b"", "the text is not JSON"),
        (json.dumps(OFFICIAL).encode()[:-1], "the text is not JSON"),
        (b"\xff\xfe{}", "the text is not UTF-8"),
    ],
)
def test_file_that_is_not_json_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "task.json"
    file.write_bytes(content)
    with pytest.raises(HartError, match=message) as caught:
        Task.from_file(file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_missing_file_and_folder_instead_of_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(HartError, match="no such task file"):
        Task.from_file(tmp_path / "absent.json")
    with pytest.raises(HartError, match="a folder; give one of its task files"):
        Task.from_file(tmp_path)
    with pytest.raises(
        HartError,
        match=r"tickets.csv: is a table, not a task file; make tasks of it with hart tasks make .*tickets.csv --output",
    ):
        Task.from_file(tmp_path / "tickets.csv")


@pytest.mark.parametrize(
    ("definition", "demonstrations", "message"),
    [
        (None, [("a", "b")], "definition must be a text, not null"),
        ("", [], "has neither a definition nor demonstrations; give at least one of the two"),
        (" \n", (), "has neither a definition nor demonstrations"),
        ("", [("", " ")], "has neither a definition nor demonstrations"),
        ("Do.", "ab", "demonstrations must be a list"),
        ("Do.", {"a": "b"}, "demonstrations must be a list"),
        ("Do.", ["ab"], r"demonstration 1 must be \(input, output\)"),
        ("Do.", [("a", "b"), ("a",)], r"demonstration 2 must be \(input, output\)"),
        ("Do.", [("a", 1)], "demonstration 1: output must be a text, not a number"),
        ("Do.", [{"input": "a"}], "demonstration 1: output is missing"),
        ("Do.", 3, "demonstrations must be a list"),
        ("Do.", [("a", "\ud800")], "demonstration 1: output contains an invalid character"),
        ("\ud800", [("a", "b")], "definition contains an invalid character"),
    ],
)
def test_bad_task_in_python_is_refused(definition: Any, demonstrations: Any, message: str) -> None:
    with pytest.raises(HartError, match=message):
        Task(definition, demonstrations)
    with pytest.raises(HartError, match="^task mine: "):
        Task(definition, demonstrations, name="mine")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Task("Do.", [("a", "b")], categories="abc"), "task: categories must be a list of texts, not a text"),
        (lambda: Task("Do.", [("a", "b")], categories=[1]), r"task: categories\[0\] must be a text, not a number"),
        (lambda: Task("Do.", [("a", "b")], name=3), "task: name must be a text, not a number"),
        (lambda: Task("Do.", [("a", "b")], "n", instances="abc"), "task n: instances must be a list of Instance"),
        (lambda: Task("Do.", [("a", "b")], instances=[("a", "b")]), "instance 1 must be an Instance, not a list"),
        (lambda: Task("Do.", [("a", "b")], instances=3), "instances must be a list of Instance, not a number"),
        (lambda: Demonstration("a", 3), "demonstration: output must be a text, not a number"),
        (lambda: Demonstration(None, "b"), "demonstration: input must be a text, not null"),
        (lambda: Instance("a", "yes", "x"), "instance x: references must be a list of texts, not a text"),
        (lambda: Instance("a", ("yes", 1)), r"instance: references\[1\] must be a text, not a number"),
        (lambda: Instance("a", ()), "instance: references is empty; give at least one"),
        (lambda: Instance(3, ("a",)), "instance: input must be a text, not a number"),
        (lambda: Instance("a", ("b",), 7), "instance: id must be a text, not a number"),
        (lambda: Instance("a", ("b",), choices="bc"), "instance: choices must be a list of texts, not a text"),
        (lambda: Instance("a", ("\ud800",)), r"instance: references\[0\] contains an invalid character"),
    ],
)
def test_types_are_checked_where_they_are_made(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(HartError, match=message):
        make()


def test_lists_are_kept_as_tuples() -> None:
    instance = Instance("a", ["b", "c"], choices=["b", "d"])
    assert instance == Instance("a", ("b", "c"), choices=("b", "d")) and hash(instance)
    assert hash(Task("Do.", [["a", "b"]], categories=["x"], instances=[instance]))


def test_every_real_task_file_keeps_what_it_says(shared_data: Path) -> None:
    files = sorted((shared_data / "sni" / "tasks").glob("*.json"))
    assert files
    for file in files:
        raw = json.loads(file.read_text(encoding="utf-8"))
        written = Task.from_file(file).to_dict()
        assert written["Definition"] == raw["Definition"][:1]
        for key in ("Categories", "Positive Examples", "Instances"):
            assert written[key] == raw[key]


CHOICE_TASK = {
    "Positive Examples": [{"input": "a", "output": "yes"}],
    "Instances": [{"input": "b", "output": ["no"], "choices": ["yes", "no"]}, {"input": "c", "output": ["yes"]}],
    "Choices": ["yes", "maybe", "no"],
}


def test_choices_are_an_instance_s_own_or_those_of_all():
    task = Task.from_dict(CHOICE_TASK, source="here")
    assert task.multiple_choice and task.definition == ""
    assert [each.choices for each in task.instances] == [("yes", "no"), ("yes", "maybe", "no")]
    assert Task.from_dict(task.to_dict(), source="here") == task
    assert task.label == "'a'"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Choices": "yes"}, "here: Choices must be a list, not a text"),
        ({"Choices": ["yes"]}, r"here: Instances\[1\]: has 1 choices; at least two"),
        ({"Choices": []}, r"here: Instances\[1\]: choices must be given for all instances or for none"),
        (
            {"Choices": ["no", "maybe"]},
            r"here: Instances\[1\]: the answer 'yes' is not among the choices \(no, maybe\)",
        ),
        ({"Choices": ["yes", 1]}, r"here: Instances\[1\]: choices\[1\] must be a text, not a number"),
        ({"Instances": [{"input": "b", "output": ["no"], "choices": "no"}]}, r"choices must be a list of texts"),
        ({"Instances": [{"id": "x", "input": "b", "output": ["no"], "choices": []}]}, r"\(x\): has 0 choices"),
    ],
)
def test_bad_choices_are_refused(change: dict, message: str):
    with pytest.raises(HartError, match=message):
        Task.from_dict({**CHOICE_TASK, **change}, source="here")
