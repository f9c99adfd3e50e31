"""Documents cut into segments: complete and reproducible."""

import gzip
import json
import pickle
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numbered_documents import DOCUMENTS, FORM, Make, Words, document, loaded, parts, write

from hart.data.input_format import InputFormat
from hart.data.segments import LEAST_TOKENS, SegmentDataset

KINDS = pytest.mark.parametrize("kind", ["four", "three"])


@KINDS
@pytest.mark.parametrize("window", [40, 80, 4000])
def test_segments_are_consecutive_pieces_of_one_document(make: Make, kind: str, window: int):
    dataset = make(kind=kind, max_document_tokens=window)
    for i in range(4 * DOCUMENTS):
        read, query, target = parts(dataset[i])
        assert all(len(part) >= LEAST_TOKENS for part in (read, query, target))
        assert len(read) < 64 and len(query) < 24 and len(target) < 20
        pieces = read + query + target
        if kind == "four":
            before = (len(read) + 1) // 2
            pieces = read[:before] + query + target + read[before:]
        # Nothing is lost in between, and all of it is the document that is due.
        assert pieces == list(range(pieces[0], pieces[0] + len(pieces))) and len(pieces) <= window
        assert {(token - 2) // 1000 for token in pieces} == {i % DOCUMENTS}


@KINDS
@pytest.mark.parametrize("limit", [200, 30])
def test_a_teacher_reads_all_before_the_target_and_nothing_behind_it(make: Make, kind: str, limit: int):
    """The same examples otherwise; where it is too long, its beginning is lost."""
    plain = make(kind=kind)
    taught = make(kind=kind, teacher=replace(FORM, max_demonstrations_length=limit))
    for i in range(2 * DOCUMENTS):
        example = taught[i]
        tokens, end = example.pop("teacher_ids")[:-1], taught[i]["teacher_ids"][-1]
        assert example == plain[i] and end == example["labels"][-1]
        read, query, target = parts(plain[i])
        before = read[: (len(read) + 1) // 2] if kind == "four" else read
        assert tokens == (before + query)[-(limit - 1) :] and tokens[-1] + 1 == target[0]


@KINDS
def test_a_beginning_of_sequence_comes_first_and_counts(make: Make, folder: Path, kind: str):
    """Where a decoder-only main model reads both."""

    class Llama(Words):
        bos_token_id = 0

        def __call__(self, text: str, *, add_special_tokens: bool, verbose: bool) -> dict[str, list[int]]:
            if text == "a":
                return {"input_ids": [0, 5]}
            return super().__call__(text, add_special_tokens=add_special_tokens, verbose=verbose)

    options: dict[str, Any] = {"directory": folder, "kind": kind, "length": 24, "seed": 3, "max_document_tokens": 4000}
    dataset = SegmentDataset(Llama(), FORM, **options)
    sizes = []
    for i in range(24):
        read, query, target = parts(dataset[i])
        assert read[0] == query[0] == 0 != target[0]
        assert len(read) <= 63 and len(query) <= 23 and len(target) <= 19
        sizes.append((len(read), len(query)))
    assert max(read for read, _ in sizes) == 63 and max(query for _, query in sizes) == 23


def test_four_chunks_have_predefined_lengths(make: Make):
    sizes = [tuple(len(part) for part in parts(make(max_document_tokens=512)[i])) for i in range(DOCUMENTS)]
    # Quarters of documents of 16, 29, 42, 55 tokens; from 92 on the limits hold, from 105 on that of the first too.
    assert sizes[:4] == [(8, 4, 4), (15, 7, 7), (22, 10, 10), (29, 13, 13)]
    assert sizes[5:8] == [(81 - 20 - 19, 20, 19), (94 - 23 - 19, 23, 19), (63, 23, 19)]
    assert set(sizes[7:]) == {(63, 23, 19)}
    assert {len(parts(make()[i])[1]) for i in range(7, 12)} == {80 // 4}, "a quarter of the window"


def test_three_segments_cover_a_short_document(make: Make):
    wide = InputFormat(max_demonstrations_length=512, max_query_length=512, max_target_length=512)
    dataset = make(kind="three", form=wide, max_document_tokens=512)
    for i in range(DOCUMENTS):
        assert sum(len(part) for part in parts(dataset[i])) == 16 + 13 * i


@KINDS
def test_an_example_depends_on_seed_and_index_alone(make: Make, kind: str):
    expected = [make(kind=kind)[i] for i in range(40)]
    dataset = make(kind=kind)
    assert [dataset[i] for i in range(40)] == expected
    for i in np.random.default_rng(0).permutation(40).tolist():
        assert dataset[i] == expected[i]
    assert pickle.loads(pickle.dumps(dataset))[5] == expected[5]
    assert make(kind=kind, seed=4)[35] != expected[35]


@pytest.mark.parametrize("first", [0, 37])
def test_workers_change_nothing(make: Make, first: int):
    """From the start, or from where a continued run goes on."""
    expected = [make()[i] for i in range(first, 100)]
    assert loaded(make(), range(first, 100)) == expected


def test_forked_workers_do_not_share_the_place_in_an_open_file(tmp_path: Path, make: Make):
    write(tmp_path / "large" / "a.jsonl", [document(number) for number in range(400)])
    dataset = make(directory=tmp_path / "large", length=400)
    expected = [dataset[i] for i in range(400)]
    assert dataset[1] == expected[1]
    assert loaded(dataset, range(10, 400)) == expected[10:]
    assert dataset[2] == expected[2]


@KINDS
def test_cuts_vary_and_do_not_follow_each_other(tmp_path: Path, make: Make, kind: str):
    write(tmp_path / "one" / "a.json", [" ".join(f"w{i}" for i in range(500))])
    dataset = make(kind=kind, directory=tmp_path / "one", length=2000)
    starts = np.array([parts(dataset[i])[1][0] for i in range(2000)], dtype=float)
    assert len(set(starts.tolist())) > 200
    other = make(kind=kind, directory=tmp_path / "one", length=2000, seed=4)
    others = np.array([parts(other[i])[1][0] for i in range(2000)], dtype=float)
    # Neither the next example, nor the same or the next one of the next seed.
    for x, y in ((starts[:-1], starts[1:]), (starts, others), (starts[1:], others[:-1])):
        assert abs(np.corrcoef(x, y)[0, 1]) < 0.08


def test_no_segment_is_empty_in_the_shortest_documents(tmp_path: Path, make: Make):
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{i}" for i in range(n)) for n in rng.integers(16, 24, size=500).tolist()]
    write(tmp_path / "short" / "a.json.gz", texts)
    for kind in ("four", "three"):
        dataset = make(kind=kind, directory=tmp_path / "short", length=3000)
        assert min(len(part) for i in range(3000) for part in parts(dataset[i])) >= LEAST_TOKENS


def test_a_tokenizer_that_drops_words_leaves_no_empty_segment(tmp_path: Path, make: Make):
    class Deaf(Words):
        def __call__(self, text: str, **options) -> dict[str, list[int]]:
            return {"input_ids": []}

    write(tmp_path / "odd" / "a.json", ["\u200b " * 20])
    settings = {"directory": tmp_path / "odd", "length": 3, "seed": 0, "form": FORM}
    for kind in ("four", "three"):
        assert all(len(part) >= LEAST_TOKENS for part in parts(SegmentDataset(Deaf(), kind=kind, **settings)[2]))


def test_short_documents_are_counted_and_the_start_over_is_said_once(make: Make, caplog: pytest.LogCaptureFixture):
    dataset = make()
    dataset[8], dataset[0], dataset[9]
    assert dataset.skipped == 2, "none is counted twice"
    first, again = dataset[0], dataset[DOCUMENTS]
    dataset[5 * DOCUMENTS], dataset[1], dataset[99]
    assert dataset.skipped == 2
    (message,) = [record.getMessage() for record in caplog.records]
    assert f"all {DOCUMENTS} usable documents were read (2 others were left out), starting again" in message
    assert first["demo_ids"] == again["demo_ids"], "16 tokens can be cut into quarters in one way"
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

    from hart.model.bundled import resolve_base

    if not (shared_data / "text").is_dir():
        pytest.skip("no text/ among the real data")
    tokenizer = AutoTokenizer.from_pretrained(resolve_base("mini-base"))
    dataset = SegmentDataset(
        tokenizer,
        InputFormat(max_demonstrations_length=256, max_query_length=128, max_target_length=64),
        directory=shared_data / "text",
        kind="four",
        length=200,
        seed=0,
    )
    for i in range(200):
        read, query, target = parts(dataset[i])
        assert 4 <= len(read) < 256 and 4 <= len(query) < 128 and 4 <= len(target) < 64
    joined = tokenizer.decode(parts(dataset[7])[1] + parts(dataset[7])[2])
    texts = [
        json.loads(line)["text"] for path in sorted((shared_data / "text").glob("*.gz"))[:1] for line in gzip.open(path)
    ]
    assert any(" ".join(joined.split())[:60] in " ".join(text.split()) for text in texts[:40])


def test_examples_fit_the_collator(make: Make):
    from hart.data.collate import Collator

    batch = Collator(0)([make()[i] for i in range(4)])
    assert batch["labels"].shape[0] == 4 and batch["task_index"].tolist() == [0] * 4
    assert isinstance(batch["demo_ids"], torch.Tensor) and make().tasks[0].label.startswith("text of")
