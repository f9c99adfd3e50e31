"""Rows of a P3 subset: equal in every layout, in memory and on disk, and bad rows are named."""

import gzip
import json
import logging
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from hart.data.p3 import instances as p3_instances
from hart.data.p3.instances import InstancesOnDisk, read_instances
from hart.data.prompts import Cuts
from hart.data.tasks import Instance
from hart.errors import HartError

ROWS: list[dict[str, Any]] = [
    {
        "inputs": [1, 2],
        "inputs_pretokenized": f"Is {i} odd?\n",
        "targets_pretokenized": "\nyes" if i % 2 else "no ",
        "answer_choices": ["yes", " no"],
    }
    for i in range(7)
]
EXPECTED = [Instance(f"Is {i} odd?\n", ("yes" if i % 2 else "no",), choices=("yes", "no")) for i in range(7)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(params=["in memory", "on the disk"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "on the disk":
        monkeypatch.setattr(p3_instances, "IN_MEMORY_BYTES", 0)
    return str(request.param)


def lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def parquet(rows: list[dict[str, Any]], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def write(layout: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    match layout:
        case "jsonl":
            (folder / "train.jsonl").write_text(lines(ROWS), encoding="utf-8")
        case "jsonl.gz":
            with gzip.open(folder / "train.jsonl.gz", "wt", encoding="utf-8") as file:
                file.write(lines(ROWS))
        case "parquet":
            parquet(ROWS, folder / "train.parquet")
        case "shards":
            parquet(ROWS[:3], folder / "train-00000-of-00002.parquet")
            parquet(ROWS[3:], folder / "train-00001-of-00002.parquet")
        case "hub":
            parquet(ROWS[:3], folder / "train" / "0000.parquet")
            parquet(ROWS[3:], folder / "train" / "0001.parquet")
        case "partial hub":
            parquet(ROWS, folder / "partial-train" / "0000.parquet")


@pytest.mark.parametrize("layout", ["jsonl", "jsonl.gz", "parquet", "shards", "hub", "partial hub"])
def test_every_layout_gives_the_same_rows(layout: str, place: str, tmp_path: Path):
    write(layout, tmp_path / "imdb_x")
    rows = read_instances(tmp_path / "imdb_x", "train", check_answers=True)
    assert isinstance(rows, tuple if place == "in memory" else InstancesOnDisk)
    assert list(rows) == EXPECTED
    assert rows[-1] == EXPECTED[-1] and rows[2:4] == tuple(EXPECTED[2:4])
    with pytest.raises(IndexError):
        rows[7]


def test_rows_need_no_choices(place: str, tmp_path: Path):
    rows = [{key: row[key] for key in ("inputs_pretokenized", "targets_pretokenized")} for row in ROWS]
    parquet(rows, tmp_path / "xsum_x" / "train.parquet")
    assert [row.choices for row in read_instances(tmp_path / "xsum_x", "train")] == [()] * 7


def changed(at: int, **values: Any) -> list[Any]:
    return [{**row, **values} if i == at else row for i, row in enumerate(ROWS)]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (changed(2, inputs_pretokenized=" \n"), "imdb_x: train, row 2: inputs_pretokenized is empty"),
        (changed(1, answer_choices=["yes"]), "imdb_x: train, row 1: has 1 choices; at least two"),
        (changed(4, targets_pretokenized="maybe"), "row 4: the answer 'maybe' is not among the choices"),
        (changed(3, answer_choices=[]), "imdb_x: train, row 3: "),
        ([], "imdb_x"),
    ],
)
def test_bad_rows_are_named(rows: list[Any], message: str, place: str, tmp_path: Path):
    path = tmp_path / "imdb_x" / "train.jsonl"
    path.parent.mkdir()
    path.write_text(lines(rows), encoding="utf-8")
    with pytest.raises(HartError) as caught:
        read_instances(path.parent, "train", check_answers=True)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_rows_with_an_empty_input_are_no_training_rows(place: str, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """One of a large collection must not stop its training; an evaluation is to score all rows (above)."""
    path, cuts = tmp_path / "imdb_x" / "train.jsonl", Cuts()
    path.parent.mkdir()
    path.write_text(lines(changed(2, inputs_pretokenized=" \n")), encoding="utf-8")
    rows = read_instances(path.parent, "train", cuts=cuts)
    assert list(rows) == EXPECTED[:2] + EXPECTED[3:] and rows[2] == EXPECTED[3] and rows[-1] == EXPECTED[-1]
    cuts.tell(logging.getLogger("hart.data.p3.subsets"))
    assert caplog.messages == ["subset imdb_x: left out 1 of 7 rows, whose input is empty"]
    path.write_text(lines([{**row, "inputs_pretokenized": ""} for row in ROWS]), encoding="utf-8")
    with pytest.raises(HartError, match="imdb_x: train, row 0: inputs_pretokenized is empty"):
        read_instances(path.parent, "train")


@pytest.mark.parametrize("key", ["inputs_pretokenized", "targets_pretokenized"])
def test_parquet_of_other_types_or_with_bytes_that_are_no_text(key: str, place: str, tmp_path: Path):
    for value, message in (
        (7, f"train, row [02]: {key} is missing or no text"),
        (None, f"train, row 2: {key} is missing or no text"),
        (b"\xed\xa0\x80", f"{key} is not UTF-8|is damaged or has another format .*decode"),
    ):
        rows = ROWS[:2] + [{**ROWS[2], key: value}] if value != 7 else [{**row, key: 7} for row in ROWS]
        table = pyarrow.Table.from_pylist(rows) if not isinstance(value, bytes) else None
        if table is None:
            table = pyarrow.Table.from_pylist(ROWS[:2])
            at = table.column_names.index(key)
            binary = pyarrow.array([b"good", value]).view(pyarrow.string())
            table = table.set_column(at, key, binary)
        folder = tmp_path / f"x_{key}_{value!r:.4}".replace("\\", "")
        folder.mkdir()
        pyarrow.parquet.write_table(table, folder / "train.parquet")
        with pytest.raises(HartError, match=message) as caught:
            read_instances(folder, "train")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (changed(5, targets_pretokenized=7), "row 5: targets_pretokenized is missing or no text"),
        ([*ROWS, {"text": "x"}], "row 7: inputs_pretokenized is missing or no text"),
        (changed(5, answer_choices="yes"), "row 5: answer_choices must be a list of texts"),
        (changed(6, answer_choices=None), "row 6: mixed schemas, answer_choices must be in all rows or in none"),
        ([*ROWS, [1]], "row 7: must be a JSON object"),
    ],
)
def test_bad_schemas_are_named(rows: list[Any], message: str, place: str, tmp_path: Path):
    path = tmp_path / "imdb_x" / "train.jsonl"
    path.parent.mkdir()
    path.write_text(lines(rows), encoding="utf-8")
    with pytest.raises(HartError, match="imdb_x: train, " + message):
        read_instances(path.parent, "train")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (changed(6, answer_choices=None), "row 6: mixed schemas, answer_choices must be in all rows or in none"),
        (changed(0, answer_choices=[]), "row 1: mixed schemas, answer_choices must be in all rows or in none"),
        ([{**row, "answer_choices": [1, 2]} for row in ROWS], "row 0: answer_choices must be a list of texts"),
        ([{**row, "answer_choices": "yes"} for row in ROWS], "row 0: answer_choices must be a list of texts"),
        (changed(3, answer_choices=["a", None]), "row [0-3]( or after)?: answer_choices must be a list of texts"),
    ],
)
def test_choices_in_parquet_are_checked(rows: list[Any], message: str, place: str, tmp_path: Path):
    parquet(rows, tmp_path / "imdb_x" / "train.parquet")
    with pytest.raises(HartError, match="imdb_x: train, " + message):
        read_instances(tmp_path / "imdb_x", "train")


def test_lines_that_one_schema_does_not_hold_are_rows_all_the_same(place: str, tmp_path: Path):
    """Columns that are not read may be of any type."""
    path = tmp_path / "imdb_x" / "train.jsonl"
    path.parent.mkdir()
    path.write_text("\ufeff" + lines([{**row, "meta": [i, {"a": i}, "x", None][i % 4]} for i, row in enumerate(ROWS)]))
    assert list(read_instances(path.parent, "train")) == EXPECTED


def test_other_columns_are_no_subset(place: str, tmp_path: Path):
    parquet([{"text": "x", "label": 1}], tmp_path / "imdb_x" / "train.parquet")
    with pytest.raises(HartError, match="imdb_x: train, row 0: inputs_pretokenized is missing"):
        read_instances(tmp_path / "imdb_x", "train")


def test_shards_of_different_schemas(place: str, tmp_path: Path):
    parquet(ROWS[:3], tmp_path / "imdb_x" / "train-0.parquet")
    parquet([{k: v for k, v in ROWS[3].items() if k != "answer_choices"}], tmp_path / "imdb_x" / "train-1.parquet")
    with pytest.raises(HartError, match="mixed schemas, answer_choices"):
        read_instances(tmp_path / "imdb_x", "train")


@pytest.mark.parametrize("layout", ["jsonl", "jsonl.gz", "parquet"])
def test_a_damaged_file_is_named(layout: str, place: str, tmp_path: Path):
    write(layout, tmp_path / "imdb_x")
    (path,) = (tmp_path / "imdb_x").iterdir()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(HartError, match="imdb_x") as caught:
        read_instances(tmp_path / "imdb_x", "train")
    assert "\n" not in str(caught.value)


def test_a_subset_without_the_split(tmp_path: Path):
    write("jsonl", tmp_path / "imdb_x")
    with pytest.raises(HartError, match="imdb_x: has no validation rows; expected validation.jsonl"):
        read_instances(tmp_path / "imdb_x", "validation")


def test_real_rows_are_the_same_in_memory_and_on_the_disk(shared_data: Path, monkeypatch: pytest.MonkeyPatch):
    subset = shared_data / "p3" / "super_glue_copa_best_option"
    rows = read_instances(subset, "validation", check_answers=True)
    monkeypatch.setattr(p3_instances, "IN_MEMORY_BYTES", 0)
    assert list(read_instances(subset, "validation", check_answers=True)) == list(rows)
