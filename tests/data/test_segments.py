"""Documents cut into segments: whole, reproducible, and from files that may be wrong."""

import gzip
import json
import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from hart.data.prompts import Lengths
from hart.data.segments import LEAST_TOKENS, SegmentDataset
from hart.errors import HartError

LENGTHS = Lengths(demonstrations=64, query=24, target=20)
DOCUMENTS = 12
EOS = 1
Make = Callable[..., SegmentDataset]


class Words:
    """One token per word: `w7` is 7 + 2."""

    eos_token_id = EOS

    def __call__(self, text: str, *, add_special_tokens: bool, verbose: bool) -> dict[str, list[int]]:
        return {"input_ids": [int(word[1:]) + 2 for word in text.split()]}


def document(number: int) -> str:
    """Consecutive numbers, so that a token says where in which document it stood."""
    size = 16 + 13 * number
    return " ".join(f"w{1000 * number + i}" for i in range(size))


def write(path: Path, texts: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text, "url": "x"}) + "\n" for text in texts)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    texts = [document(number) for number in range(DOCUMENTS)]
    write(tmp_path / "c4" / "b.json.gz", ["too short", *texts[7:]])
    write(tmp_path / "c4" / "a.jsonl", [*texts[:7], "also too short"])
    return tmp_path / "c4"


@pytest.fixture
def make(folder: Path) -> Make:
    def build(**options) -> SegmentDataset:
        settings = {"directory": folder, "kind": "four", "length": 100, "seed": 3, "lengths": LENGTHS}
        return SegmentDataset(Words(), **{**settings, "max_document_tokens": 80, **options})

    return build


KINDS = pytest.mark.parametrize("kind", ["four", "three"])


def parts(example) -> list[list[int]]:
    for name in ("demo_ids", "query_ids", "labels"):
        assert example[name][-1] == EOS
    return [example[name][:-1] for name in ("demo_ids", "query_ids", "labels")]


@KINDS
def test_segments_are_consecutive_pieces_of_one_document(make: Make, kind: str):
    dataset = make(kind=kind)
    for i in range(4 * DOCUMENTS):
        read, query, target = parts(dataset[i])
        assert all(len(part) >= LEAST_TOKENS for part in (read, query, target))
        assert len(read) < 64 and len(query) < 24 and len(target) < 20
        assert {(token - 2) // 1000 for token in (*read, *query, *target)} == {i % DOCUMENTS}
        continued = query + target
        assert np.all(np.diff(continued) == 1), "the target follows the query at once"
        if kind == "three":
            # A query longer than its limit has lost its beginning, so there may be a gap behind what is read.
            assert read == list(range(read[0], read[0] + len(read))) and read[-1] < query[0]
            assert len(query) == 23 or read[-1] == query[0] - 1
        else:
            before = [token for token in read if token < query[0]]
            after = [token for token in read if token > target[-1]]
            assert before == list(range(query[0] - len(before), query[0])) and len(before) - len(after) in (0, 1)
            assert after == list(range(target[-1] + 1, target[-1] + 1 + len(after)))
            assert before + after == read


@KINDS
def test_an_example_depends_on_seed_and_index_alone(make: Make, kind: str):
    expected = [make(kind=kind)[i] for i in range(40)]
    dataset = make(kind=kind)
    for i in np.random.default_rng(0).permutation(40).tolist():
        assert dataset[i] == expected[i]
    assert make(kind=kind)[37] == expected[37], "as a resumed run reads it"
    assert pickle.loads(pickle.dumps(dataset))[5] == expected[5]  # noqa: S301
    assert make(kind=kind, seed=4)[35] != expected[35]


def test_workers_change_nothing(make: Make):
    expected = [make(length=30)[i] for i in range(30)]
    loader = DataLoader(make(length=30), batch_size=4, num_workers=2, collate_fn=list)
    assert [example for batch in loader for example in batch] == expected


@KINDS
def test_cuts_vary_and_do_not_follow_each_other(tmp_path: Path, make: Make, kind: str):
    write(tmp_path / "one" / "a.json", [" ".join(f"w{i}" for i in range(500))])
    dataset = make(kind=kind, directory=tmp_path / "one", length=2000)
    starts = np.array([parts(dataset[i])[1][0] for i in range(2000)], dtype=float)
    assert len(set(starts.tolist())) > 200
    assert abs(np.corrcoef(starts[:-1], starts[1:])[0, 1]) < 0.08


def test_no_segment_is_empty_in_the_shortest_documents(tmp_path: Path, make: Make):
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{i}" for i in range(n)) for n in rng.integers(16, 24, size=500).tolist()]
    write(tmp_path / "short" / "a.json.gz", texts)
    for kind in ("four", "three"):
        dataset = make(kind=kind, directory=tmp_path / "short", length=3000)
        assert min(len(part) for i in range(3000) for part in parts(dataset[i])) >= LEAST_TOKENS


def test_short_documents_are_counted_and_the_start_over_is_said_once(make: Make, caplog: pytest.LogCaptureFixture):
    dataset = make()
    first, again = dataset[0], dataset[DOCUMENTS]
    dataset[5 * DOCUMENTS], dataset[1], dataset[99]
    assert dataset.skipped == 2
    (message,) = [record.getMessage() for record in caplog.records]
    assert f"all {DOCUMENTS} usable documents were read (2 were too short), starting again" in message
    assert first["demo_ids"][0] // 1000 == again["demo_ids"][0] // 1000
    assert make()[11]["labels"] != make()[11 + DOCUMENTS]["labels"], "the second time it is cut elsewhere"


def test_memory_stays_flat(tmp_path: Path, make: Make):
    big = document(60)
    write(tmp_path / "big" / "a.json", [big] * 4000)
    assert (tmp_path / "big" / "a.json").stat().st_size > 20e6
    dataset = make(directory=tmp_path / "big", length=4000)
    tracemalloc.start()
    dataset[3999]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2e6


def test_real_text(shared_data: Path):
    from transformers import AutoTokenizer

    from hart.resources import resolve_base

    tokenizer = AutoTokenizer.from_pretrained(resolve_base("mini-base"))
    dataset = SegmentDataset(
        tokenizer, directory=shared_data / "text", kind="four", length=200, seed=0, lengths=Lengths(256, 128, 64)
    )
    for i in range(200):
        read, query, target = parts(dataset[i])
        assert 4 <= len(read) < 256 and 4 <= len(query) < 128 and 4 <= len(target) < 64
    joined = tokenizer.decode(parts(dataset[7])[1] + parts(dataset[7])[2])
    texts = [
        json.loads(line)["text"] for path in sorted((shared_data / "text").glob("*.gz"))[:1] for line in gzip.open(path)
    ]
    assert any(" ".join(joined.split())[:60] in " ".join(text.split()) for text in texts[:40])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([json.dumps({"text": document(3)}), "{"], "line 2: not JSON"),
        ([json.dumps({"txt": "a"})], 'line 1: must be a JSON object with a text as "text"'),
        ([json.dumps(["a"])], "line 1: must be a JSON object"),
        ([json.dumps({"text": "few words"})], "all 1 documents are shorter than 16 words"),
        ([], "all 0 documents"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, make: Make, content: list[str], message: str):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.json").write_text("\n".join(content))
    with pytest.raises(HartError, match=message):
        make(directory=tmp_path / "bad")[1]


def test_damaged_archive_is_named(tmp_path: Path, make: Make):
    write(tmp_path / "bad" / "a.json.gz", [document(5)] * 3000)
    path = tmp_path / "bad" / "a.json.gz"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(HartError, match=r"a.json.gz: damaged after line \d+ .*download it again"):
        make(directory=tmp_path / "bad", length=5000)[2999]


def test_folders_and_kinds_that_are_not_there(tmp_path: Path, make: Make):
    with pytest.raises(HartError, match="no such folder"):
        make(directory=tmp_path / "none")
    with pytest.raises(HartError, match="holds no file"):
        make(directory=tmp_path)
    with pytest.raises(HartError, match="kind 'five' is not one of four, three"):
        make(kind="five")
    with pytest.raises(HartError, match="must be at least 16"):
        make(max_document_tokens=8)
    with pytest.raises(IndexError):
        make()[100]


def test_hub_is_streamed(monkeypatch: pytest.MonkeyPatch, make: Make):
    import datasets

    asked = []

    def load_dataset(*arguments, **options):
        asked.append((arguments, options))
        return iter([{"text": document(n)} for n in range(DOCUMENTS)])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    from_hub = make(directory=None)
    assert [from_hub[i] for i in range(30)] == [make()[i] for i in range(30)]
    assert asked[0] == (("allenai/c4", "en"), {"split": "train", "streaming": True})


def test_hub_out_of_reach_is_one_line(make: Make):
    with pytest.raises(HartError, match="nobody/nothing: cannot be streamed from the hub"):
        make(directory=None, hub_name="nobody/nothing")


def test_examples_fit_the_collator(make: Make):
    from hart.data.collate import Collator

    batch = Collator(0)([make()[i] for i in range(4)])
    assert batch["labels"].shape[0] == 4 and batch["task_index"].tolist() == [0] * 4
    assert isinstance(batch["demo_ids"], torch.Tensor) and make().tasks[0].label.startswith("text of")
