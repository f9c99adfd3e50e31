"""hart predict on users' tables: every format, wrong rows, resuming, and choices."""

import csv
import io
import json
import shutil
from pathlib import Path

import pytest

from hart import Adaptation, HartModel
from hart.cli import predict
from hart.model.main_model import MainModel


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
    assert "standard input: has no queries" in refused(*words, "--input-format", "txt")
    given(asked.read_bytes() + b"no json\n" + asked.read_bytes())
    result = hart(*words, "--input-format", "jsonl")
    assert (result.status, result.out) == (2, expected)
    assert "error: standard input, line 5: not a query" in result.err
    given(asked.read_bytes() + b"no json\n" + asked.read_bytes())
    result = hart(*words, "--input-format", "jsonl", "--skip-errors")
    assert (result.status, result.out) == (0, 2 * expected)
    assert "standard input, line 5" in result.err and "skipped wrong rows: 1; answered queries: 6" in result.err


def test_wrong_rows_are_told_once_and_counted(
    adaptation_dir: Path, tmp_path: Path, hart, refused, echoed: list[int]
) -> None:
    path, target = tmp_path / "a.csv", tmp_path / "b.csv"
    path.write_bytes(b"text,id\none,1\nragged\n ,2\n\xff,3\ntwo,4\n")
    words = ("predict", adaptation_dir, "--input-file", path, "--input-field", "text", "--output-file", target)
    assert f"{path}, line 3: has 1 fields, and the header has 2" in refused(*words)
    assert not target.exists()
    result = hart(*words, "--skip-errors")
    assert result.status == 0 and [row["id"] for row in read_csv(target)] == ["1", "4"]
    lines = result.err.splitlines()
    assert [line.split(": ")[2] for line in lines[:3]] == [f"{path}, line {number}" for number in (3, 4, 5)]
    assert all(line.endswith("; skipped") for line in lines[:3])
    assert lines[3:] == ["hart: warning: skipped wrong rows: 3; answered queries: 2"]
    path.write_text("text,id\nragged\n", encoding="utf-8")
    assert "has no queries, only 1 wrong rows" in hart(*words, "--skip-errors").err


@pytest.mark.parametrize("ending", ["jsonl", "csv", "json", "parquet"])
def test_resumed_after_an_interrupt(
    ending: str, adaptation_dir: Path, tmp_path: Path, hart, ok, refused, interrupted_after, monkeypatch
) -> None:
    source = write_table(tmp_path / "a.csv", ["one 7", "two 7", "three", "four", "five"])
    target = tmp_path / f"b.{ending}"
    words = ("predict", adaptation_dir, "--input-file", source, "--input-field", "text", "--batch-size", "1")
    words = (*words, "--output-file", target, "--resume")
    interrupted_after(2)
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
    assert result.status == 0 and f"2 queries are already answered in {place}" in result.err
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
    assert f"{target}, line 2: does not match {other}, line 3" in line
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
        ({"calibrate": True}, ("--calibrate",)),
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
    assert "has no effect with choices" in refused(*words, "--choices", "a,b", "--max-new-tokens", "3")
    assert "need choices; give --choices" in refused(*words, "--calibrate")
    long = "one two three " * 8
    line = refused(*words, "--choice", f"{long}a", "--choice", f"{long}b")
    assert "have the same tokens in this model, which reads the first 8" in line


def test_options_that_mean_nothing(adaptation_dir: Path, asked: Path, tmp_path: Path, refused) -> None:
    assert "need an --input-file" in refused("predict", adaptation_dir, "--input", "a", "--resume")
    words = ("predict", adaptation_dir, "--input-file", asked)
    assert "--output-field: 'input' is already the field of the query" in refused(*words, "--output-field", "input")
    assert "json needs a regular file" in refused(*words, "--output-format", "json")
    assert "--resume continues the answers of an --output-file" in refused(*words, "--resume")
    assert "answers are written uncompressed" in refused(*words, "--output-file", tmp_path / "a.csv.gz")
    # Where the answers of a JSON array wait.
    journal = shutil.copy(asked, tmp_path / "a.json.part.jsonl")
    line = refused("predict", adaptation_dir, "--input-file", journal, "--output-file", tmp_path / "a.json")
    assert f"{journal} is the input file" in line
    other = asked.rename(tmp_path / "queries.dat")
    line = refused("predict", adaptation_dir, "--input-file", other)
    assert f"{other}: unknown ending" in line and "--input-format" in line
    words = ("predict", adaptation_dir, "--input-file", other, "--input-format", "jsonl")
    assert "--output-format" in refused(*words, "--output-file", tmp_path / "answers.dat")


def test_three_hundred_tickets(tmp_path: Path, ok, hart) -> None:
    """From a file to labels with probabilities, with the bundled model: what it answers means nothing."""
    labels = ["billing", "bug", "account"]
    texts = [f'Ticket {i}: the "{labels[i % 3]}" page,\nas shown,\ndoes not load' for i in range(300)]
    source, target = write_table(tmp_path / "tickets.csv", texts), tmp_path / "labelled.csv"
    words = ("--definition", "Say what the ticket is about.", "--demonstration", "I paid twice", "billing")
    done = hart("adapt", "mini", *words, "--output-dir", tmp_path / "tickets")
    assert done.status == 0 and "its demonstrations never occur in the training of mini" in done.err
    words = ("predict", tmp_path / "tickets", "--input-file", source, "--input-field", "text")
    done = hart(*words, "--choices", ",".join(labels), "--calibrate", "--output-file", target)
    (line,) = done.err.splitlines()
    assert done.status == 0 and "never occur in the training of mini" in line and line.endswith("and 297 more")
    rows = read_csv(target)
    assert [(row["id"], row["text"]) for row in rows] == [(str(i), text) for i, text in enumerate(texts)]
    for row in rows:
        probabilities = json.loads(row["probabilities"])
        assert list(probabilities) == labels and sum(probabilities.values()) == pytest.approx(1)
        assert row["prediction"] == max(probabilities, key=probabilities.__getitem__)
