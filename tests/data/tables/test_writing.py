"""Incremental writing of answers: they can be read again, and an interrupted writer resumes at any place."""

import csv
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from hart.data.tables import FORMATS, Answers, Row, RowError, Table
from hart.errors import HartError

OWN = ("prediction", "probabilities")
INPUTS: list[dict[str, Any]] = [
    {"text": 'a, "b"\r\nc', "id": 1},
    {"text": "ü\rd", "id": 2},
    {"text": "e", "id": None},
    {"text": "f", "id": 4},
]
MADE = [row | {"prediction": f"p\n{i}", "probabilities": {"x": 0.25, "y": 0.75}} for i, row in enumerate(INPUTS)]


def answers(path: Path, form: Any, **options: Any) -> Answers:
    return Answers(path, form, OWN, columns=("text", "id"), **options)


def rows(contents: list[dict[str, Any]] = INPUTS) -> Iterator[Row]:
    return (Row(f"in, line {i}", content) for i, content in enumerate(contents, start=1))


def written(path: Path, form: Any) -> list[dict[str, Any]]:
    found = list(Table(path, form, path.name, "prediction").rows())
    assert not any(isinstance(row, RowError) for row in found)
    return [row.content for row in found]  # type: ignore[union-attr]


def expected(form: str) -> list[dict[str, Any]]:
    if form == "txt":
        return [{"prediction": f"p {i}"} for i in range(4)]
    if form in ("csv", "tsv"):
        pairs = [(name, row[name]) for row in MADE for name in ("text", "id", *OWN)]
        cells = ["" if value is None else value if isinstance(value, str) else json.dumps(value) for _, value in pairs]
        return [dict(zip(("text", "id", *OWN), cells[i : i + 4], strict=True)) for i in range(0, 16, 4)]
    return MADE


@pytest.mark.parametrize("form", FORMATS)
def test_what_is_written_is_what_was_answered(form: str, tmp_path: Path):
    path = tmp_path / "new" / f"a.{form}"
    out = answers(path, form)
    for i in range(0, 4, 2):
        out.write(MADE[i : i + 2])
        place = Path(out.place)
        waits = "jsonl" if form in ("json", "parquet") else form
        assert written(place, waits) == expected(waits)[: i + 2]
    out.finish()
    assert written(path, form) == expected(form) and list(path.parent.iterdir()) == [path]


def test_columns_without_one_type_are_text_in_parquet(tmp_path: Path):
    path = tmp_path / "a.parquet"
    out = answers(path, "parquet")
    made = [
        {"text": "a", "id": 2**63, "mixed": "yes, no", "pairs": [["k", 1]], "none": {}, "list": [1], "number": 1},
        {"text": "b", "id": 1, "mixed": ["yes", "no"], "pairs": None, "none": {}, "list": [], "number": 0.5},
    ]
    out.write([{**row, "prediction": "p", "tokens": 1} for row in made])
    out.finish()
    one, two = written(path, "parquet")
    assert (one["id"], two["id"]) == (str(2**63), "1")
    assert (one["mixed"], two["mixed"]) == ("yes, no", '["yes", "no"]')
    assert (one["pairs"], two["pairs"]) == ('[["k", 1]]', None) and one["none"] == "{}"
    assert (one["list"], two["list"], one["number"], two["number"]) == ([1], [], 1.0, 0.5)


def test_numbers_that_json_has_not_are_null(tmp_path: Path):
    odd = {"text": "a", "id": math.nan, "more": [1.0, -math.inf, {"x": math.inf}]}
    for form in ("jsonl", "json", "csv"):
        path = tmp_path / f"a.{form}"
        out = Answers(path, form, OWN, columns=("text", "id", "more"))
        out.write([{**odd, **dict.fromkeys(OWN, "p")}])
        if form == "jsonl":
            assert Answers(path, form, OWN, columns=("text", "id", "more")).resume(rows([odd])) == 1
        out.finish()
        assert not re.search("NaN|Inf", path.read_text())


def test_csv_as_the_module_reads_it(tmp_path: Path):
    out = answers(tmp_path / "a.csv", "csv")
    out.write(MADE)
    out.finish()
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
        assert list(csv.DictReader(file)) == expected("csv")


@pytest.mark.parametrize("form", sorted(set(FORMATS) - {"txt"}))
def test_going_on_wherever_a_writer_was_stopped(form: str, tmp_path: Path):
    whole = answers(tmp_path / f"whole.{form}", form)
    whole.write(MADE)
    content = Path(whole.place).read_bytes()
    whole.finish()
    for size in (*range(0, len(content), 3), len(content)):
        path = tmp_path / f"a.{form}"
        out = answers(path, form)
        Path(out.place).write_bytes(content[:size])
        stream = rows()
        done = out.resume(stream)
        assert [row.content for row in stream] == INPUTS[done:]
        if done < 4:
            out.write(MADE[done:])
        assert Path(out.place).read_bytes() == content
        out.finish()
        assert path.read_bytes() == (tmp_path / f"whole.{form}").read_bytes()
    assert done == 4


@pytest.mark.parametrize("form", sorted(set(FORMATS) - {"txt"}))
def test_a_whole_file_goes_on_where_the_input_has_grown(form: str, tmp_path: Path):
    path = tmp_path / f"a.{form}"
    for count in (2, 4):
        out = answers(path, form)
        done = out.resume(rows(INPUTS[:count]))
        assert done == count - 2
        out.write(MADE[done:count])
        out.finish()
    assert written(path, form) == expected(form)


@pytest.mark.parametrize("form", ["jsonl", "csv", "tsv"])
def test_answers_to_something_else_are_refused(form: str, tmp_path: Path):
    path = tmp_path / f"a.{form}"
    answers(path, form).write(MADE)
    before = path.read_bytes()
    first = 1 if form == "jsonl" else 2
    with pytest.raises(HartError, match=rf"a\.{form}, lines? {first}.*: does not match in, line 1 and these options"):
        answers(path, form).resume(rows(INPUTS[1:]))
    with pytest.raises(HartError, match="does not match in, line 1"):  # made by choosing, now by generating
        Answers(path, form, ["prediction"], columns=("text", "id")).resume(rows())  # type: ignore[arg-type]
    with pytest.raises(HartError, match="answers a row that the input lacks"):
        answers(path, form).resume(rows(INPUTS[:2]))
    path.write_bytes(before.replace(b"prediction", b"PREDICTION"))
    with pytest.raises(HartError, match="does not match in, line 1"):
        answers(path, form).resume(rows())
    path.write_bytes(
        b'"damaged"x\n' + before if form == "jsonl" else before.replace(b"e,,", b"e,").replace(b"e\t\t", b"e\t")
    )
    with pytest.raises(HartError, match=rf"a\.{form}, line"):
        answers(path, form).resume(rows())


def test_what_cannot_go_on(tmp_path: Path):
    with pytest.raises(HartError, match="txt has answers only"):
        answers(tmp_path / "a.txt", "txt").resume(rows())
    with pytest.raises(HartError, match="json needs a regular file; give one as --output-file"):
        Answers(None, "json", OWN)
    with pytest.raises(HartError, match="/dev/null: parquet needs a regular file"):
        answers(Path("/dev/null"), "parquet")
    with pytest.raises(HartError, match="/dev/null: is not a regular file"):
        answers(Path("/dev/null"), "jsonl").resume(rows())
    assert answers(tmp_path / "absent.csv", "csv").resume(rows()) == 0


def test_a_field_that_the_header_has_not(tmp_path: Path):
    out = Answers(tmp_path / "a.csv", "csv", ["prediction"])
    out.write([{"text": "a", "prediction": "b"}])
    with pytest.raises(HartError, match=r"a\.csv: a row has the column 'more', which the header lacks; write jsonl"):
        out.write([{"text": "a", "more": 1, "prediction": "b"}])


def test_types_of_a_parquet_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = Answers(tmp_path / "a.parquet", "parquet", ["prediction"])
    out.write([{"n": None, "prediction": "a"}, {"n": 1, "prediction": "b"}])
    out.write([{"n": 1.5, "more": ["x"], "prediction": "c"}])
    out.finish()
    found = parquet.read_table(tmp_path / "a.parquet")
    assert found.schema.field("n").type == pyarrow.float64()
    assert found.to_pylist()[2] == {"n": 1.5, "more": ["x"], "prediction": "c"}
    mixed = Answers(tmp_path / "b.parquet", "parquet", ["prediction"])
    mixed.write([{"n": "text", "prediction": "a"}, {"n": 1, "prediction": "b"}])
    mixed.finish()
    assert [row["n"] for row in written(tmp_path / "b.parquet", "parquet")] == ["text", "1"]
    blocked = Answers(tmp_path / "c.parquet", "parquet", ["prediction"])
    blocked.write([{"n": 1, "prediction": "a"}])

    def full(*_: Any) -> None:
        raise OSError("full")

    monkeypatch.setattr(parquet, "ParquetWriter", full)
    with pytest.raises(HartError, match=r"c\.parquet: cannot be written \(full\); the rows are in .*\.part\.jsonl"):
        blocked.finish()
    assert len(written(Path(blocked.place), "jsonl")) == 1


def test_shown_rows() -> None:
    said: list[str] = []
    out = Answers(None, "csv", ["prediction"], show=said.append)
    for row in MADE[2:]:
        out.write([{"text": row["text"], "prediction": "x"}])
    out.finish()
    assert said == ["text,prediction\ne,x\n", "f,x\n"] and out.place == "printed"
