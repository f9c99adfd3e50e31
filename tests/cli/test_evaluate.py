"""hart evaluate: systems, tables and results.json, and refused input."""

import json
import os
import shutil
import stat
from pathlib import Path

import pytest

from hart import HartModel, Task
from hart.data.input_format import InputFormat
from hart.data.p3.subsets import load_p3
from hart.data.prompts import render_task
from hart.model import adapting
from hart.model.main_model import MainModel

SNI = ("--data", "sni", "--data-dir")


def predictions(path: Path) -> list[str]:
    tasks = json.loads(path.read_text(encoding="utf-8"))["tasks"]
    return [instance["prediction"] for task in tasks for instance in task["predictions"]]


def queries(sni_dir: Path, number: int) -> list[str]:
    return [instance.input for instance in Task.from_file(sni_dir / "tasks" / f"task{number}.json").instances]


def test_hart_adapts_to_each_task(model_dir: Path, sni_dir: Path, tmp_path: Path, ok) -> None:
    results = tmp_path / "new" / "results.json"
    ok("evaluate", model_dir, *SNI, sni_dir, "--batch-size", "2", "--output", results)
    model = HartModel.from_pretrained(model_dir)
    expected = []
    for number in (3, 4):
        adaptation = model.adapt(Task.from_file(sni_dir / "tasks" / f"task{number}.json"))
        expected += model.generate(queries(sni_dir, number), adaptation)
    assert predictions(results) == expected
    content = json.loads(results.read_text(encoding="utf-8"))
    assert content["system"] == "hart"
    assert content["details"]["model"] == str(model_dir)
    assert content["details"]["base_fingerprint"] == model.main.fingerprint
    assert content["details"]["split"] == "test"
    assert content["details"]["num_demonstrations"] is None  # nothing was drawn: the tasks have their own
    assert set(content["categories"]) == {"Odd", "Even"}


def test_the_base_beside_the_adapted_model(model_dir: Path, sni_dir: Path, tmp_path: Path, ok, refused) -> None:
    """One table and one file, with the scores that each system has by itself."""
    words, results = (model_dir, *SNI, sni_dir), tmp_path / "results.json"
    out = ok("evaluate", *words, "--against", "base", "--against", "base-in-context", "--output", results)
    content = json.loads(results.read_text(encoding="utf-8"))
    assert "against its base" in out and list(content["details"]["against"]) == [
        "base",
        "base-in-context",
    ]
    for system, scores in content["details"]["against"].items():
        ok("evaluate", *words, "--system", system, "--output", tmp_path / "alone.json")
        alone = json.loads((tmp_path / "alone.json").read_text(encoding="utf-8"))["overall"]
        assert scores == {name: alone[name] for name in scores}
    assert "--against needs an adapted model, and --system is base" in refused(
        "evaluate", *words, "--system", "base", "--against", "base"
    )


def test_half_precision_is_asked_for_and_noted(model_dir: Path, sni_dir: Path, tmp_path: Path, ok, monkeypatch) -> None:
    found = []
    monkeypatch.setattr(
        MainModel, "generate", lambda main, texts, *_, **__: found.append(main.model.dtype) or ["a"] * len(texts)
    )
    for system in ("hart", "base"):
        words = (model_dir, *SNI, sni_dir, "--system", system, "--output", tmp_path / "results.json")
        for dtype in ("float32", "bfloat16"):
            ok("evaluate", *words, "--dtype", dtype)
            details = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["details"]
            assert details["dtype"] == dtype and str(found[-1]) == f"torch.{dtype}"


def test_demonstrations_are_read_in_groups(
    model_dir: Path, task_file: Path, tmp_path: Path, monkeypatch, ok, refused
) -> None:
    read: list[int] = []
    adapt = adapting.adapt
    monkeypatch.setattr(
        adapting, "adapt", lambda m, t, form, cuts: read.append(form.demonstration_groups) or adapt(m, t, form, cuts)
    )
    output = tmp_path / "results.json"
    out = ok("evaluate", model_dir, "--task", task_file, "--demonstration-groups", 3, "--output", output)
    assert "warning: no task has demonstrations for a second group" in out
    assert read == [3] and json.loads(output.read_text())["details"]["demonstration_groups"] == 3
    line = refused("evaluate", model_dir, "--task", task_file, "--demonstration-groups", 3, "--system", "base")
    assert "--demonstration-groups: needs a hypernetwork, and --system is base" in line


@pytest.mark.parametrize("system", ["base", "base-in-context"])
def test_base_of_a_model_or_by_itself(
    system: str, model_dir: Path, tiny_base_dir: Path, sni_dir: Path, tmp_path: Path, ok
) -> None:
    # The query alone, as the main model would answer it with the lengths of the model's training.
    results = tmp_path / "results.json"
    words = (*SNI, sni_dir, "--system", system, "--max-instances", "2", "--output", results)
    ok("evaluate", model_dir, *words)
    answers = predictions(results)
    if system == "base":
        main = MainModel.from_pretrained(str(tiny_base_dir))
        form = {"max_query_length": 64, "max_new_tokens": 8}
        assert answers == [a for n in (3, 4) for a in main.generate(queries(sni_dir, n)[:2], **form)]
    ok("evaluate", tiny_base_dir, *words)
    # A plain T5 has the paper's lengths: the same answers, cut later.
    assert all(long.startswith(short[:4]) for long, short in zip(predictions(results), answers, strict=True))


@pytest.mark.parametrize(("system", "first"), [("copy-input", "one 3"), ("copy-demonstration", "3 one")])
@pytest.mark.parametrize("model", [[], ["anything"]])
def test_copying_needs_no_model(model: list[str], system: str, first: str, sni_dir: Path, tmp_path: Path, ok) -> None:
    results = tmp_path / "results.json"
    out = ok("evaluate", *model, *SNI, sni_dir, "--system", system, "--output", results)
    assert predictions(results)[0] == first
    assert f"results: {results}" in out


def test_procedural_tasks_without_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ok) -> None:
    monkeypatch.chdir(tmp_path)
    out = ok(
        "evaluate", "--data", "procedural", "--system", "copy-input", "--max-instances", "1", "--split", "validation"
    )
    assert "all instances" in out
    assert list(tmp_path.iterdir()) == []


def test_validation_tasks_are_those_of_training(sni_dir: Path, ok, refused) -> None:
    words = ("evaluate", *SNI, sni_dir, "--system", "copy-input", "--split", "validation")
    assert "--validation-tasks" in refused(*words)
    tables = {seed: ok(*words, "--validation-tasks", "1", "--data-seed", seed) for seed in ("0", "1", "2", "3")}
    assert len(set(tables.values())) > 1
    assert not any("task3" in table or "task4" in table for table in tables.values())


def test_missing_folder(model_dir: Path, tmp_path: Path, refused) -> None:
    results = tmp_path / "results.json"
    line = refused("evaluate", model_dir, *SNI, tmp_path / "absent", "--output", results)
    assert str(tmp_path / "absent") in line
    assert not results.exists()


def test_data_dir_is_for_sni(sni_dir: Path, refused) -> None:
    line = refused("evaluate", "--data", "procedural", "--data-dir", sni_dir, "--system", "copy-input")
    assert "--data-dir" in line


@pytest.mark.parametrize("system", ["hart", "base", "base-in-context"])
def test_a_blank_instance_is_read_as_it_is(system: str, model_dir: Path, sni_dir: Path, tmp_path: Path, hart) -> None:
    # An official task has one, and the published scores are over all instances.
    file = sni_dir / "tasks" / "task4.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["Instances"][1]["input"] = " \n"
    file.write_text(json.dumps(content), encoding="utf-8")
    results = tmp_path / "results.json"
    result = hart("evaluate", model_dir, *SNI, sni_dir, "--system", system, "--output", results)
    assert result.status == 0
    (line,) = result.err.splitlines()
    assert "task task4, instance two: read a blank instance as it is" in line
    answers = predictions(results)
    assert len(answers) == 10
    if system == "hart":  # the others are answered as if it were not there
        model = HartModel.from_pretrained(model_dir)
        adaptation = model.adapt(Task.from_file(file))
        asked = [text for text in queries(sni_dir, 4) if text.strip()]
        assert [answers[5], *answers[7:]] == model.generate(asked, adaptation)
        assert answers[6] == model.main.generate([[model.main.tokenizer.eos_token_id]], adaptation)[0]


def test_absent_task(model_dir: Path, sni_dir: Path, tmp_path: Path, refused) -> None:
    results = tmp_path / "results.json"
    file = sni_dir / "tasks" / "task4.json"
    file.unlink()
    assert "task4" in refused("evaluate", model_dir, *SNI, sni_dir, "--output", results)
    assert not results.exists()


def test_output_is_refused_before_the_work(tmp_path: Path, sni_dir: Path, refused) -> None:
    words = ("evaluate", "absent-model", *SNI, sni_dir, "--output")
    assert "is a folder" in refused(*words, tmp_path)
    file = tmp_path / "file"
    file.touch()
    assert "cannot be written" in refused(*words, file / "results.json")


def test_a_model_that_reads_definitions_is_not_for_p3(model_dir: Path, toy_p3_dir: Path, hart) -> None:
    result = hart("evaluate", model_dir, *P3, toy_p3_dir)
    assert result.status == 2 and "give a model trained on p3" in result.err.splitlines()[-1]


@pytest.mark.parametrize("system", ["hart", "base"])
@pytest.mark.parametrize("model", ["someone/absent-model", "no such folder/at all"])
def test_unknown_model_offline(model: str, system: str, sni_dir: Path, refused) -> None:
    assert model in refused("evaluate", model, *SNI, sni_dir, "--system", system)


def test_a_base_is_no_hart_model(tiny_base_dir: Path, sni_dir: Path, refused) -> None:
    assert "model_type" in refused("evaluate", tiny_base_dir, *SNI, sni_dir)


P3 = ("--data", "p3", "--data-dir")


def test_p3_prints_the_table_of_the_paper_beside_both_baselines(
    p3_model: Path, toy_p3_dir: Path, tmp_path: Path, hart
) -> None:
    results = tmp_path / "results.json"
    out = hart("evaluate", p3_model, *P3, toy_p3_dir, "--output", results).out
    assert "accuracy, mean over templates" in out and "macro-F1 of CB" in out
    (header,) = {line for line in out.splitlines() if "CB" in line and "┃" in line}
    assert [cell.strip() for cell in header.split("┃")[1:-1]] == ["system", "CB", "COPA", "Avg."]
    assert {line.split("│")[1].strip() for line in out.splitlines() if "33.3" in line} >= {"chance"}
    content = json.loads(results.read_text(encoding="utf-8"))
    assert set(content["details"]["baselines"]) == {"majority", "chance"}
    assert content["details"]["num_demonstrations"] == 16
    assert content["details"]["model"] == str(p3_model)
    tasks = load_p3(toy_p3_dir, "test")
    model = HartModel.from_pretrained(p3_model)
    expected = model.score(tasks[0].instances[0].input, tasks[0].instances[0].choices, model.adapt(tasks[0]))
    assert content["tasks"][0]["answers"][0]["scores"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("system", ["base", "base-in-context", "majority", "chance"])
def test_p3_baselines(system: str, tiny_base_dir: Path, toy_p3_dir: Path, hart) -> None:
    model = [] if system in ("majority", "chance") else [tiny_base_dir]
    words = ("--system", system, "--subsets", "super_glue_copa_*", "--max-instances", "2", "--normalisation", "mean")
    result = hart("evaluate", *model, *P3, toy_p3_dir, *words)
    assert result.status == 0 and "super_glue_copa_best_option" in result.out and "super_glue_cb" not in result.out


def test_validation_of_p3_needs_what_training_set_aside(toy_p3_dir: Path, hart, refused) -> None:
    words = ("evaluate", *P3, toy_p3_dir, "--system", "majority", "--split", "validation")
    assert "--validation-tasks" in refused(*words)
    assert hart(*words, "--validation-tasks", "1").status == 0


@pytest.fixture
def choice_task(tmp_path: Path) -> Path:
    content = {
        "Definition": "Is it so?",
        "Positive Examples": [{"input": "a cat", "output": "yes"}, {"input": "no cat", "output": "no"}],
        "Choices": ["yes", "no"],
        "Instances": [{"input": "the cat", "output": ["yes"]}, {"input": "no mat", "output": ["no"]}],
    }
    path = tmp_path / "question.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_a_task_file_of_one_s_own(model_dir: Path, p3_model: Path, choice_task: Path, sni_dir: Path, ok) -> None:
    out = ok("evaluate", model_dir, "--task", choice_task)
    assert "question" in out and "majority" in out and "macro-F1" in out
    content = json.loads(choice_task.read_text(encoding="utf-8"))
    choice_task.write_text(json.dumps({**content, "Definition": ""}), encoding="utf-8")
    assert "question" in ok("evaluate", p3_model, "--task", choice_task)  # which reads no definitions
    free = sni_dir / "tasks" / "task3.json"
    assert "ROUGE-L" in ok("evaluate", model_dir, "--task", free, "--task", sni_dir / "tasks" / "task4.json")


def test_what_does_not_go_together(model_dir: Path, choice_task: Path, sni_dir: Path, tmp_path: Path, refused) -> None:
    free = sni_dir / "tasks" / "task3.json"
    for words, said in (
        ((), "give either --data"),
        (("--task", free, "--data", "sni"), "give either --data"),
        (("--task", free, "--subsets", "x"), "--subsets: needs a collection"),
        (("--task", free, "--data-dir", "x"), "--data-dir: needs a collection"),
        (("--task", free, "--split", "validation"), "--split: needs a collection"),
        (("--task", free, "--task", choice_task), "some files have choices and some have none"),
        (("--task", choice_task, "--system", "copy-input"), "the tasks are multiple-choice; take majority or chance"),
        (("--task", free, "--system", "chance"), "the tasks have no choices; take copy-input"),
        (("--task", tmp_path / "absent.json"), "absent.json: no such task file"),
    ):
        assert said in refused("evaluate", model_dir, *words)
    content = json.loads(choice_task.read_text(encoding="utf-8"))
    content["Instances"][1]["output"] = ["maybe"]
    choice_task.write_text(json.dumps(content), encoding="utf-8")
    line = refused("evaluate", model_dir, "--task", choice_task)
    assert "question.json: Instances[1]: the answer 'maybe' is not among the choices" in line
    del content["Instances"], content["Definition"]
    choice_task.write_text(json.dumps(content), encoding="utf-8")
    assert "has no Instances" in refused("evaluate", model_dir, "--task", choice_task)


def test_a_second_file_is_checked_before_the_first_is_answered(
    model_dir: Path, sni_dir: Path, tmp_path: Path, refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HartModel, "adapt", lambda *_, **__: pytest.fail("adapted"))
    first, second = sni_dir / "tasks" / "task3.json", tmp_path / "second.json"
    content = json.loads(first.read_text(encoding="utf-8"))
    words = ("evaluate", model_dir, "--task", first, "--task", second)
    for changed, said in (
        ({"Definition": "", "Positive Examples": []}, f"{second}: Definition and Positive Examples are both"),
        ({"Instances": []}, f"{second}: has no Instances"),
        ({"Definition": ["a\ud800"]}, "second.json"),
        ({"Positive Examples": {}}, f"{second}: Positive Examples must be a list"),
    ):
        second.write_text(json.dumps({**content, **changed}), encoding="utf-8")
        assert said in refused(*words)


@pytest.mark.parametrize("text", ["both", "definition", "demonstrations"])
def test_one_part_of_each_task_can_be_shown(
    text: str, model_dir: Path, sni_dir: Path, tmp_path: Path, hart, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    encode = InputFormat.encode_task
    monkeypatch.setattr(InputFormat, "encode_task", lambda *given: read.append(encode(*given)) or read[-1])
    done = hart("evaluate", model_dir, *SNI, sni_dir, "--task-text", text, "--output", tmp_path / "results.json")
    assert done.status == 0 and len(done.err.splitlines()) == (text != "both")
    assert json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["details"]["task_text"] == text
    tokenizer, shown = HartModel.from_pretrained(model_dir).reader, []
    for number in (3, 4):
        whole = render_task(Task.from_file(sni_dir / "tasks" / f"task{number}.json"))
        at = whole.index(" Positive Example 1")
        shown.append({"both": whole, "definition": whole[:at], "demonstrations": whole[at:]}[text])
    assert read == [tokenizer(each).input_ids for each in shown]


def test_a_part_that_is_not_there_cannot_be_shown(
    model_dir: Path, p3_model: Path, toy_p3_dir: Path, sni_dir: Path, tmp_path: Path, hart, refused
) -> None:
    content = json.loads((sni_dir / "tasks" / "task3.json").read_text(encoding="utf-8"))
    (tmp_path / "mine.json").write_text(json.dumps({**content, "Definition": []}), encoding="utf-8")
    line = refused("evaluate", model_dir, "--task", tmp_path / "mine.json", "--task-text", "definition")
    assert "--task-text: is definition, and task mine has none" in line
    line = refused("evaluate", *SNI, sni_dir, "--task-text", "definition", "--system", "copy-demonstration")
    assert "task task3: has no demonstrations to copy an output from" in line
    line = refused("evaluate", model_dir, *SNI, sni_dir, "--task-text", "definition", "--diagnostics")
    assert "--diagnostics draws other demonstrations" in line
    done = hart("evaluate", p3_model, "--data", "p3", "--data-dir", toy_p3_dir, "--task-text", "definition")
    assert done.status == 2 and "--task-text: is definition, and task" in done.err.splitlines()[-1]


@pytest.mark.parametrize("order", [("日", "月"), ("月", "日")])
def test_choices_that_are_the_same_tokens_earn_what_guessing_does(
    order: tuple[str, str], model_dir: Path, tmp_path: Path, hart, choice_task: Path
) -> None:
    content = json.loads(choice_task.read_text(encoding="utf-8"))
    content["Choices"] = [f"one two three four five six seven eight {each}" for each in order]
    for instance in content["Instances"]:
        instance["output"] = ["one two three four five six seven eight 日"]
    choice_task.write_text(json.dumps(content), encoding="utf-8")
    results = tmp_path / "results.json"
    result = hart("evaluate", model_dir, "--task", choice_task, "--output", results)
    assert result.status == 0
    (cut, tied) = result.err.splitlines()
    assert "cut the end of the target" in cut
    assert "2 of 2 instances (in 1 of 1 tasks, first: question) have several best choices with equal scores" in tied
    found = json.loads(results.read_text(encoding="utf-8"))
    assert found["accuracy"] == 50 and found["tasks"][0]["tied_choices"] == 2
    assert found["details"]["tied_choices"]["instances"] == 2


def test_answers_without_a_word_that_rouge_counts_are_told(sni_dir: Path, tmp_path: Path, hart) -> None:
    for number in (3, 4):
        file = sni_dir / "tasks" / f"task{number}.json"
        content = json.loads(file.read_text(encoding="utf-8"))
        for instance in content["Instances"][:number]:
            instance["output"] = ["日本", "+"]
        file.write_text(json.dumps(content), encoding="utf-8")
    results = tmp_path / "results.json"
    result = hart("evaluate", *SNI, sni_dir, "--system", "copy-input", "--output", results)
    (line,) = result.err.splitlines()
    assert "7 of 10 instances (in 2 of 2 tasks, first: task3) have references without words" in line
    found = json.loads(results.read_text(encoding="utf-8"))
    assert found["details"]["references_without_words"]["instances"] == 7
    assert [task["references_without_words"] for task in found["tasks"]] == [3, 4]


def test_the_base_from_elsewhere(
    model_dir: Path, tiny_base_dir: Path, sni_dir: Path, tmp_path: Path, ok, refused
) -> None:
    model = shutil.copytree(model_dir, tmp_path / "model")
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    config["system"]["base"] = "runs/base"
    (model / "config.json").write_text(json.dumps(config), encoding="utf-8")
    base = shutil.copytree(tiny_base_dir, tmp_path / "base")
    words = ("evaluate", model, *SNI, sni_dir, "--max-instances", "1")
    for system in ("hart", "base"):
        assert "runs/base" in refused(*words, "--system", system)
        assert "all instances" in ok(*words, "--system", system, "--base", base)
    line = refused("evaluate", base, *SNI, sni_dir, "--system", "base", "--base", base)
    assert "--base" in line and "is not a HART model" in line


def test_a_device_stays_one(sni_dir: Path, tmp_path: Path, ok) -> None:
    device = tmp_path / "null"
    try:
        os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root may make devices")
    ok("evaluate", *SNI, sni_dir, "--system", "copy-input", "--output", device)
    assert device.is_char_device()


def test_real_subsets(p3_model: Path, shared_data: Path, hart) -> None:
    words = ("--subsets", "super_glue_copa_*", "--max-instances", "2")
    result = hart("evaluate", p3_model, *P3, shared_data / "p3", *words)
    assert result.status == 0 and "COPA" in result.out
