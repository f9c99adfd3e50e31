"""hart predict: answers from the base and an adaptation alone, and what it refuses."""

import csv
import io
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


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    """An input file of three queries."""
    path = tmp_path / "queries.jsonl"
    lines = [{"input": "one 7"}, {"input": "a longer query than the others"}, {"input": "Größe 7", "id": 3}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + "\n", encoding="utf-8")
    return path


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
        ('{"input": "a"}\n{"input": "b\\ud800"}', "line 2: not a query, input holds half of a character"),
        ('{"input": "a"}\n\n{"input"', "line 3: not a query, the text is not JSON"),
        ('{"query": "a"}', 'line 1: must be a JSON object with a text as "input"'),
        ('"a"', "line 1: must be a JSON object"),
        ('{"input": 3}', "line 1"),
        ("\n", "holds no query"),
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
    assert "names none" in refused("predict", adaptation_dir, twin, "--input-file", asked)
    asked.write_text(json.dumps({"input": "a", "adaptation": adaptation_dir.name}), encoding="utf-8")
    assert "names more than one" in refused("predict", adaptation_dir, twin, "--input-file", asked)


def test_no_adaptation_there(model_dir: Path, tmp_path: Path, refused) -> None:
    for folder in (tmp_path / "absent", model_dir):
        line = refused("predict", folder, "--input", "one 7")
        assert str(folder) in line and "no adaptation here" in line


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


def interrupted_after(chunks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each answer is the number of its query; the user stops the command after some."""
    monkeypatch.setattr(predict, "CHUNK", 1)
    done: list[str] = []

    def generate(_: MainModel, rows: list[list[int]], *__: object, **___: object) -> list[str]:
        if len(done) == chunks:
            raise KeyboardInterrupt
        done.append(f"answer {len(done)}")
        return done[-1:]

    monkeypatch.setattr(MainModel, "generate", generate)


@pytest.mark.parametrize("chunks", [0, 2])
def test_an_interrupt_loses_no_answer(
    chunks: int, adaptation_dir: Path, asked: Path, tmp_path: Path, hart, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted_after(chunks, monkeypatch)
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
    assert "runs/base" in (line := refused(*words)) and "--base says where the base is" in line
    assert ok(*words, "--base", base) == expected
    tensors = load_file(base / "model.safetensors")
    save_file({name: 2 * values for name, values in tensors.items()}, base / "model.safetensors", {"format": "pt"})
    assert "weights differ" in refused(*words, "--base", base)


# Tables of a user's own


def write_table(path: Path, texts: list[str]) -> Path:
    """A CSV file with the columns id and text."""
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("id", "text"), *enumerate(texts)])
    return path


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def echoed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Each answer is the number of tokens of its query; holds how many were answered in each call."""
    calls: list[int] = []

    def generate(_: MainModel, rows: list[list[int]], *__: object, **___: object) -> list[str]:
        calls.append(len(rows))
        return [str(len(row)) for row in rows]

    monkeypatch.setattr(MainModel, "generate", generate)
    return calls


def test_every_format_in_and_out(adaptation_dir: Path, tmp_path: Path, ok, echoed: list[int]) -> None:
    texts = ['one, "7"', "two\n7", "Größe 7"]
    source = write_table(tmp_path / "a.csv", texts)
    words = ("predict", adaptation_dir, "--input-field", "text", "--output-field", "n")
    for ending in ("jsonl", "json", "parquet", "tsv", "csv"):
        target = tmp_path / f"b.{ending}"
        ok(*words, "--input-file", source, "--output-file", target)
        source = shutil.copy(target, tmp_path / f"c.{ending}")
    rows = read_csv(tmp_path / "c.csv")
    assert [(row["id"], row["text"]) for row in rows] == [(str(i), text) for i, text in enumerate(texts)]
    ok(*words, "--input-file", source, "--output-file", tmp_path / "b.txt")
    assert (tmp_path / "b.txt").read_text(encoding="utf-8").splitlines() == [row["n"] for row in rows]
    (tmp_path / "d.txt").write_text("one 7\n\ntwo 7 7\n", encoding="utf-8")
    out = ok("predict", adaptation_dir, "--input-file", tmp_path / "d.txt").splitlines()
    assert [json.loads(line)["input"] for line in out] == ["one 7", "two 7 7"]


def test_standard_input_is_answered_as_it_comes(
    adaptation_dir: Path, asked: Path, ok, hart, refused, echoed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("predict", adaptation_dir, "--input-file", "-", "--batch-size", "2")
    expected = ok("predict", adaptation_dir, "--input-file", asked)
    assert "standard input: say what it holds with --input-format (jsonl" in refused(*words)

    def given(content: bytes) -> None:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))

    given(asked.read_bytes())
    assert ok(*words, "--input-format", "jsonl") == expected
    given(b"\n")
    assert "standard input: holds no query" in refused(*words, "--input-format", "txt")
    given(asked.read_bytes() + b"no json\n" + asked.read_bytes())
    result = hart(*words, "--input-format", "jsonl")
    assert (result.status, result.out) == (2, expected)
    assert "error: standard input, line 5: not a query" in result.err
    given(asked.read_bytes() + b"no json\n" + asked.read_bytes())
    result = hart(*words, "--input-format", "jsonl", "--skip-errors")
    assert (result.status, result.out) == (0, 2 * expected)
    assert (
        "standard input, line 5" in result.err
        and "wrong rows that were skipped: 1; queries that are answered: 6" in result.err
    )


def test_wrong_rows_are_told_once_and_counted(
    adaptation_dir: Path, tmp_path: Path, hart, refused, echoed: list[int]
) -> None:
    path, target = tmp_path / "a.csv", tmp_path / "b.csv"
    path.write_bytes(b"text,id\none,1\nragged\n ,2\n\xff,3\ntwo,4\n")
    words = ("predict", adaptation_dir, "--input-file", path, "--input-field", "text", "--output-file", target)
    assert f"{path}, line 3: has 1 fields, the header has 2" in refused(*words)
    assert not target.exists()
    result = hart(*words, "--skip-errors")
    assert result.status == 0 and [row["id"] for row in read_csv(target)] == ["1", "4"]
    lines = result.err.splitlines()
    assert [line.split(": ")[2] for line in lines[:3]] == [f"{path}, line {number}" for number in (3, 4, 5)]
    assert all(line.endswith("; skipped") for line in lines[:3])
    assert lines[3:] == ["hart: warning: wrong rows that were skipped: 3; queries that are answered: 2"]
    path.write_text("text,id\nragged\n", encoding="utf-8")
    assert "holds no query but 1 wrong ones" in hart(*words, "--skip-errors").err


@pytest.mark.parametrize("ending", ["jsonl", "csv", "json", "parquet"])
def test_resumed_after_an_interrupt(
    ending: str, adaptation_dir: Path, tmp_path: Path, hart, ok, refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_table(tmp_path / "a.csv", ["one 7", "two 7", "three", "four", "five"])
    target = tmp_path / f"b.{ending}"
    words = ("predict", adaptation_dir, "--input-file", source, "--input-field", "text", "--batch-size", "1")
    words = (*words, "--output-file", target, "--resume")
    interrupted_after(2, monkeypatch)
    result = hart(*words)
    place = Path(f"{target}.part.jsonl") if ending in ("json", "parquet") else target
    assert result.status == 130 and f"interrupted; 2 of 5 queries are answered ({place})" in result.err
    with place.open("ab") as file:
        file.write(b'{"id": "2"' if place.suffix == ".jsonl" else b'2,"thr')
    asked_again: list[int] = []

    def generate(_: MainModel, rows: list[list[int]], *__: object, **___: object) -> list[str]:
        asked_again.extend(map(len, rows))
        return [f"answer {1 + len(asked_again)}" for _ in rows]

    monkeypatch.setattr(MainModel, "generate", generate)
    result = hart(*words)
    assert result.status == 0 and f"2 queries are answered in {place}" in result.err
    assert len(asked_again) == 3
    back = tmp_path / "back.csv"
    words = ("predict", adaptation_dir, "--input-file", target, "--input-field", "text", "--output-field", "again")
    ok(*words, "--output-file", back)
    assert [row["prediction"] for row in read_csv(back)] == [f"answer {i}" for i in range(5)]


def test_another_input_is_not_resumed(adaptation_dir: Path, tmp_path: Path, ok, refused, echoed: list[int]) -> None:
    target = tmp_path / "b.jsonl"
    words = ("predict", adaptation_dir, "--input-field", "text", "--output-file", target, "--input-file")
    ok(*words, write_table(tmp_path / "a.csv", ["one", "two"]))
    before = target.read_bytes()
    other = write_table(tmp_path / "c.csv", ["one", "three", "four"])
    line = refused(*words, other, "--resume")
    assert f"{target}, line 2: does not answer {other}, line 3" in line
    assert target.read_bytes() == before


def test_rows_are_read_a_few_at_a_time(
    adaptation_dir: Path, tmp_path: Path, ok, echoed: list[int], monkeypatch
) -> None:
    monkeypatch.setattr(predict, "CHUNK", 2)
    source = write_table(tmp_path / "a.csv", [f"query {i}" for i in range(10)])
    ok("predict", adaptation_dir, "--input-file", source, "--input-field", "text", "--batch-size", "2")
    assert echoed == [4, 4, 2]


def test_choosing_equals_the_python_surface(
    adaptation_dir: Path, model_dir: Path, tmp_path: Path, ok, asked: Path
) -> None:
    model, adaptation = HartModel.from_pretrained(model_dir), Adaptation.from_pretrained(adaptation_dir)
    texts = ["one 7", "a longer query than the others", "Größe 7"]
    words = ("predict", adaptation_dir, "--input-file", asked)
    choices = ["one", "two, too", "7"]
    given = ("--choices", "one", "--choice", "two, too", "--choice", " 7")
    for options, more in (
        ({}, ()),
        ({"normalisation": "mean"}, ("--normalisation", "mean")),
        ({"calibrate": True, "content_free": "x"}, ("--calibrate", "--content-free", "x")),
    ):
        rows = [json.loads(line) for line in ok(*words, *given, *more).splitlines()]
        for row, found in zip(rows, model.classify(texts, choices, adaptation, **options), strict=True):
            assert row["prediction"] == found.choice
            assert row["probabilities"] == pytest.approx(found.probabilities, rel=1e-4)
    assert ok("predict", adaptation_dir, "--input", texts[0], "--choices", "one,7") in ("one\n", "7\n")
    rows = [{"input": texts[0], "labels": ["a", "b"]}, {"input": texts[1], "labels": "c, d,e"}, {"input": texts[2]}]
    asked.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    out = ok(*words, "--choices-field", "labels", "--choices", "x,y").splitlines()
    assert [list(json.loads(line)["probabilities"]) for line in out] == [["a", "b"], ["c", "d", "e"], ["x", "y"]]


def test_what_is_wrong_with_choices(adaptation_dir: Path, asked: Path, refused) -> None:
    words = ("predict", adaptation_dir, "--input-file", asked)
    assert "--choices: the choices 'a' and 'A' read the same" in refused(*words, "--choices", "a,A")
    assert "--choices: 1 choices; at least two" in refused(*words, "--choices", "a")
    assert f"{asked}, line 1: choices must be a list of texts" in refused(*words, "--choices-field")
    assert "nothing is generated where there are choices" in refused(
        *words, "--choices", "a,b", "--max-new-tokens", "3"
    )
    assert "are for choices; give --choices" in refused(*words, "--calibrate")
    assert "give both" in refused(*words, "--choices", "a,b", "--content-free", "x")
    long = "one two three " * 8
    line = refused(*words, "--choice", f"{long}a", "--choice", f"{long}b")
    assert "are the same tokens to this model (of which it reads 8)" in line


def test_options_that_mean_nothing(adaptation_dir: Path, asked: Path, tmp_path: Path, refused) -> None:
    assert "are for an --input-file" in refused("predict", adaptation_dir, "--input", "a", "--resume")
    words = ("predict", adaptation_dir, "--input-file", asked)
    assert "--output-field: 'input' is the field of the query" in refused(*words, "--output-field", "input")
    assert "json is written whole" in refused(*words, "--output-format", "json")
    assert "--resume needs an --output-file" in refused(*words, "--resume")
    assert "answers are not packed" in refused(*words, "--output-file", tmp_path / "a.csv.gz")
    # Where the answers of a JSON array wait.
    journal = shutil.copy(asked, tmp_path / "a.json.part.jsonl")
    line = refused("predict", adaptation_dir, "--input-file", journal, "--output-file", tmp_path / "a.json")
    assert f"{journal} is the input file" in line
    other = asked.rename(tmp_path / "queries.xlsx")
    line = refused("predict", adaptation_dir, "--input-file", other)
    assert f"{other}: the ending does not say what it holds" in line and "--input-format" in line
    words = ("predict", adaptation_dir, "--input-file", other, "--input-format", "jsonl")
    assert "--output-format" in refused(*words, "--output-file", tmp_path / "answers.xlsx")


def test_three_hundred_tickets(tmp_path: Path, ok) -> None:
    """From a file to labels with probabilities, with the bundled model: what it answers means nothing."""
    labels = ["billing", "bug", "account"]
    texts = [f'Ticket {i}: the "{labels[i % 3]}" page,\nas shown,\ndoes not load' for i in range(300)]
    source, target = write_table(tmp_path / "tickets.csv", texts), tmp_path / "labelled.csv"
    words = ("--definition", "Say what the ticket is about.", "--demonstration", "I paid twice", "billing")
    ok("adapt", "mini", *words, "--output-dir", tmp_path / "tickets")
    words = ("predict", tmp_path / "tickets", "--input-file", source, "--input-field", "text")
    ok(*words, "--choices", ",".join(labels), "--calibrate", "--output-file", target)
    rows = read_csv(target)
    assert [(row["id"], row["text"]) for row in rows] == [(str(i), text) for i, text in enumerate(texts)]
    for row in rows:
        probabilities = json.loads(row["probabilities"])
        assert list(probabilities) == labels and sum(probabilities.values()) == pytest.approx(1)
        assert row["prediction"] == max(probabilities, key=probabilities.__getitem__)
