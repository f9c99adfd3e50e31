"""hart train, and the whole way from a configuration file to answers."""

import json
from pathlib import Path

import pytest

from hart import HartModel, Task
from hart.cli.options import split_overrides
from hart.cli.train import OWN_OPTIONS
from hart.training.config import load


def test_from_task_files_to_answers(
    config_file: Path, sni_dir: Path, task_file: Path, tmp_path: Path, ok, hart
) -> None:
    final = tmp_path / "run" / "final"
    trained = hart("train", config_file, "--training.alpha", "2", "--device", "cpu")
    assert trained.status == 0 and str(final) in trained.out
    # Without a terminal: what is trained, then a line for each row of metrics.jsonl.
    begins = [line.split()[0] for line in trained.err.splitlines()]
    assert begins == ["training", "step", "step", "step", "step"]
    assert load(tmp_path / "run" / "config.yaml").training.alpha == 2
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]

    results = tmp_path / "results.json"
    out = ok("evaluate", final, "--data", "sni", "--data-dir", sni_dir, "--max-instances", "2", "--output", results)
    assert all(name in out for name in ("task3", "task4", "Odd", "Even", "ROUGE-L"))
    scored = json.loads(results.read_text(encoding="utf-8"))
    assert [len(task["predictions"]) for task in scored["tasks"]] == [2, 2]

    first, second = tmp_path / "first", tmp_path / "second"
    ok("adapt", final, "--task", task_file, "--output-dir", first)
    words = ("--definition", "Repeat the word.", "--demonstration", "a", "a a", "--demonstration", "b", "b b")
    ok("adapt", final, *words, "--output-dir", second)

    queries = [
        ("first", "one 7"),
        ("second", "two"),
        (str(first), "a much longer query, to be padded to"),
        ("second", "x"),
    ]
    lines = [{"adaptation": name, "input": text, "id": i} for i, (name, text) in enumerate(queries)]
    asked, answered = tmp_path / "queries.jsonl", tmp_path / "answers.jsonl"
    asked.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    assert ok("predict", first, second, "--input-file", asked, "--output-file", answered) == ""
    answers = [json.loads(line) for line in answered.read_text(encoding="utf-8").splitlines()]
    assert [{k: v for k, v in row.items() if k != "prediction"} for row in answers] == lines

    # The same from Python, each task by itself, with the hypernetwork.
    model = HartModel.from_pretrained(final)
    tasks = {"first": Task.from_file(task_file), "second": Task("Repeat the word.", [("a", "a a"), ("b", "b b")])}
    expected = [model.generate(text, model.adapt(tasks[Path(name).name]))[0] for name, text in queries]
    assert [row["prediction"] for row in answers] == expected
    assert len(set(expected)) > 1


def test_a_complete_run_is_left_as_it_is(config_file: Path, tmp_path: Path, hart, refused) -> None:
    assert hart("train", config_file).status == 0
    weights = tmp_path / "run" / "final" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    result = hart("train", config_file)
    assert result.status == 0 and "complete" in result.err
    assert weights.stat().st_mtime_ns == before
    assert "training.learning_rate" in refused("train", config_file, "--training.learning_rate", "1e-3")


@pytest.mark.parametrize(
    ("words", "overrides"),
    [
        (["c.yaml", "--training.max_steps", "4"], ["--training.max_steps", "4"]),
        (["--training.max_steps", "4", "c.yaml"], ["--training.max_steps", "4"]),
        (["--training.max_steps=4", "c.yaml", "--device", "cpu"], ["--training.max_steps=4"]),
        (["c.yaml", "--device=cpu", "--model.dropout", "null"], ["--model.dropout", "null"]),
        (["c.yaml", "--data.dir", "--device", "cpu"], ["--data.dir"]),
        (["c.yaml", "--training.alpha", "-1"], ["--training.alpha", "-1"]),
    ],
)
def test_overrides_stand_anywhere(words: list[str], overrides: list[str]) -> None:
    kept, taken = split_overrides(["train", *words], OWN_OPTIONS)
    assert taken == overrides
    assert "c.yaml" in kept
    assert sorted(kept + taken) == sorted(["train", *words])


def test_other_commands_keep_their_words(refused) -> None:
    # predict has no --training.max_steps: argparse says so itself.
    assert "unrecognized arguments: --training.max_steps 4" in refused(
        "predict", "a", "--input", "x", "--training.max_steps", "4"
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--training.max_stepz", "4"], "did you mean --training.max_steps?"),
        (["--max_steps", "4"], "did you mean --training.max_steps?"),
        (["--training.max_steps", "many"], "--training.max_steps: must be a whole number"),
        (["--training.max_steps", "0"], "must be at least 1"),
        (["--training.max_steps"], "the value is missing"),
        (["extra"], "extra"),
        (["--model.scheme.name", "magic"], "magic"),
        (["--model.peft.0.kind", "magic"], "magic"),
        (["--model.decoder_layers", "9"], "decoder_layers"),
        (["--model.base", "nowhere/no-model"], "nowhere/no-model"),
        (["--training.batch_size", "4", "--training.micro_batch_size", "3"], "micro_batch_size"),
    ],
)
def test_bad_fields_leave_nothing_behind(
    words: list[str], told: str, config_file: Path, tmp_path: Path, refused
) -> None:
    assert told in refused("train", config_file, *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("line", "told"),
    [("training: {max_stepz: 4}", "training.max_stepz"), ("data: {dir: 3}", "data.dir"), ("- [", "YAML"), ("", None)],
)
def test_bad_configuration_file(line: str, told: str | None, tmp_path: Path, refused) -> None:
    path = tmp_path / "bad.yaml"
    if told is not None:
        path.write_text(line, encoding="utf-8")
    message = refused("train", path)
    assert str(path) in message and (told or "no such") in message


def damage_json(path: Path, **changes: object) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    for key, value in changes.items():
        content[key.replace("_", " ")] = value
    path.write_text(json.dumps(content), encoding="utf-8")


BAD_TASKS = {
    "not JSON": (lambda path: path.write_text("{", encoding="utf-8"), "not JSON"),
    "no Definition": (lambda path: damage_json(path, Definition=[]), "the definition is empty"),
    "no Positive Examples": (lambda path: damage_json(path, Positive_Examples=[]), "has no demonstrations"),
    "no output": (
        lambda path: damage_json(path, Instances=[{"id": "x", "input": "a", "output": []}]),
        "output is an empty list",
    ),
    "absent": (lambda path: path.unlink(), "names the task"),
}


@pytest.mark.parametrize("fault", BAD_TASKS)
def test_bad_task_files(fault: str, config_file: Path, sni_dir: Path, tmp_path: Path, refused) -> None:
    damage, told = BAD_TASKS[fault]
    damage(sni_dir / "tasks" / "task1.json")
    line = refused("train", config_file)
    assert told in line and "task1" in line
    assert not (tmp_path / "run").exists()


def test_after_a_mistake_the_corrected_command_runs(config_file: Path, tmp_path: Path, hart, refused) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    output = ("--training.output_dir", str(folder), "--training.max_steps", "1")
    refused("train", config_file, *output, "--data.dir", tmp_path / "absent")
    assert list(folder.iterdir()) == []
    assert hart("train", config_file, *output).status == 0


def test_empty_query(config_file: Path, sni_dir: Path, refused) -> None:
    for number in range(3):
        instances = [{"id": "x", "input": " ", "output": ["a"]}]
        damage_json(sni_dir / "tasks" / f"task{number}.json", Instances=instances)
    assert "empty" in refused("train", config_file)


def test_missing_data_folder(config_file: Path, tmp_path: Path, refused) -> None:
    assert "absent" in refused("train", config_file, "--data.dir", tmp_path / "absent")
    assert not (tmp_path / "run").exists()


def test_existing_folder_with_other_content(config_file: Path, tmp_path: Path, refused) -> None:
    (tmp_path / "run").mkdir()
    note = tmp_path / "run" / "thesis.tex"
    note.write_text("mine", encoding="utf-8")
    assert "exists with other content" in refused("train", config_file)
    assert [*(tmp_path / "run").iterdir()] == [note]
