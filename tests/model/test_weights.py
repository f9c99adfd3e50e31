"""Complete files of weights, and all kinds of damaged ones."""

import json
import random
import shutil
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hart.errors import HartError
from hart.model.main_model import MainModel
from hart.model.weights import check_floats, check_model_files, read_tensors, tensor_names

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2145\nsize 12345\n"
TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3, dtype=torch.bfloat16)}


def safetensors(header: object, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


BAD = {
    "pointer": (POINTER, "is a Git LFS pointer"),
    "empty": (b"", "truncated or not"),
    "text": (b"<html>Not Found</html>", "truncated or not"),
    "huge header": (b"\xff" * 100, "truncated or not"),
    "header cut short": (struct.pack("<Q", 1000) + b"{}", "truncated or not"),
    "deep header": (struct.pack("<Q", 100_000) + b"[" * 100_000, "truncated or not"),
    "unknown numbers": (
        safetensors({"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}, b"1234"),
        "truncated",
    ),
    "too few numbers": (
        safetensors({"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 4]}}, b"1234"),
        "truncated",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_one_line_that_names_them(tmp_path: Path, case: str) -> None:
    content, reason = BAD[case]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    for read in (read_tensors, tensor_names, check_floats, lambda path: check_model_files(path.parent)):
        with pytest.raises(HartError, match=f"^{path}: .*{reason}") as caught:
            read(path)
        assert "\n" not in str(caught.value)


def test_missing_files_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(HartError, match="a.safetensors: no such file; download it again"):
        read_tensors(tmp_path / "a.safetensors")
    with pytest.raises(HartError, match="a.safetensors: no such file; save it again"):
        read_tensors(tmp_path / "a.safetensors", again="save it again")


def test_whole_files(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(TENSORS, path)
    assert tensor_names(path) == set(TENSORS)
    assert all(torch.equal(value, TENSORS[name]) for name, value in read_tensors(path).items())
    check_floats(path)
    check_model_files(tmp_path)
    save_file(TENSORS | {"c": torch.ones(1, dtype=torch.int32)}, path)
    with pytest.raises(HartError, match="model.safetensors: c has I32 instead of floating-point numbers"):
        check_floats(path)


def test_any_change_is_read_or_refused(tmp_path: Path) -> None:
    """Whatever happens to the bytes of the header, nothing but a HartError comes."""
    path = tmp_path / "model.safetensors"
    save_file(TENSORS, path)
    whole, draw, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(300):
        changed = bytearray(whole)
        for _ in range(draw.randint(1, 3)):
            changed[draw.randrange(len(whole) - 30)] = draw.randrange(256)
        path.write_bytes(changed)
        try:
            read_tensors(path)
            check_floats(path)
        except HartError:
            refused += 1
    assert refused > 200


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"])
def test_pointers_in_a_base_are_named(tmp_path: Path, tiny_base_dir: Path, name: str) -> None:
    folder = shutil.copytree(tiny_base_dir, tmp_path / "base")
    (folder / name).write_bytes(POINTER)
    with pytest.raises(HartError, match=f"^{folder / name}: is a Git LFS pointer, .*git lfs pull"):
        MainModel.from_pretrained(str(folder))


@pytest.mark.parametrize("content", [POINTER, b"[" * 100_000, b'{"a": ' + b"1" * 5000 + b"}", b"\xff{", b'"\\ud800"'])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
def test_json_of_a_base(tmp_path: Path, tiny_base_dir: Path, name: str, content: bytes) -> None:
    folder = shutil.copytree(tiny_base_dir, tmp_path / "base")
    (folder / name).write_bytes(content)
    with pytest.raises(HartError, match=f"^{folder / name}: ") as caught:
        MainModel.from_pretrained(str(folder))
    assert "\n" not in str(caught.value)
