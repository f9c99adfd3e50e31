"""hart predict: answers from only the base and an adaptation, and refused input."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hart import Adaptation, HartModel
from hart.cli import predict
from hart.data.input_format import InputFormat
from hart.model.main_model import MainModel


def test_the_hypernetwork_is_not_needed(
    adaptation_dir: Path, model_dir: Path, asked: Path, ok, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [json.loads(line)["input"] for line in asked.read_text(encoding="utf-8").splitlines() if line]
    adaptation = Adaptation.from_pretrained(adaptation_dir)
    expected = HartModel.from_pretrained(model_dir).generate(texts, adaptation, max_new_tokens=4)
    monkeypatch.setattr(HartModel, "from_pretrained", None)
    # More queries than go into one round, too.
    monkeypatch.setattr(predict, "CHUNK", 2)
    options = ("--max-new-tokens", "4", "--batch-size", "1")
    rows = [json.loads(line) for line in ok("predict", adaptation_dir, "--input-file", asked, *options).splitlines()]
    assert [row["prediction"] for row in rows] == expected
    assert rows[2]["id"] == 3
    assert ok("predict", adaptation_dir, "--input", texts[0], *options) == expected[0] + "\n"


def test_half_precision_from_adapting_to_answering(
    model_dir: Path, tmp_path: Path, asked: Path, ok, task_file: Path, refused
) -> None:
    folder = tmp_path / "half"
    ok("adapt", model_dir, "--task", task_file, "--output-dir", folder, "--dtype", "bfloat16")
    adaptation = Adaptation.from_pretrained(folder)
    assert {rows.dtype for rows in adaptation.blocks.values()} == {torch.bfloat16}
    model = HartModel.from_pretrained(model_dir, dtype="bfloat16")
    out = ok("predict", folder, "--input", "one 7", "--max-new-tokens", "4", "--dtype", "bfloat16")
    assert out == model.generate("one 7", adaptation, max_new_tokens=4)[0] + "\n"
    assert "choose from 'float32', 'bfloat16'" in refused("predict", folder, "--input", "a", "--dtype", "float16")


def test_one_answer_into_a_file(adaptation_dir: Path, tmp_path: Path, ok) -> None:
    answer = ok("predict", adaptation_dir, "--input", "one 7")
    path = tmp_path / "answer.jsonl"
    assert ok("predict", adaptation_dir, "--input", "one 7", "--output-file", path) == ""
    assert json.loads(path.read_text(encoding="utf-8")) == {"input": "one 7", "prediction": answer[:-1]}


@pytest.mark.parametrize("text", ["", "  "])
def test_empty_query(text: str, adaptation_dir: Path, refused) -> None:
    assert "empty" in refused("predict", adaptation_dir, "--input", text)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"input": "a"}\n{"input": " "}', "line 2: the query is empty"),
        ('{"input": "a"}\n{"input": "b\\ud800"}', "line 2: not a query, input contains half of a character"),
        ('{"input": "a"}\n\n{"input"', "line 3: not a query, the text is not JSON"),
        ('{"query": "a"}', 'line 1: must be a JSON object with a text as "input"'),
        ('"a"', "line 1: must be a JSON object"),
        ('{"input": 3}', "line 1"),
        ("\n", "has no queries"),
        ('{"input": "a", "adaptation": "other"}', "'other' names none"),
        (None, "cannot be read"),
    ],
)
def test_bad_input_file(content: str | None, told: str, adaptation_dir: Path, tmp_path: Path, refused) -> None:
    path = tmp_path / "bad.jsonl"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    line = refused("predict", adaptation_dir, "--input-file", path, "--output-file", tmp_path / "answers.jsonl")
    assert str(path) in line and told in line
    assert not (tmp_path / "answers.jsonl").exists()


def test_several_adaptations_need_names(adaptation_dir: Path, asked: Path, tmp_path: Path, refused) -> None:
    twin = shutil.copytree(adaptation_dir, tmp_path / "other" / adaptation_dir.name)
    assert "--input-file" in refused("predict", adaptation_dir, twin, "--input", "one 7")
    assert 'field "adaptation" is missing' in refused("predict", adaptation_dir, twin, "--input-file", asked)
    asked.write_text(json.dumps({"input": "a", "adaptation": adaptation_dir.name}), encoding="utf-8")
    assert "names more than one" in refused("predict", adaptation_dir, twin, "--input-file", asked)


def test_no_adaptation_there(model_dir: Path, tmp_path: Path, refused) -> None:
    for folder, told in ((tmp_path / "absent", "has no adaptation"), (model_dir, "a model, not an adaptation")):
        line = refused("predict", folder, "--input", "one 7")
        assert str(folder) in line and told in line


def test_what_is_no_model_is_called_what_it_is(adaptation_dir: Path, model_dir: Path, tmp_path: Path, refused) -> None:
    task = ("--definition", "Sort.", "--output-dir", tmp_path / "a")
    assert "is an adaptation, not a model; use it with hart predict" in refused("adapt", adaptation_dir, *task)
    shutil.copytree(model_dir, tmp_path / "run" / "final")
    assert f"is a run, not a model; give {tmp_path / 'run' / 'final'}" in refused("adapt", tmp_path / "run", *task)
    assert "is a base without a hypernetwork; give a HART model, such as mini" in refused("adapt", "mini-base", *task)


def test_truncated_adaptation(adaptation_dir: Path, refused) -> None:
    path = adaptation_dir / "adaptation.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    assert str(path) in refused("predict", adaptation_dir, "--input", "one 7")


def test_another_base(adaptation_dir: Path, tiny_base_dir: Path, tmp_path: Path, refused) -> None:
    path = adaptation_dir / "adaptation.json"
    fields = json.loads(path.read_text(encoding="utf-8"))
    base = shutil.copytree(tiny_base_dir, tmp_path / "base")
    path.write_text(json.dumps(fields | {"base": str(base)}), encoding="utf-8")
    tensors = load_file(base / "model.safetensors")
    save_file({name: 2 * values for name, values in tensors.items()}, base / "model.safetensors", {"format": "pt"})
    line = refused("predict", adaptation_dir, "--input", "one 7")
    assert str(base) in line and "weights differ" in line
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    assert str(base) in refused("predict", adaptation_dir, "--input", "one 7")
    path.write_text(json.dumps(fields | {"base": "someone/absent-model"}), encoding="utf-8")
    assert "someone/absent-model" in refused("predict", adaptation_dir, "--input", "one 7")


def test_output_is_refused_before_the_work(asked: Path, tmp_path: Path, refused) -> None:
    words = ("predict", "absent", "--input-file", asked, "--output-file")
    assert "is a folder" in refused(*words, tmp_path)


def test_a_query_that_is_nothing_to_the_tokenizer(adaptation_dir: Path, asked: Path, monkeypatch, refused) -> None:
    # As a tokenizer that drops zero-width characters gives it.
    encode = InputFormat.encode_query
    monkeypatch.setattr(
        InputFormat,
        "encode_query",
        lambda f, t, text, *a, **k: [t.eos_token_id] if "Größe" in text else encode(f, t, text, *a, **k),
    )
    monkeypatch.setattr(MainModel, "generate", lambda *_, **__: pytest.fail("answered"))
    line = refused("predict", adaptation_dir, "--input-file", asked)
    assert f"{asked}, line 3: the query is empty" in line


def test_cut_queries_are_counted_and_named(adaptation_dir: Path, tmp_path: Path, hart) -> None:
    queries = tmp_path / "queries.jsonl"
    texts = ["one 7", *["long " * 50] * 5, "two 7"]
    queries.write_text("".join(json.dumps({"input": text}) + "\n" for text in texts), encoding="utf-8")
    result = hart("predict", adaptation_dir, "--input-file", queries, "--max-query-length", "20")
    assert result.status == 0 and result.out.count("\n") == 7
    (line,) = result.err.splitlines()
    assert line.startswith(f"hart: warning: {queries}, line 2: cut the end of the query to stay within 20 tokens")
    assert line.endswith("and 2 more")


@pytest.mark.parametrize("chunks", [0, 2])
def test_an_interrupt_loses_no_answer(
    chunks: int, adaptation_dir: Path, asked: Path, tmp_path: Path, hart, interrupted_after
) -> None:
    interrupted_after(chunks)
    path = tmp_path / "answers.jsonl"
    path.write_text("answers of yesterday\n", encoding="utf-8")
    result = hart("predict", adaptation_dir, "--input-file", asked, "--output-file", path, "--batch-size", "1")
    assert result.status == 130
    assert f"interrupted; {chunks} of 3 queries are answered ({path})" in result.err
    lines = path.read_text(encoding="utf-8").splitlines()
    if chunks:
        assert [json.loads(line)["prediction"] for line in lines] == ["answer 0", "answer 1"]
    else:
        assert lines == ["answers of yesterday"]


def test_answers_are_in_the_file_as_soon_as_they_are_there(
    adaptation_dir: Path, asked: Path, tmp_path: Path, ok, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new" / "answers.jsonl"
    counts: list[int] = []
    monkeypatch.setattr(predict, "CHUNK", 1)

    def generate(_: MainModel, rows: list[list[int]], *__: object, **___: object) -> list[str]:
        counts.append(len(path.read_text(encoding="utf-8").splitlines()) if path.exists() else 0)
        return ["a"] * len(rows)

    monkeypatch.setattr(MainModel, "generate", generate)
    ok("predict", adaptation_dir, "--input-file", asked, "--output-file", path, "--batch-size", "1")
    assert counts == [0, 1, 2]


def test_answers_go_through_a_link_and_into_a_pipe(adaptation_dir: Path, asked: Path, tmp_path: Path, ok) -> None:
    expected = ok("predict", adaptation_dir, "--input-file", asked)
    real, link, pipe = tmp_path / "real.jsonl", tmp_path / "link.jsonl", tmp_path / "pipe"
    real.write_text("old", encoding="utf-8")
    link.symlink_to(real)
    ok("predict", adaptation_dir, "--input-file", asked, "--output-file", link)
    assert link.is_symlink() and real.read_text(encoding="utf-8") == expected
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE) as reader:
        ok("predict", adaptation_dir, "--input-file", asked, "--output-file", pipe)
        assert reader.stdout is not None and reader.stdout.read().decode() == expected
    assert pipe.is_fifo()


def test_queries_are_not_overwritten(adaptation_dir: Path, asked: Path, tmp_path: Path, refused) -> None:
    before = asked.read_bytes()
    (tmp_path / "link").symlink_to(asked)
    for path in (asked, tmp_path / "link"):
        line = refused("predict", adaptation_dir, "--input-file", asked, "--output-file", path)
        assert f"--output-file: {path} is the input file" in line
    assert asked.read_bytes() == before


def test_the_base_from_elsewhere(
    adaptation_dir: Path, tiny_base_dir: Path, tmp_path: Path, ok, refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("predict", adaptation_dir, "--input", "one 7")
    expected = ok(*words)
    fields = json.loads((adaptation_dir / "adaptation.json").read_text(encoding="utf-8"))
    base = shutil.copytree(tiny_base_dir, tmp_path / "base")
    (adaptation_dir / "adaptation.json").write_text(json.dumps(fields | {"base": "runs/base"}), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert "runs/base" in (line := refused(*words)) and "give its folder with --base" in line
    assert ok(*words, "--base", base) == expected
    tensors = load_file(base / "model.safetensors")
    save_file({name: 2 * values for name, values in tensors.items()}, base / "model.safetensors", {"format": "pt"})
    assert "weights differ" in refused(*words, "--base", base)
