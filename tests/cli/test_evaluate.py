"""hart evaluate: systems, tables and results.json, and what it refuses."""

import json
from pathlib import Path

import pytest

from hart import HartModel, Task
from hart.main_model import MainModel

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
    assert set(content["categories"]) == {"Odd", "Even"}


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


def test_absent_task_and_empty_query(model_dir: Path, sni_dir: Path, tmp_path: Path, refused) -> None:
    results = tmp_path / "results.json"
    file = sni_dir / "tasks" / "task4.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["Instances"][0]["input"] = "  "
    file.write_text(json.dumps(content), encoding="utf-8")
    assert "empty" in refused("evaluate", model_dir, *SNI, sni_dir, "--output", results)
    file.unlink()
    assert "task4" in refused("evaluate", model_dir, *SNI, sni_dir, "--output", results)
    assert not results.exists()


def test_output_is_refused_before_the_work(tmp_path: Path, sni_dir: Path, refused) -> None:
    words = ("evaluate", "absent-model", *SNI, sni_dir, "--output")
    assert "is a folder" in refused(*words, tmp_path)
    file = tmp_path / "file"
    file.touch()
    assert "cannot be written" in refused(*words, file / "results.json")


@pytest.mark.parametrize("system", ["hart", "base"])
@pytest.mark.parametrize("model", ["someone/absent-model", "no such folder/at all"])
def test_unknown_model_offline(model: str, system: str, sni_dir: Path, refused) -> None:
    assert model in refused("evaluate", model, *SNI, sni_dir, "--system", system)


def test_a_base_is_no_hart_model(tiny_base_dir: Path, sni_dir: Path, refused) -> None:
    assert "model_type" in refused("evaluate", tiny_base_dir, *SNI, sni_dir)
