"""Stacking, selecting, saving and loading adaptations."""

import copy
import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hart.data.input_format import InputFormat
from hart.errors import HartError
from hart.model.adaptation import FIELDS_FILE, TENSORS_FILE, Adaptation
from hart.peft.base import MainShape, row_blocks
from hart.peft.prefix import Prefix
from hart.runtime.files import sha256

SHAPE = MainShape(d_model=48, num_heads=3, d_kv=8, d_ff=64, encoder_layers=3, decoder_layers=2)
KIND = Prefix(length=4)


def make(name: str, tokens: int | None = 5, **fields: Any) -> Adaptation:
    """One row of random values; `tokens` None is an adaptation without fusion."""
    memory = None if tokens is None else torch.randn(1, tokens, SHAPE.d_model)
    values: dict[str, Any] = {
        "blocks": {b.name: torch.randn(1, b.layers, b.rows, b.width) for b in row_blocks([KIND], SHAPE)},
        "memory": memory,
        "memory_mask": None if tokens is None else torch.ones(1, tokens, dtype=torch.long),
        "peft": [KIND.to_config()],
        "base": "some/base",
        "base_revision": "main",
        "base_fingerprint": "f00d",
        "model": "some/model",
        "tasks": [{"Definition": [f"Do {name} — naïvely."]}],
    }
    return Adaptation(**(values | fields))


def assert_same(actual: Adaptation, expected: Adaptation) -> None:
    """Equal in every field, to the last bit."""
    for name, value in vars(expected).items():
        ours = getattr(actual, name)
        if name == "blocks":
            assert ours.keys() == value.keys()
            assert all(torch.equal(ours[key], value[key]) for key in value)
        elif isinstance(value, torch.Tensor):
            assert torch.equal(ours, value) and ours.dtype == value.dtype
        else:
            assert ours == value, name


CHANGES: dict[str, Any] = {
    "base": {"base_fingerprint": "beef"},
    "model": {"model": "another"},
    "task": {"tasks": [{"Definition": ["Other."]}]},
    "inputs": {"input_format": InputFormat(input_eos=False)},
    "no memory": {"memory": None, "memory_mask": None},
}


@pytest.mark.parametrize("tokens", [5, None])
def test_equal_ones_have_equal_parts_and_tensors(tokens: int | None) -> None:
    one = make("a", tokens, created="2025")
    moved = replace(one, base="elsewhere/base", created="2026", blocks={k: v.clone() for k, v in one.blocks.items()})
    assert one == moved and not one != moved
    for name, change in CHANGES.items():
        assert one != replace(one, **change) or (name == "no memory" and tokens is None), name
    block = next(iter(one.blocks))
    for other in (one.blocks[block] + 1e-6, one.blocks[block].bfloat16(), one.blocks[block][:, :, :2]):
        assert one != replace(one, blocks={**one.blocks, block: other})
    assert one != replace(one, blocks={name: rows for name, rows in one.blocks.items() if name != block})
    assert one != "an adaptation"
    with pytest.raises(TypeError, match="unhashable"):
        hash(one)


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_copies_and_pickles_are_equal(again: Callable[[Adaptation], Adaptation]) -> None:
    one = make("a")
    other = again(one)
    assert other == one and other.kinds == one.kinds
    assert_same(other, one)


@pytest.mark.parametrize("tokens", [(5, 9, 2), (None, None, None)])
def test_rows_taken_from_a_stack_are_those_put_in(tokens) -> None:
    singles = [make(str(i), n, created="2025-01-01") for i, n in enumerate(tokens)]
    stacked = Adaptation.stack(singles)
    assert len(stacked) == len(singles)
    for row, single in enumerate(singles):
        assert_same(stacked[row], single)
    assert_same(stacked[-1], singles[-1])
    assert_same(stacked.select([2, 0, 2]), Adaptation.stack([singles[2], singles[0], singles[2]]))
    with pytest.raises(IndexError, match="^adaptation 3 of 3$"):
        stacked[len(singles)]


def test_padding_of_memory_is_masked() -> None:
    stacked = Adaptation.stack([make("a", 2), make("b", 4)])
    assert stacked.memory_mask is not None and stacked.memory is not None
    assert stacked.memory_mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert not stacked.memory[0, 2:].any()


def test_stacking_stacks_is_stacking_once() -> None:
    a, b, c = (make(name, n, created="2025") for name, n in (("a", 3), ("b", 7), ("c", 5)))
    nested = Adaptation.stack([Adaptation.stack([a, b]), c])
    assert_same(nested, Adaptation.stack([a, b, c]))


def test_some_of_a_stack() -> None:
    rows = [make(name, created="2025") for name in "abcd"]
    stacked = Adaptation.stack(rows)
    assert_same(stacked[1:3], Adaptation.stack(rows[1:3]))
    assert_same(stacked[::-2], Adaptation.stack([rows[3], rows[1]]))
    with pytest.raises(HartError, match="tasks is empty"):
        stacked[2:2]


def test_a_stack_is_where_its_first_entry_is() -> None:
    """As of one that was generated on a GPU and one that was loaded."""
    stacked = Adaptation.stack([make("a", 3).to("meta"), make("b", 5)])
    assert {values.device.type for values in stacked._tensors().values()} == {"meta"}


def test_stack_refuses_what_does_not_fit() -> None:
    one = make("a")
    with pytest.raises(HartError, match="the list to stack is empty"):
        Adaptation.stack([])
    with pytest.raises(HartError, match="different bases, some/base and other"):
        Adaptation.stack([one, make("b", base="other", base_fingerprint="beef")])
    with pytest.raises(HartError, match="different PEFT kinds, or with memory and without"):
        Adaptation.stack([one, make("b", tokens=None)])
    with pytest.raises(HartError, match="different PEFT kinds, or with memory and without"):
        Adaptation.stack([one, make("b", peft=[], blocks={})])
    with pytest.raises(HartError, match=r"different limits of queries and answers, \(384, 128\) and \(384, 2\) tokens"):
        Adaptation.stack([one, make("b", input_format=InputFormat(max_target_length=2))])


def test_parts_must_agree() -> None:
    one = make("a")
    with pytest.raises(HartError, match="has shape .* for 2 tasks"):
        replace(one, tasks=one.tasks * 2)
    with pytest.raises(HartError, match="memory and memory_mask must be given together"):
        replace(one, memory=None)
    with pytest.raises(HartError, match="at least one task"):
        replace(one, tasks=[])


def test_to_converts_numbers_but_not_the_mask() -> None:
    one = make("a")
    half = one.to("cpu", torch.bfloat16)
    assert {t.dtype for t in half.blocks.values()} == {torch.bfloat16}
    assert half.memory is not None and half.memory.dtype == torch.bfloat16
    assert half.memory_mask is not None and half.memory_mask.dtype == torch.long
    assert_same(one.to(), one)


@pytest.mark.parametrize("tokens", [5, None])
def test_saved_and_loaded_is_the_same(tmp_path: Path, tokens: int | None) -> None:
    for adaptation in (make("a", tokens), Adaptation.stack([make("a", tokens), make("b", tokens)])):
        folder = tmp_path / "deep" / str(len(adaptation))
        adaptation.save_pretrained(folder)
        assert_same(Adaptation.from_pretrained(folder), adaptation)
        assert {path.name for path in folder.iterdir()} == {FIELDS_FILE, TENSORS_FILE}
    assert {path.name for path in (tmp_path / "deep").iterdir()} == {"1", "2"}, "leftovers"


def test_rows_of_a_stack_can_be_saved(tmp_path: Path) -> None:
    """Rows are views into the stack; only their own values are written."""
    stacked = Adaptation.stack([make("a", 3), make("b", 6)])
    stacked[0].save_pretrained(tmp_path / "a")
    assert_same(Adaptation.from_pretrained(tmp_path / "a"), stacked[0])


def test_saving_again(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    make("a", created="2025").save_pretrained(folder)  # an empty folder is as good as none
    again = make("a", created="2026")
    again.save_pretrained(folder)
    assert_same(Adaptation.from_pretrained(folder), again)


HELD = "a: holds another adaptation; give a new folder, or --overwrite"
OTHER = "a: exists with other content; give a new folder"


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("content", ["another task", "a foreign file", "a file", "damaged"])
def test_only_another_adaptation_is_replaced_and_if_asked_to(tmp_path: Path, content: str, overwrite: bool) -> None:
    folder = tmp_path / "a"
    if content == "a file":
        folder.write_text("mine")
    else:
        make("b").save_pretrained(folder)
    if content == "a foreign file":
        (folder / "notes.txt").write_text("mine")
    if content == "damaged":
        (folder / FIELDS_FILE).write_text("{")
    before = _bytes(tmp_path)
    whole = content in ("another task", "damaged")
    if whole and overwrite:
        made = make("a")
        made.save_pretrained(folder, overwrite=True)
        assert_same(Adaptation.from_pretrained(folder), made)
        return
    with pytest.raises(HartError, match=HELD if whole else OTHER):
        make("a").save_pretrained(folder, overwrite=overwrite)
    assert _bytes(tmp_path) == before


def test_a_failed_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hart.model.adaptation.save_file", full)
    with pytest.raises(HartError, match="cannot be written .No space left on device"):
        make("a").save_pretrained(tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    with pytest.raises(HartError, match="a: has no adaptation .adaptation.json is missing"):
        Adaptation.from_pretrained(folder)
    make("a").save_pretrained(folder)
    tensors = (folder / TENSORS_FILE).read_bytes()
    for cut in (len(tensors) - 8, 100, 4, 0):
        (folder / TENSORS_FILE).write_bytes(tensors[:cut])
        with pytest.raises(HartError, match="adaptation.safetensors: truncated") as caught:
            Adaptation.from_pretrained(folder)
        assert "\n" not in str(caught.value)
    (folder / TENSORS_FILE).unlink()
    with pytest.raises(HartError, match="adaptation.safetensors: no such file; save the adaptation again"):
        Adaptation.from_pretrained(folder)
    for name in (FIELDS_FILE, TENSORS_FILE):
        make("a").save_pretrained(tmp_path / name)
        (tmp_path / name / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
        with pytest.raises(HartError, match=f"{name}: is a Git LFS pointer, .*; run 'git lfs pull'"):
            Adaptation.from_pretrained(tmp_path / name)
    (folder / FIELDS_FILE).write_text("not JSON")
    with pytest.raises(HartError, match="adaptation.json: not the file of an adaptation, the text is not JSON"):
        Adaptation.from_pretrained(folder)


def test_a_changed_byte_is_found(tmp_path: Path) -> None:
    """Any byte of the numbers may change and the file is still one of safetensors."""
    folder = tmp_path / "a"
    make("a").save_pretrained(folder)
    whole = (folder / TENSORS_FILE).read_bytes()
    for place in (-1, -1000, len(whole) // 2):
        changed = bytearray(whole)
        changed[place] ^= 0x10
        (folder / TENSORS_FILE).write_bytes(changed)
        assert load_file(folder / TENSORS_FILE)
        with pytest.raises(
            HartError, match="adaptation.safetensors: damaged, its checksum differs from that in adaptation.j"
        ):
            Adaptation.from_pretrained(folder)


def _put_tensors(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Other tensors, with a checksum that fits them."""
    save_file(tensors, folder / TENSORS_FILE)
    path = folder / FIELDS_FILE
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content | {"tensors_sha256": sha256(folder / TENSORS_FILE)}))


@pytest.mark.parametrize(("name", "dtype"), [("memory", torch.int64), ("memory_mask", torch.float32)])
def test_numbers_of_the_wrong_type(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    make("a").save_pretrained(tmp_path / "a")
    tensors = load_file(tmp_path / "a" / TENSORS_FILE)
    _put_tensors(tmp_path / "a", tensors | {name: tensors[name].to(dtype)})
    with pytest.raises(HartError, match=f"adaptation.safetensors: {name} has dtype {dtype}"):
        Adaptation.from_pretrained(tmp_path / "a")


def test_a_save_that_fails_in_the_end_keeps_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever renames fail after the first."""
    folder = tmp_path / "a"
    make("a", created="2025").save_pretrained(folder)
    before = _bytes(tmp_path)
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if "new" in self.parts:
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(HartError, match="a: cannot be written .No space left on device"):
        make("a", created="2026").save_pretrained(folder)
    assert _bytes(tmp_path) == before


def test_saved_files_have_ordinary_modes(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    make("a").save_pretrained(tmp_path / "a")
    assert {path.stat().st_mode for path in (tmp_path / "a").iterdir()} == {(tmp_path / "plain").stat().st_mode}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base": None}, "field base has the wrong type"),
        ({"tasks": ["text"]}, "field tasks must be a list of objects"),
        ({"tasks": []}, "at least one task"),
        ({"format": 2}, "format is not 1"),
        ({"peft": [{"kind": "telepathy"}]}, "unknown kind 'telepathy'"),
    ],
)
def test_bad_fields(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    make("a").save_pretrained(tmp_path / "a")
    path = tmp_path / "a" / FIELDS_FILE
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content | change))
    with pytest.raises(HartError, match=message):
        Adaptation.from_pretrained(tmp_path / "a")


def test_every_field_is_required(tmp_path: Path) -> None:
    make("a").save_pretrained(tmp_path / "a")
    path = tmp_path / "a" / FIELDS_FILE
    content = json.loads(path.read_text(encoding="utf-8"))
    for field in content:
        path.write_text(json.dumps({k: v for k, v in content.items() if k != field}))
        with pytest.raises(HartError, match=f"adaptation.json: (field )?{field} is "):
            Adaptation.from_pretrained(tmp_path / "a")


def test_memory_without_its_mask(tmp_path: Path) -> None:
    make("a").save_pretrained(tmp_path / "a")
    tensors = load_file(tmp_path / "a" / TENSORS_FILE)
    del tensors["memory_mask"]
    _put_tensors(tmp_path / "a", tensors)
    with pytest.raises(HartError, match="memory and memory_mask must be given together"):
        Adaptation.from_pretrained(tmp_path / "a")


def _bytes(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
