"""hart adapt: tasks from files and from options, and refused input."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hart import Adaptation, HartModel, Task
from hart.data.config import DataConfig
from hart.model.config import ModelConfig

WORDS = ("--definition", "Repeat the word.", "--demonstration", "a", "a a")


@pytest.fixture
def damaged_model(tmp_path: Path, model_dir: Path) -> Path:
    """A copy of the model to be damaged."""
    return shutil.copytree(model_dir, tmp_path / "damaged")


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content | changes), encoding="utf-8")


def test_words_and_python_give_the_same(model_dir: Path, tmp_path: Path, ok) -> None:
    out = ok("adapt", model_dir, *WORDS, "--output-dir", tmp_path / "new" / "a")
    assert str(tmp_path / "new" / "a") in out
    saved = Adaptation.from_pretrained(tmp_path / "new" / "a")
    expected = HartModel.from_pretrained(model_dir).adapt(Task("Repeat the word.", [("a", "a a")]))
    assert saved.tasks == expected.tasks
    for name, values in expected.blocks.items():
        assert torch.equal(saved.blocks[name], values)


def test_more_demonstrations_are_read_in_groups(model_dir: Path, tmp_path: Path, hart) -> None:
    words = (*WORDS, "--demonstration", "b", "b b", "--demonstration", "c", "c c")
    result = hart("adapt", model_dir, *words, "--demonstration-groups", 2, "--output-dir", tmp_path / "a")
    assert (result.status, result.err) == (0, "")
    task = Task("Repeat the word.", [("a", "a a"), ("b", "b b"), ("c", "c c")])
    expected = HartModel.from_pretrained(model_dir).adapt(task, demonstration_groups=2)
    for name, values in Adaptation.from_pretrained(tmp_path / "a").blocks.items():
        assert torch.equal(values, expected.blocks[name])


def test_the_same_again_replaces(model_dir: Path, adaptation_dir: Path, task_file: Path, ok, refused) -> None:
    ok("adapt", model_dir, "--task", task_file, "--output-dir", adaptation_dir)
    line = refused("adapt", model_dir, *WORDS, "--output-dir", adaptation_dir)
    assert "holds another adaptation" in line
    assert Adaptation.from_pretrained(adaptation_dir).tasks[0]["name"] == task_file.stem


def test_a_demonstration_that_does_not_fit_is_said(model_dir: Path, tmp_path: Path, hart) -> None:
    words = ("--definition", "Repeat what is long.", "--demonstration", "long " * 300, "a")
    result = hart("adapt", model_dir, *words, "--output-dir", tmp_path / "a")
    assert result.status == 0
    (line,) = result.err.splitlines()
    assert line.startswith("hart: warning: ") and "left out demonstration 1 of 1" in line


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "not JSON"),
        ("[]", "must be a JSON object"),
        (json.dumps({"Definition": [" "], "Positive Examples": []}), "Definition and Positive Examples are both"),
        (
            json.dumps(
                {
                    "Definition": ["Swap."],
                    "Positive Examples": [{"input": "a", "output": "b"}],
                    "Instances": [{"id": "1", "input": "a", "output": []}],
                }
            ),
            "output is an empty list",
        ),
        (None, "no such task file"),
    ],
)
def test_bad_task_file(content: str | None, told: str, model_dir: Path, tmp_path: Path, refused) -> None:
    path = tmp_path / "task.json"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    line = refused("adapt", model_dir, "--task", path, "--output-dir", tmp_path / "a")
    assert str(path) in line and told in line
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "no task"),
        (["--definition", " "], "no task"),
        (["--task", "x.json", "--definition", "Swap."], "--task"),
    ],
)
def test_bad_task_in_words(words: list[str], told: str, model_dir: Path, tmp_path: Path, refused) -> None:
    assert told in refused("adapt", model_dir, *words, "--output-dir", tmp_path / "a")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("words", "task", "lacks"),
    [
        (("--definition", "Swap."), Task("Swap."), "'Swap.': has no demonstrations"),
        (("--demonstration", "a", "b"), Task("", [("a", "b")]), "'a': has no definition"),
    ],
)
def test_one_part_of_a_task_will_do(
    words: tuple[str, ...], task: Task, lacks: str, model_dir: Path, tmp_path: Path, hart
) -> None:
    task.save(tmp_path / "task.json")
    for name, given in (("words", words), ("file", ("--task", tmp_path / "task.json"))):
        made = hart("adapt", model_dir, *given, "--output-dir", tmp_path / name)
        assert made.status == 0
        (line,) = made.err.splitlines()
        assert lacks.partition(": ")[2] in line and line.startswith("hart: warning: task")
        (saved,) = Adaptation.from_pretrained(tmp_path / name).read_tasks()
        assert (saved.definition, saved.demonstrations) == (task.definition, task.demonstrations)
    answers = {hart("predict", tmp_path / name, "--input", "a").out for name in ("words", "file")}
    assert len(answers) == 1


def test_truncated_weights(damaged_model: Path, tmp_path: Path, refused) -> None:
    weights = damaged_model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    line = refused("adapt", damaged_model, *WORDS, "--output-dir", tmp_path / "a")
    assert str(damaged_model) in line
    assert not (tmp_path / "a").exists()


def test_weights_of_another_kind(damaged_model: Path, tmp_path: Path, refused) -> None:
    edit_config(damaged_model, peft=[{"kind": "telepathy"}])
    assert "telepathy" in refused("adapt", damaged_model, *WORDS, "--output-dir", tmp_path / "a")
    edit_config(damaged_model, peft=[{"kind": "prefix", "length": 9}])
    assert str(damaged_model) in refused("adapt", damaged_model, *WORDS, "--output-dir", tmp_path / "a")
    edit_config(damaged_model, model_type="bert")
    assert "bert" in refused("adapt", damaged_model, *WORDS, "--output-dir", tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_another_base(damaged_model: Path, tiny_base_dir: Path, tmp_path: Path, refused) -> None:
    base = shutil.copytree(tiny_base_dir, tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    save_file({name: 2 * values for name, values in tensors.items()}, base / "model.safetensors", {"format": "pt"})
    system = json.loads((damaged_model / "config.json").read_text(encoding="utf-8"))["system"]
    edit_config(damaged_model, system=system | {"base": str(base)})
    line = refused("adapt", damaged_model, *WORDS, "--output-dir", tmp_path / "a")
    assert "weights differ" in line
    edit_config(damaged_model, system=system | {"base": str(tmp_path / "absent")})
    assert str(tmp_path / "absent") in refused("adapt", damaged_model, *WORDS, "--output-dir", tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_existing_folder_with_other_content(tmp_path: Path, refused) -> None:
    (tmp_path / "a").mkdir()
    note = tmp_path / "a" / "thesis.tex"
    note.touch()
    # Before the model is loaded.
    line = refused("adapt", "absent-model", *WORDS, "--output-dir", tmp_path / "a")
    assert "exists with other content" in line
    assert [*(tmp_path / "a").iterdir()] == [note]


def test_another_adaptation_is_replaced_if_asked_to(model_dir: Path, tmp_path: Path, ok, refused) -> None:
    first, second = (
        ("adapt", model_dir, "--definition", what, "--demonstration", "a", "b", "--output-dir", tmp_path / "a")
        for what in ("Swap.", "Turn.")
    )
    ok(*first)
    ok(*first)  # the same task
    assert "a: holds another adaptation; give a new folder, or --overwrite" in refused(*second)
    ok(*second, "--overwrite")
    assert Adaptation.from_pretrained(tmp_path / "a").tasks[0]["Definition"] == ["Turn."]
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith(".hart")] == []
    (tmp_path / "a" / "notes.txt").write_text("mine")
    assert "a: exists with other content" in refused(*second, "--overwrite")
    assert (tmp_path / "a" / "notes.txt").read_text() == "mine"


def test_missing_model_folder(tmp_path: Path, refused) -> None:
    assert "absent" in refused("adapt", tmp_path / "absent", *WORDS, "--output-dir", tmp_path / "a")
    (tmp_path / "empty").mkdir()
    assert "config.json" in refused("adapt", tmp_path / "empty", *WORDS, "--output-dir", tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_model_of_prompts_needs_demonstrations(p3_model: Path, tmp_path: Path, refused) -> None:
    line = refused("adapt", p3_model, "--definition", "Swap.", "--output-dir", tmp_path / "a")
    assert "task 'Swap.': has no demonstrations, and the model reads nothing else" in line


def test_a_model_of_prompts_needs_no_definition(p3_model: Path, tmp_path: Path, ok) -> None:
    ok("adapt", p3_model, "--demonstration", "a cat?", "yes", "--output-dir", tmp_path / "words")
    path = tmp_path / "task.json"
    path.write_text(json.dumps({"Positive Examples": [{"input": "a cat?", "output": "yes"}]}), encoding="utf-8")
    ok("adapt", p3_model, "--task", path, "--output-dir", tmp_path / "file")
    answers = {ok("predict", tmp_path / name, "--input", "a mat?") for name in ("words", "file")}
    assert len(answers) == 1


@pytest.mark.parametrize("dash", ["-x", "--tusk", "-", "--", "-h", "--output-dir=there", "-0.5"])
def test_texts_may_begin_with_a_dash(dash: str, model_dir: Path, tmp_path: Path, ok) -> None:
    for words in (("--definition", dash), (f"--definition={dash}",)):
        folder = tmp_path / words[-1].replace("/", "")
        ok("adapt", model_dir, *words, "--demonstration", dash, dash, "--output-dir", folder)
        (task,) = Adaptation.from_pretrained(folder).tasks
        assert task["Definition"] == [dash]
        assert [(each["input"], each["output"]) for each in task["Positive Examples"]] == [(dash, dash)]
        assert ok("predict", folder, "--input", dash) == ok("predict", folder, f"--input={dash}")


@pytest.mark.parametrize("words", [("--definition", "caf\udce9"), ("--demonstration", "a", "\udc80")])
def test_arguments_that_are_not_utf_8(words: tuple[str, ...], model_dir: Path, tmp_path: Path, refused) -> None:
    line = refused("adapt", model_dir, *words, "--output-dir", tmp_path / "a")
    assert f"{words[0]}: must be text in UTF-8" in line


def test_how_many_demonstrations_are_read_is_said(model_dir: Path, tmp_path: Path, hart) -> None:
    words = [word for number in range(5) for word in ("--demonstration", f"a {number}", "b")]
    result = hart("adapt", model_dir, "--definition", "Swap.", *words, "--output-dir", tmp_path / "a")
    assert result.status == 0
    (line,) = result.err.splitlines()
    assert line == "hart: warning: task 'Swap.': reads 2 of 5 demonstrations"


def test_the_base_from_elsewhere(
    model_dir: Path, tiny_base_dir: Path, tmp_path: Path, damaged_model, ok, refused
) -> None:
    system = json.loads((damaged_model / "config.json").read_text(encoding="utf-8"))["system"]
    edit_config(damaged_model, system=system | {"base": "runs/base"})
    assert "runs/base" in refused("adapt", damaged_model, *WORDS, "--output-dir", tmp_path / "a")
    base = shutil.copytree(tiny_base_dir, tmp_path / "base")
    ok("adapt", damaged_model, *WORDS, "--output-dir", tmp_path / "a", "--base", base)
    assert Adaptation.from_pretrained(tmp_path / "a").base == str(base)  # where it was found


def test_the_working_directory_and_a_link_take_an_adaptation(
    model_dir: Path, tmp_path: Path, ok, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    ok("adapt", model_dir, *WORDS, "--output-dir", tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / "adaptation.json").exists()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    ok("adapt", model_dir, *WORDS, "--output-dir", ".")
    assert Adaptation.from_pretrained(tmp_path / "here").tasks


def test_a_model_that_reads_nothing_needs_no_definition(tiny_base_dir: Path, tmp_path: Path, hart) -> None:
    model = ModelConfig(base=str(tiny_base_dir), weights="learned", fusion=False)
    HartModel.from_config(model, DataConfig(demonstrations_to="nowhere")).save_pretrained(tmp_path / "tuned")
    done = hart("adapt", tmp_path / "tuned", "--demonstration", "a", "b", "--output-dir", tmp_path / "a")
    assert done.status == 0 and "is not read: this model answers queries without" in done.err
