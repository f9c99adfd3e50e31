"""Users' queries: checked at every reading, reported once, and equal at every reading."""

import logging
from pathlib import Path

import pytest

from hart.data.input_format import InputFormat
from hart.data.tables import Table
from hart.errors import HartError
from hart.model.answering import encode_queries
from hart.model.hart_model import HartModel
from hart.model.table_queries import Encoder, Queries, split_choices

from .conftest import TASKS

LINES = '{"input": "one two", "adaptation": "b"}\n{"input": " "}\n{"input": "x", "adaptation": "c"}\n{"input": "the"}\n'


@pytest.fixture
def source(tmp_path: Path) -> Table:
    (tmp_path / "a.jsonl").write_text(LINES, encoding="utf-8")
    return Table(tmp_path / "a.jsonl", "jsonl", "a.jsonl")


def test_read_as_often_as_needed_and_told_once(
    source: Table, system: HartModel, caplog: pytest.LogCaptureFixture
) -> None:
    queries = Queries(source, folders=["x/b"], skip_errors=True)
    assert queries.again and queries.check() == 2
    encode = Encoder(system.main, system.adapt(TASKS[0]), None)
    caplog.clear()
    for _ in range(2):
        read = list(queries.read(encode, tell={"tokens"}))
        assert [(query.text, query.entry) for query, _ in read] == [("one two", 0), ("the", 0)]
        assert [tokens for _, tokens in read] == encode_queries(
            system.main.tokenizer, ["one two", "the"], None, InputFormat()
        )
    assert queries.skipped == 2 and list(queries.columns or ()) == ["input", "adaptation"]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_the_first_wrong_row_is_the_error(source: Table) -> None:
    with pytest.raises(HartError, match=r"^a\.jsonl, line 2: the query is empty"):
        Queries(source, folders=["x/b"]).check()


def test_choices_of_a_row(tmp_path: Path, system: HartModel) -> None:
    path = tmp_path / "a.csv"
    path.write_text('input,labels\na,"x, y"\nb,"[""p,q"", ""r""]"\nc,\nd,one\n', encoding="utf-8")
    queries = Queries(
        Table(path, "csv", "a.csv"), folders=["b"], choices=["v", "w"], choices_field="labels", skip_errors=True
    )
    encode = Encoder(system.main, system.adapt(TASKS[0]), None)
    found = [query.choices for query, _ in queries.read(encode, tell=())]
    assert found == [["x", "y"], ["p,q", "r"], ["v", "w"]]
    with pytest.raises(HartError, match=r"a\.csv, line 5: labels: 1 choices"):
        list(
            Queries(Table(path, "csv", "a.csv"), folders=["b"], choices=["v", "w"], choices_field="labels").read(
                None, tell=()
            )
        )
    with pytest.raises(HartError, match="x must be a list of texts, or a text with commas"):
        split_choices(3, "x")
