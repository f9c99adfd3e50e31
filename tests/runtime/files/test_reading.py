"""Reading of JSON of all kinds, and of files that are something else."""

import sys
from pathlib import Path

import pytest

from hart.errors import HartError
from hart.runtime.files import parse_json, read_json, refuse_lfs_pointer

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2145\nsize 12345\n"

BAD = {
    "not UTF-8": (b'"\xff"', "the text is not UTF-8"),
    "UTF-16": ("{}".encode("utf-16"), "the text is not UTF-8"),
    "empty": (b"", "the text is not JSON"),
    "cut short": (b'{"a": ', "the text is not JSON"),
    "two values": (b"{}\n{}", r"the text is not JSON \(Extra data: line 2"),
    "long number": (b"[" + b"9" * 5000 + b"]", "a number has more than 4300 digits"),
    "deep": (b"[" * 100_000, "nested too deeply"),
    "deep and closed": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested too deeply"),
    "half a character": (
        b'{"Instances": [{"input": "ok"}, {"input": "\\ud83d!"}]}',
        r"Instances\[1\].input contains half of",
    ),
    "the other half": (b'["\\uDE00"]', r"\[0\] contains half of"),
    "half a name": (b'{"a": {"\\ud800": 1}}', r"a \(a name in it\) contains half of"),
    "alone": (b'"\\udfff"', "the text contains half of"),
    "pointer": (POINTER, "is a Git LFS pointer, not the file itself; run 'git lfs pull'"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_json_is_one_line_that_names_the_file(tmp_path: Path, case: str) -> None:
    content, reason = BAD[case]
    path = tmp_path / "task.json"
    path.write_bytes(content)
    with pytest.raises(HartError, match=reason) as caught:
        read_json(path, "a task file")
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    with pytest.raises(HartError, match=f"^lines.jsonl, line 3: .*{reason}"):
        parse_json(content, "lines.jsonl, line 3", "a task")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path, reason in (
        (tmp_path / "none.json", "no such file; give a task file"),
        (tmp_path, r"cannot be read \(Is a directory\); give a task file"),
        ("nul\0byte", "cannot be read"),
    ):
        with pytest.raises(HartError, match=reason):
            read_json(path, "a task file")
    for path in (tmp_path / "none.json", Path(__file__) / "below.json"):
        with pytest.raises(HartError, match="^nothing here$"):
            read_json(path, "a task file", missing="nothing here")


def test_values_are_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for content, value in (
        (b'\xef\xbb\xbf{"a": [1, 2.5, null]}', {"a": [1, 2.5, None]}),
        (b'"\\ud83d\\ude00 \\\\ud83d"', "😀 \\ud83d"),  # a whole pair, and an escape that is none
        ('"naïve – 日本語"'.encode(), "naïve – 日本語"),
        (b"9" * 4300, int("9" * 4300)),
    ):
        path.write_bytes(content)
        assert read_json(path, "a value") == value
        assert parse_json(content.decode("utf-8"), "here", "a value") == value
    assert sys.get_int_max_str_digits() == 4300


def test_pointers_are_told_from_files(tmp_path: Path) -> None:
    path = tmp_path / "data.gz"
    refuse_lfs_pointer(path)
    path.write_bytes(b"\x1f\x8b")
    refuse_lfs_pointer(path)
    path.write_bytes(POINTER)
    with pytest.raises(HartError, match=r"data.gz: is a Git LFS pointer, not the file itself; run 'git lfs pull'"):
        refuse_lfs_pointer(path)
