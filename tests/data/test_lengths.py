"""Average lengths: measured once, cached by content, and used to leave out long tasks."""

from pathlib import Path

import pytest

from hart.data import lengths
from hart.data.lengths import average_length, without_long
from hart.data.tasks import Instance, Task
from hart.errors import HartError
from hart.runtime.fingerprints import tokenizer_digest


def task(name: str, texts: list[tuple[str, str]]) -> Task:
    return Task("", [("a", "b")], name=name, instances=[Instance(text, (answer,)) for text, answer in texts])


SHORT = task("short", [("the cat", "cat"), ("the cat sat on the mat", "mat the")])
LONG = task("long", [("the cat sat on the mat " * 9, "mat")])


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HART_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_it_is_the_mean_of_input_and_target_tokens(tiny_tokenizer):
    counts = [
        len(tiny_tokenizer(f, add_special_tokens=False).input_ids)
        for i in SHORT.instances
        for f in (i.input, *i.references)
    ]
    assert average_length(SHORT, tiny_tokenizer) == sum(counts) / 2


def test_it_is_measured_once(tiny_tokenizer, own_cache: Path, monkeypatch: pytest.MonkeyPatch):
    first = average_length(SHORT, tiny_tokenizer)
    identity = tokenizer_digest(tiny_tokenizer)

    def tokenizer(*_: object, **__: object) -> None:
        raise AssertionError("measured again")

    assert average_length(SHORT, tokenizer, identity) == first
    with pytest.raises(AssertionError, match="measured again"):
        average_length(SHORT, tokenizer, "another tokenizer")
    with pytest.raises(AssertionError, match="measured again"):
        average_length(LONG, tokenizer, identity)
    (file,) = (own_cache / "lengths").iterdir()
    file.write_text("{}")
    assert average_length(SHORT, tiny_tokenizer) == first


def test_a_cache_that_cannot_be_written_is_no_error(tiny_tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HART_CACHE", str(tmp_path / "file"))
    assert average_length(SHORT, tiny_tokenizer) > 0


def test_large_tasks_are_measured_on_an_even_sample(tiny_tokenizer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lengths, "SAMPLE", 3)
    rows = [("the" if i < 6 else "the cat sat", "on") for i in range(9)]
    sampled = task("sample", [rows[0], rows[3], rows[6]])
    assert average_length(task("all", rows), tiny_tokenizer) == average_length(sampled, tiny_tokenizer)


def test_long_tasks_are_left_out(tiny_tokenizer):
    kept, excluded = without_long([SHORT, LONG], tiny_tokenizer, 20)
    assert kept == [SHORT] and excluded == {"long": average_length(LONG, tiny_tokenizer)}
    limit = average_length(SHORT, tiny_tokenizer)
    assert without_long([SHORT], tiny_tokenizer, int(limit) + 1) == ([SHORT], {})
    with pytest.raises(HartError, match="data.max_average_length: every training task is longer than 1 tokens"):
        without_long([SHORT, LONG], tiny_tokenizer, 1)
