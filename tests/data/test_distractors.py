"""Distractors: the training rows of a file, and the examples that they replace."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from hart.data.distractors import HELD_OUT, WithDistractors, read_distractors
from hart.data.sampling import Example, Examples
from hart.errors import HartError

QUERIES = [f"query {number}" for number in range(25)]


class Counted(Examples):
    """Example i has i wherever it can."""

    tasks = ()

    def __len__(self) -> int:
        return 2000

    def __getitem__(self, index: int) -> Example:
        example = Example(demo_ids=[[index]], query_ids=[index], labels=[index], slot=index, task_index=index % 7)
        return example | {"teacher_ids": [index, index]} if index % 2 else example  # type: ignore[return-value]


def test_every_tenth_row_is_held_out(tmp_path: Path):
    plain, rows, packed = tmp_path / "a.txt", tmp_path / "b.jsonl", tmp_path / "c.txt.gz"
    plain.write_text("\n".join([*QUERIES[:7], " query 3 ", "", *QUERIES[7:]]))
    rows.write_text("".join(json.dumps({"input": query, "else": 1}) + "\n" for query in QUERIES))
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    trained, held_out = read_distractors(plain)
    assert held_out == ["query 9", "query 19"] and sorted([*trained, *held_out]) == sorted(QUERIES)
    assert read_distractors(rows) == read_distractors(packed) == (trained, held_out)


def test_files_that_cannot_be_used_are_refused(tmp_path: Path):
    def refusal(name: str, content: str) -> str:
        (tmp_path / name).write_text(content)
        with pytest.raises(HartError) as error:
            read_distractors(tmp_path / name)
        return str(error.value).removeprefix(f"{tmp_path}/")

    assert refusal("a.csv", "input\nx\n").startswith(
        "a.csv: distractors must be a text with one query per line (.txt), or"
    )
    assert refusal("a.txt", "x\n" * 30) == f"a.txt: holds 1 different distractors; at least {HELD_OUT} are needed"
    assert refusal("a.jsonl", '{"input": "x"}\n{"inputs": "x"}\n').startswith("a.jsonl, line 2: must be a JSON object")
    assert refusal("a.jsonl", '{"input": " "}').startswith("a.jsonl, line 1: must be a JSON object")
    assert refusal("a.jsonl", "x").startswith("a.jsonl, line 1: not a distractor")
    with pytest.raises(HartError, match="cannot be read"):
        read_distractors(tmp_path / "missing.txt")


def test_a_share_of_the_queries_is_replaced_and_nothing_else():
    pool = [([10_000 + number], [20_000 + number]) for number in range(5)]
    plain, some = Counted(), WithDistractors(Counted(), pool, share=0.25, seed=3)
    assert len(some) == len(plain)
    found: list[Any] = [some[index] for index in range(len(plain))]
    replaced = [at for at, example in enumerate(found) if example != plain[at]]
    assert len(replaced) == pytest.approx(500, abs=60)
    for at in replaced:
        assert (found[at]["query_ids"], found[at]["labels"]) in pool
        assert found[at].get("teacher_ids") in (None, found[at]["query_ids"]), "the base reads it alone"
        kept = {name: plain[at][name] for name in plain[at] if name in ("query_ids", "labels", "teacher_ids")}
        assert {**found[at], **kept} == plain[at], "the task and its place stay"
    drawn = [found[at]["query_ids"][0] - 10_000 for at in replaced]
    assert all(drawn.count(number) > 60 for number in range(5))
    assert [some[index] for index in (7, 3)] == [found[7], found[3]], "in any order"
    other = WithDistractors(Counted(), pool, share=0.25, seed=4)
    assert [at for at in range(len(plain)) if other[at] != plain[at]] != replaced
