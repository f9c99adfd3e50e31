"""Users' files: each error is one line with file and place."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from hart.data.input_format import InputFormat
from hart.data.p3.instances import read_instances
from hart.data.reading import check_text, read_lines
from hart.data.segments import SegmentDataset
from hart.data.super_natural_instructions import load_sni
from hart.data.tasks import Task
from hart.errors import HartError

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
DEEP = "[" * 100_000 + "]" * 100_000
LONG = "1" * 5000

TASK: dict[str, Any] = {"Definition": ["Do."], "Positive Examples": [{"input": "a", "output": "b"}]}
ROW = {"inputs_pretokenized": "a b", "targets_pretokenized": "c"}
DOCUMENT = {"text": " ".join(["word"] * 20)}


class Letters:
    eos_token_id = 1

    def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
        return {"input_ids": list(text.encode())}


def read_task(path: Path) -> Any:
    return Task.from_file(path)


def read_subset(path: Path) -> Any:
    return read_instances(path.parent, "train")


def read_documents(path: Path) -> Any:
    form = InputFormat(max_demonstrations_length=20, max_query_length=20, max_target_length=20)
    dataset = SegmentDataset(Letters(), form, directory=path.parent, kind="four", length=3, seed=0)
    return [dataset[i] for i in range(3)]


READERS = {
    "task": (read_task, "task.json", TASK),
    "P3": (read_subset, "train.jsonl", ROW),
    "P3 archive": (read_subset, "train.jsonl.gz", ROW),
    "text": (read_documents, "train.jsonl", DOCUMENT),
    "text archive": (read_documents, "train.jsonl.gz", DOCUMENT),
}
EVERY = pytest.mark.parametrize("reader", READERS)


def refusal(reader: str, tmp_path: Path, content: bytes | None) -> str:
    """What is said to a file of that content; None: a folder."""
    read, name, _ = READERS[reader]
    path = tmp_path / "subset" / name
    path.parent.mkdir(exist_ok=True)
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(HartError) as caught:
        read(path)
    message = str(caught.value)
    assert "\n" not in message and str(path.parent) in message and len(message) < 400
    return message


def packed(reader: str, text: str) -> bytes:
    return gzip.compress(text.encode()) if "archive" in reader else text.encode()


@EVERY
def test_a_pointer_of_git_lfs_is_not_the_file(reader: str, tmp_path: Path):
    message = refusal(reader, tmp_path, LFS)
    assert "is a Git LFS pointer, not the file itself; run 'git lfs pull'" in message


def test_a_pointer_in_place_of_parquet(tmp_path: Path):
    (tmp_path / "train.parquet").write_bytes(LFS)
    with pytest.raises(HartError, match=r"train\.parquet: is a Git LFS pointer"):
        read_instances(tmp_path, "train")


@EVERY
def test_a_folder_in_place_of_the_file(reader: str, tmp_path: Path):
    message = refusal(reader, tmp_path, None)
    assert "Is a directory" in message or "holds no file" in message or ": is a folder; give one of its task" in message


@EVERY
def test_nesting_and_numbers_that_python_does_not_take(reader: str, tmp_path: Path):
    whole = json.dumps(READERS[reader][2])
    for value, reason in ((DEEP, "nested too deep"), (LONG, "a number has more than")):
        text = f'{whole[:-1]}, "more": {value}}}\n'
        message = refusal(reader, tmp_path, packed(reader, text if reader == "task" else f"{whole}\n{text}"))
        assert reason in message
        assert reader == "task" or "row 1" in message or "line 2" in message


@EVERY
def test_a_byte_order_mark_is_no_part_of_the_text(reader: str, tmp_path: Path):
    read, name, content = READERS[reader]
    path = tmp_path / "subset" / name
    path.parent.mkdir()
    found = []
    for mark in ("", "\ufeff"):
        path.write_bytes(packed(reader, mark + json.dumps(content) + "\n"))
        found.append(read(path))
    assert found[0] == found[1]


@pytest.mark.parametrize("reader", ["P3 archive", "text archive"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "sum", "no archive"])
def test_damaged_archives(reader: str, damage: str, tmp_path: Path):
    content = READERS[reader][2]
    first = next(iter(content))
    rows = "".join(
        json.dumps({**content, first: f"{content[first]} {i * 7919 % 10007} {'w ' * 20}"}) + "\n" for i in range(3000)
    )
    whole = packed(reader, rows)
    middle = len(whole) // 2
    damaged = {
        "cut": whole[:middle],
        "flipped": whole[:middle] + bytes(byte ^ 255 for byte in whole[middle : middle + 40]) + whole[middle + 40 :],
        "sum": whole[:-8] + bytes(8),
        "no archive": b"plain text",
    }[damage]
    read, name, _ = READERS[reader]
    path = tmp_path / "subset" / name
    path.parent.mkdir()
    path.write_bytes(damaged)

    def everything() -> Any:
        if reader == "P3 archive":
            return read(path)
        form = InputFormat(max_demonstrations_length=20, max_query_length=20, max_target_length=20)
        return SegmentDataset(Letters(), form, directory=path.parent, kind="four", length=9999, seed=0)[9998]

    with pytest.raises(
        HartError,
        match=r"train\.jsonl\.gz: damaged after line \d+|, line \d+: not UTF-8|is not JSON|must be a JSON object",
    ) as caught:
        everything()
    assert "\n" not in str(caught.value)


def test_lines_are_numbered_and_blank_ones_are_none(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbfone\r\n\n \n" + "two\u2028still two\u0085\n".encode() + b"three")
    lines = [(1, 0, "one\r\n"), (4, 11, "two\u2028still two\u0085\n"), (5, 29, "three")]
    assert list(read_lines(path)) == lines
    with pytest.raises(HartError, match=r"a\.json: cannot be read \(No such file"):
        next(read_lines(tmp_path / "a.json"))
    path.write_bytes(b"one\n\xff\n")
    with pytest.raises(HartError, match=r"a\.jsonl, line 2: not UTF-8; convert"):
        list(read_lines(path))
    path.write_bytes("one\n".encode("utf-16"))
    with pytest.raises(HartError, match=r"a\.jsonl, line 1: not UTF-8; convert .*iconv -f UTF-16"):
        list(read_lines(path))


def test_text():
    assert check_text("😀 é", "x") == "😀 é"
    with pytest.raises(
        HartError, match=r"^x contains an invalid character \(a lone surrogate, U\+D800, at position 1\); replace"
    ):
        check_text("a\ud800", "x")


BAD = "half \ud83d"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"Definition": [BAD]}, "Definition"),
        ({"Positive Examples": [{"input": BAD, "output": "b"}]}, "Positive Examples[0]: input"),
        ({"Positive Examples": [{"input": "a", "output": BAD}]}, "Positive Examples[0]: output"),
        (
            {"Positive Examples": [{"input": "a", "output": "b", "explanation": BAD}]},
            "Positive Examples[0]: explanation",
        ),
        ({"Categories": [BAD]}, "Categories[0]"),
        ({"Instances": [{"id": "x", "input": BAD, "output": ["b"]}]}, "Instances[0] (x): input"),
        ({"Instances": [{"id": "x", "input": "a", "output": ["b", BAD]}]}, "Instances[0] (x): output[1]"),
        ({"Instances": [{"id": BAD, "input": "a", "output": ["b"]}]}, "Instances[0]: id"),
        ({"Instances": [{"input": "a", "output": ["b"], "choices": ["b", BAD]}]}, "Instances[0]: choices[1]"),
        ({"Choices": [BAD, "b"], "Instances": [{"input": "a", "output": ["b"]}]}, "Instances[0]: choices[0]"),
    ],
)
def test_half_of_a_surrogate_pair_in_a_task_is_named(change: dict[str, Any], field: str, tmp_path: Path):
    message = refusal("task", tmp_path, json.dumps({**TASK, **change}).encode())
    assert f"task.json: {field} contains an invalid character (a lone surrogate, U+D83D, at position 5)" in message


@pytest.mark.parametrize("field", ["inputs_pretokenized", "targets_pretokenized", "answer_choices"])
@pytest.mark.parametrize("kept", ["in memory", "on the disk"])
def test_half_of_a_surrogate_pair_in_a_row_is_named(
    field: str, kept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import datasets

    from hart.data.p3 import instances as p3_instances

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    if kept == "on the disk":
        monkeypatch.setattr(p3_instances, "IN_MEMORY_BYTES", 0)
    rows = [{**ROW, "answer_choices": ["c", "d"]}, {**ROW, "answer_choices": ["c", "d"]}]
    rows[1][field] = ["c", BAD] if field == "answer_choices" else BAD
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(HartError, match=rf": train, row 1: {field} contains an invalid character"):
        read_instances(tmp_path, "train")


def test_split_lists_may_begin_with_a_mark(tmp_path: Path):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "splits" / "default").mkdir(parents=True)
    instances = [{"id": str(i), "input": "a", "output": ["b"]} for i in range(2)]
    (tmp_path / "tasks" / "one.json").write_bytes(("\ufeff" + json.dumps({**TASK, "Instances": instances})).encode())
    (tmp_path / "splits" / "default" / "test_tasks.txt").write_bytes("\ufeffone\n".encode())
    assert [task.name for task in load_sni(tmp_path, "test", max_instances=None)] == ["one"]
    (tmp_path / "splits" / "default" / "test_tasks.txt").write_bytes(LFS)
    with pytest.raises(HartError, match=r"test_tasks\.txt: is a Git LFS pointer"):
        load_sni(tmp_path, "test", max_instances=None)
