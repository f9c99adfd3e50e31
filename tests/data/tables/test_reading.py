"""Rows of every format with their places; an error is one line with file and place, and later rows are read."""

import gzip
import io
import json
import os
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from hart.data.reading import CONVERT
from hart.data.tables import FORMATS, RowError, Table, format_of, formats, reading
from hart.errors import HartError

ROWS = [{"text": "one", "id": "1"}, {"text": 'two "2", zwei', "id": "ü"}, {"text": "three 3", "id": "3"}]
LINES = ("jsonl", "csv", "tsv", "txt")
TEXTS = {
    "jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS),
    "json": json.dumps(ROWS, indent=2, ensure_ascii=False),
    "csv": 'text,id\none,1\n"two ""2"", zwei",ü\n\nthree 3,3\n',
    "tsv": 'text\tid\none\t1\n"two ""2"", zwei"\tü\nthree 3\t3\n',
    "txt": 'one\n\ntwo "2", zwei\nthree 3\n',
}


def table(folder: Path, form: Any, content: bytes | str | None = None) -> Table:
    """A table of that content, or of `ROWS`."""
    path = folder / f"a.{form}"
    if form == "parquet" and content is None:
        parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    else:
        text = TEXTS[form] if content is None else content
        path.write_bytes(text.encode() if isinstance(text, str) else text)
    return Table(path, form, path.name, "text")


def read(source: Table, field: str | None = "text") -> list[tuple[str, str]]:
    """Text and place of each row; the message in the place of the text of a wrong one."""
    found = []
    for item in source.queries(field):
        found.append(("wrong", str(item)) if isinstance(item, RowError) else (item[1], item[0].where))
    return found


@pytest.mark.parametrize("form", FORMATS)
def test_rows_and_their_places(form: str, tmp_path: Path):
    places = {
        "jsonl": ["line 1", "line 2", "line 3"],
        "json": ["item 1", "item 2", "item 3"],
        "csv": ["line 2", "line 3", "line 5"],
        "tsv": ["line 2", "line 3", "line 4"],
        "txt": ["line 1", "line 3", "line 4"],
        "parquet": ["row 1", "row 2", "row 3"],
    }[form]
    source = table(tmp_path, form)
    assert read(source) == [(row["text"], f"a.{form}, {place}") for row, place in zip(ROWS, places, strict=True)]
    rows = [row.content for row in source.rows() if not isinstance(row, RowError)]
    assert rows == (ROWS if form != "txt" else [{"text": row["text"]} for row in ROWS])
    if form != "parquet":
        stream = Table(io.BytesIO(TEXTS[form].encode()), source.format, "standard input", "text")
        assert not stream.again and [text for text, _ in read(stream)] == [row["text"] for row in ROWS]


@pytest.mark.parametrize("form", sorted(TEXTS))
def test_mark_carriage_returns_and_archive(form: str, tmp_path: Path):
    expected = read(table(tmp_path, form))
    assert read(table(tmp_path, form, "\ufeff" + TEXTS[form].replace("\n", "\r\n"))) == expected
    path = tmp_path / f"b.{form}.gz"
    path.write_bytes(gzip.compress(TEXTS[form].encode()))
    assert format_of(path, "--x") == form
    packed = Table(path, format_of(path, "--x"), f"a.{form}", "text")
    assert read(packed) == expected
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(HartError, match=r"damaged"):
        read(packed)


@pytest.mark.parametrize("form", sorted(TEXTS))
def test_nothing_there(form: str, tmp_path: Path):
    for content in ("", "\n \n", "\ufeff"):
        assert read(table(tmp_path, form, content)) == []
    with pytest.raises(HartError, match=r"absent: cannot be read \(No such file"):
        read(Table(tmp_path / "absent", table(tmp_path, form).format, "absent"))
    with pytest.raises(HartError, match="is a Git LFS pointer"):
        read(table(tmp_path, form, "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n"))
    with pytest.raises(HartError, match="directory"):
        read(Table(tmp_path, table(tmp_path, form).format, "folder"))


def test_times_that_python_has_not_are_text(tmp_path: Path):
    far = pyarrow.array([2**39, 0], pyarrow.timestamp("s"))
    fine = pyarrow.array([1, 2], pyarrow.timestamp("ns"))
    parquet.write_table(pyarrow.table({"text": ["a", "b"], "far": far, "fine": fine}), tmp_path / "a.parquet")
    found = list(Table(tmp_path / "a.parquet", "parquet", "a.parquet").rows())
    assert [row.content["text"] for row in found] == ["a", "b"]
    assert found[0].content["far"].startswith("19391-") and found[1].content["far"].startswith("1970-01-01 00:00:00")


def test_parquet_that_is_none(tmp_path: Path):
    for content in (b"", b"PAR1 and more", TEXTS["csv"].encode()):
        with pytest.raises(HartError, match=r"^a\.parquet: not a Parquet file, or damaged after row 0 \(.*\)$"):
            read(table(tmp_path, "parquet", content))
    with pytest.raises(HartError, match="cannot be read from a stream"):
        read(Table(io.BytesIO(), "parquet", "standard input"))
    names = pyarrow.table([["a"], ["b"]], names=["text", "text"])
    parquet.write_table(names, tmp_path / "twins.parquet")
    with pytest.raises(HartError, match=r"two columns are called 'text'"):
        read(Table(tmp_path / "twins.parquet", "parquet", "twins.parquet"))


@pytest.mark.parametrize("form", LINES)
def test_a_line_in_another_encoding_is_one_wrong_row(form: str, tmp_path: Path):
    found = read(table(tmp_path, form, TEXTS[form].encode().replace(b"one", "Größe".encode("latin-1"))))
    number = {"jsonl": 1, "txt": 1}.get(form, 2)
    assert found[0] == ("wrong", f"a.{form}, line {number}: not UTF-8; {CONVERT}") and "iconv -f" in CONVERT
    assert [text for text, _ in found[1:]] == [row["text"] for row in ROWS[1:]]


def test_encodings_of_whole_files(tmp_path: Path):
    with pytest.raises(HartError, match=r"a\.json: the text is not UTF-8; convert"):
        read(table(tmp_path, "json", '["é"]'.encode("latin-1")))
    for form, encoding in (
        ("csv", "utf-16"),
        ("tsv", "utf-16-le"),
    ):  # iconv from WINDOWS-1252 would keep its zero bytes
        with pytest.raises(HartError, match="line 1: (not UTF-8|contains zero bytes).*iconv -f UTF-16"):
            read(table(tmp_path, form, TEXTS[form].encode(encoding)))
    with pytest.raises(HartError, match="not UTF-8.*iconv -f UTF-16"):
        read(table(tmp_path, "json", TEXTS["json"].encode("utf-16")))


@pytest.mark.parametrize("form", sorted({*TEXTS, "parquet"} - {"txt"}))
def test_a_field_that_is_missing(form: str, tmp_path: Path):
    if form in ("jsonl", "json"):
        found = read(table(tmp_path, form), "query")
        assert len(found) == 3 and all(
            what == "wrong" and 'with a text as "query"; name the field' in line and "--input-field" in line
            for what, line in found
        )
        return
    with pytest.raises(
        HartError, match=rf"^a\.{form}: has no column 'query', its columns are 'text', 'id'; .*--input-f"
    ):
        read(table(tmp_path, form), "query")


def test_the_only_column_needs_no_name(tmp_path: Path):
    assert [text for text, _ in read(table(tmp_path, "csv", "review\ngood\nbad, not so\n"), None)][:1] == ["good"]
    assert [text for text, _ in read(table(tmp_path, "tsv", "review\ngood\nbad, not so\n"), None)] == [
        "good",
        "bad, not so",
    ]
    with pytest.raises(HartError, match="has no column 'input', its columns are 'text', 'id'"):
        read(table(tmp_path, "csv"), None)


def test_a_text_is_no_number(tmp_path: Path):
    parquet.write_table(pyarrow.table({"text": [1, None]}), tmp_path / "a.parquet")
    found = read(Table(tmp_path / "a.parquet", "parquet", "a.parquet"))
    assert found == [("wrong", f'a.parquet, row {i}: must be a text as "text"') for i in (1, 2)]


def test_quotes_hold_line_ends_and_ragged_rows_are_told(tmp_path: Path):
    content = 'text,id\n"one\r\ntwo",1\nshort\na,b,c\n"x"y,2\nlast,3\n"open,4\nlost,5\n'
    assert read(table(tmp_path, "csv", content)) == [
        ("one\r\ntwo", "a.csv, lines 2 to 3"),
        ("wrong", "a.csv, line 4: has 1 fields, and the header has 2; check its quotes"),
        ("wrong", "a.csv, line 5: has 3 fields, and the header has 2; check its quotes"),
        ("wrong", "a.csv, line 6: not CSV (',' expected after '\"'); check its quotes"),
        ("last", "a.csv, line 7"),
        ("wrong", "a.csv, lines 8 to 9: not CSV (unexpected end of data); check its quotes"),
    ]


def test_lines_that_end_in_a_carriage_return_alone(tmp_path: Path):
    with pytest.raises(HartError, match="a.csv, line 1: not CSV .*; end lines as Windows or Unix do"):
        read(table(tmp_path, "csv", "text,id\rone,1\rtwo,2\r"))


@pytest.mark.parametrize(
    ("header", "told"),
    [
        ("text,text\n", "line 1: two columns are called 'text'; rename one"),
        ("text;id\na;1\n", "line 1: the header is a single field that contains ';'; save the table with ',' between"),
        ("text\tid\na\t1\n", r"the header is a single field that contains '\t'"),
        ('"text\n', "line 1: not CSV"),
    ],
)
def test_headers_that_are_none(header: str, told: str, tmp_path: Path):
    with pytest.raises(HartError) as caught:
        read(table(tmp_path, "csv", header))
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"text": "a"}\n{"text": "b"}\n', "must be a JSON array of objects; name the format jsonl for one"),
        ('[{"text": "a"} {"text": "b"}]', "item 1: the text after it is not JSON (a comma or ] is missing)"),
        ('[{"text": "a"}, {"text" "b"}]' + " " * 100, "item 2: the text is not JSON (Expecting ':' delimiter)"),
        ('[{"text": "a"}, {"text": "b', "item 2: the text is not JSON (Unterminated string"),
        ('[{"text": "a"}', "item 1: the text after it is not JSON"),
        ('[{"text": "a"},]', "item 2: the text is not JSON (Expecting value)"),
        ("[] []", "the text is not JSON (something follows the array)"),
        ("[" * 100_000, "item 1: not a query, its brackets are nested too deeply"),
        ('[{"text": ' + "1" * 5000 + "}]", "item 1: not a query, a number has more than"),
    ],
)
def test_arrays_that_are_none(content: str, told: str, tmp_path: Path):
    with pytest.raises(HartError) as caught:
        read(table(tmp_path, "json", content))
    assert str(caught.value).startswith("a.json") and told in str(caught.value)


def test_items_that_are_no_rows_are_passed_over(tmp_path: Path):
    content = '[12, "a", {"text": "b"}, null, {"text": "\\ud800"}, {"text": "c"}, []]'
    found = read(table(tmp_path, "json", content))
    assert [text for text, _ in found if text != "wrong"] == ["b", "c"] and len(found) == 7
    assert (
        found[4][1]
        == "a.json, item 5: not a query, text contains half of a character; write the whole one, or leave it out"
    )


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
def test_an_array_is_the_same_however_it_is_cut(size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    values = [{"text": 'ü€😀 "\\ \n', "n": [1.5e-7, -12, True, None, {"a": "]},{"}]}, {"text": ""}, {"text": "x" * 200}]
    source = table(tmp_path, "json", json.dumps(values, ensure_ascii=False, indent=1))
    monkeypatch.setattr(reading, "CHUNK", size)
    assert [row.content for row in source.rows() if not isinstance(row, RowError)] == values


@pytest.mark.parametrize("form", sorted(TEXTS))
def test_a_huge_line_is_refused_and_does_not_fill_the_memory(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    limit, size = 2**18, 2**24
    for module in (formats, reading):
        monkeypatch.setattr(module, "MAX_ROW_BYTES", limit)
    monkeypatch.setattr(reading, "CHUNK", 2**14)
    huge = "x" * size
    content = {
        "jsonl": f'{{"text": "a"}}\n{{"text": "{huge}"}}\n{{"text": "b"}}\n',
        "json": f'[{{"text": "a"}}, {{"text": "{huge}"}}]',
        "csv": f"text\na\n{huge}\nb\n",
        "tsv": f"text\na\n{huge}\nb\n",
        "txt": f"a\n{huge}\nb\n",
    }[form]
    source = table(tmp_path, form, content)
    del huge, content
    found: list[tuple[str, str]] = []
    tracemalloc.start()
    try:
        if form == "json":
            with pytest.raises(HartError, match=r"a\.json, item 2: is longer than 16 MiB"):
                read(source)
        else:
            found = read(source)
        assert tracemalloc.get_traced_memory()[1] < 16 * limit
    finally:
        tracemalloc.stop()
    if form != "json":
        number = {"jsonl": 2, "txt": 2}.get(form, 3)
        assert [text for text, _ in found] == ["a", "wrong", "b"]
        assert found[1][1].startswith(f"a.{form}, line {number}: is longer than 16 MiB")


def test_a_quote_that_stays_open_takes_no_more_than_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reading, "MAX_ROW_BYTES", 1000)
    source = table(tmp_path, "csv", "text,id\na,1\n" + '"b,2\n' + "c,3\n" * 300)
    found = read(source)
    assert found[1] == (
        "wrong",
        "a.csv, lines 3 to 252: one row of more than 16 MiB; is a quote in its first line left open?",
    )
    assert found[2] == ("c", "a.csv, line 253") and len(found) == 2 + 301 - 250


def test_which_tables_can_be_read_again(tmp_path: Path):
    assert table(tmp_path, "csv").again
    os.mkfifo(tmp_path / "pipe")
    pipe = Table(tmp_path / "pipe", "csv", "pipe")
    assert not pipe.again
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_text(TEXTS["csv"], encoding="utf-8"))
    writer.start()
    assert [text for text, _ in read(pipe)] == [row["text"] for row in ROWS]
    writer.join()


def test_formats_by_ending():
    assert format_of(Path("a.b/x.NDJSON"), "--x") == "jsonl" and format_of(Path("x.csv.gz"), "--x") == "csv"
    for name in ("x", "x.dat", "x.gz", ".csv"):
        with pytest.raises(HartError, match=r"unknown ending \(known are .*\.parquet.* --x \(jsonl, json"):
            format_of(Path(name), "--x")
    for name in ("x.xlsx", "x.XLS", "x.ods"):  # no name of a format would help
        with pytest.raises(HartError, match=r"is a spreadsheet, which is neither read nor written; use CSV"):
            format_of(Path(name), "--x")
