"""Documents cut into segments: whole, reproducible, and from files that may be wrong."""

import gzip
import json
import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from hart.data import documents, reading
from hart.data.input_format import InputFormat
from hart.data.sampling import Example
from hart.data.segments import LEAST_TOKENS, SegmentDataset
from hart.errors import HartError

FORM = InputFormat(max_demonstrations_length=64, max_query_length=24, max_target_length=20)
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
        settings = {"directory": folder, "kind": "four", "length": 100, "seed": 3, "form": FORM}
        return SegmentDataset(Words(), **{**settings, "max_document_tokens": 80, **options})

    return build


def loaded(dataset: SegmentDataset, indices: range) -> list[Example]:
    """Examples as two workers read them."""
    loader = DataLoader(
        dataset, sampler=indices, batch_size=4, num_workers=2, collate_fn=list, multiprocessing_context="fork"
    )
    return [example for batch in loader for example in batch]


KINDS = pytest.mark.parametrize("kind", ["four", "three"])


def parts(example) -> list[list[int]]:
    for name in ("demo_ids", "query_ids", "labels"):
        assert example[name][-1] == EOS
    return [example[name][:-1] for name in ("demo_ids", "query_ids", "labels")]


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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([json.dumps({"text": document(3)}), "{"], "line 2: not a document, the text is not JSON"),
        ([json.dumps({"txt": "a"})], 'line 1: must be a JSON object with a text as "text"'),
        ([json.dumps(["a"])], "line 1: must be a JSON object"),
        ([json.dumps({"text": "few words"})], "none of its 1 documents has 16 words; give longer texts"),
        ([json.dumps({"text": " ".join(["w"] * 15)})], "none of its 1 documents has 16 words"),
        ([], "none of its 0 documents has 16 words"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, make: Make, content: list[str], message: str):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.json").write_text("\n".join(content))
    with pytest.raises(HartError, match=message):
        make(directory=tmp_path / "bad")[1]


def test_damaged_archive_is_named(tmp_path: Path, make: Make):
    write(tmp_path / "bad" / "a.json.gz", [document(5)] * 30)
    path = tmp_path / "bad" / "b.json.gz"
    write(path, [document(5)] * 3000)
    path.write_bytes(path.read_bytes()[:-200])
    dataset = make(directory=tmp_path / "bad", length=5000)
    assert dataset[29]
    for _ in range(2):  # asked again, it is no end of the documents either
        with pytest.raises(HartError, match=r"b.json.gz: damaged after line \d+ .*download it again"):
            dataset[30]
    path.write_text("plain text")
    with pytest.raises(HartError, match=r"b.json.gz: damaged after line 0 \(Not a gzipped file"):
        make(directory=tmp_path / "bad")[30]


def test_file_in_another_encoding_is_named(tmp_path: Path, make: Make):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.json").write_bytes(b'{"text": "\xe9t\xe9"}')
    with pytest.raises(HartError, match=r"a.json, line 1: not UTF-8"):
        make(directory=tmp_path / "bad")


def test_documents_with_half_of_a_surrogate_pair_are_left_out_and_told(
    tmp_path: Path, make: Make, caplog: pytest.LogCaptureFixture
):
    """One of millions must not end a run in its middle."""
    texts = [document(number) for number in range(4)]
    write(tmp_path / "odd" / "a.jsonl", [texts[0], texts[1] + " \ud83d", texts[2], "\ud83d " * 20, texts[3]])
    dataset = make(directory=tmp_path / "odd")
    assert [parts(dataset[i])[1][0] // 1000 for i in range(3)] == [0, 2, 3] and dataset.skipped == 2
    (message,) = caplog.messages
    assert message.endswith("; it is left out, as are 1 more of the file") and "a.jsonl, line 2 holds a char" in message


def test_folders_and_kinds_that_are_not_there(tmp_path: Path, make: Make):
    with pytest.raises(HartError, match="no such folder"):
        make(directory=tmp_path / "none")
    with pytest.raises(HartError, match="holds no file"):
        make(directory=tmp_path)
    with pytest.raises(HartError, match="kind 'five' is not one of four, three"):
        make(kind="five")
    with pytest.raises(HartError, match="max_document_tokens: must be at least 16, not 8"):
        make(max_document_tokens=8)
    with pytest.raises(HartError, match="seed: must be at least 0, not -1"):
        make(seed=-1)
    with pytest.raises(IndexError):
        make()[100]


@pytest.mark.parametrize("archive", [True, False])
def test_a_continued_run_reads_only_the_file_it_is_in(
    archive: bool, tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "large"
    for number in range(4):
        texts = [document(50 * number + i) for i in range(50)]
        write(folder / f"{number}.json{'.gz' if archive else ''}", ["short", *texts])
    expected = [make(directory=folder, length=400)[i] for i in range(200)]
    read: list[str] = []

    def opened(path: Path):
        read.append(path.name[0])
        return reading.open_bytes(path)

    monkeypatch.setattr(documents, "open_bytes", opened)
    monkeypatch.setattr(documents, "read_lines", lambda path: pytest.fail(f"{path} is read through again"))
    dataset = make(directory=folder, length=400)
    assert [dataset[i] for i in range(160, 200)] == expected[160:]
    assert read == ["0", "3"]  # the first document, which says that the folder can be used, and where it goes on
    assert dataset.skipped == 4
    assert dataset[170] == expected[170] and dataset[3] == expected[3]


def test_one_process_reads_a_file_through_for_all(tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "large"
    for number in range(3):
        write(folder / f"{number}.json.gz", [document(50 * number + i) for i in range(50)])
    expected = [make(directory=folder, length=150)[i] for i in range(150)]
    monkeypatch.setenv("HART_CACHE", str(tmp_path / "cache"))
    log = tmp_path / "log"
    log.touch()

    def noted(path: Path):
        with log.open("a") as file:
            file.write(f"{path.name}\n")
        return reading.read_lines(path)

    monkeypatch.setattr(documents, "read_lines", noted)
    assert loaded(make(directory=folder, length=150), range(150)) == expected
    assert sorted(log.read_text().split()) == ["0.json.gz", "1.json.gz", "2.json.gz"]


def test_a_cache_that_cannot_be_written_or_is_damaged_changes_nothing(
    folder: Path, tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch
):
    expected = [make()[i] for i in range(30)]
    monkeypatch.setenv("HART_CACHE", str(tmp_path / "cache"))
    for _ in range(2):
        dataset = make()
        assert [dataset[i] for i in range(30)] == expected
        for path in (tmp_path / "cache" / "documents").glob("*.npy"):
            path.write_bytes(path.read_bytes()[:40])
    (tmp_path / "file").touch()
    monkeypatch.setenv("HART_CACHE", str(tmp_path / "file"))
    assert [make()[i] for i in range(30)] == expected


def test_a_changed_file_is_read_anew(folder: Path, make: Make):
    before = make()[0]
    write(folder / "a.jsonl", [document(30), document(31)])
    assert make()[0] != before and make()[1]["query_ids"][0] // 1000 == 31


@pytest.fixture
def c4(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """allenai/c4 as its client sees it: the files of `folder`, by name, and what is asked of it."""
    import datasets
    import huggingface_hub

    asked: dict[str, Any] = {"builder": [], "files": [], "failures": [], "slept": []}

    def builder(*arguments):
        asked["builder"].append(arguments)
        urls = [f"hf://datasets/allenai/c4@{'d' * 40}/en/{path.name}" for path in sorted(folder.iterdir())]
        return SimpleNamespace(config=SimpleNamespace(data_files={"train": urls}))

    def download(repository, name, *, repo_type, revision):
        asked["files"].append(name)
        assert (repository, repo_type, revision) == ("allenai/c4", "dataset", "d" * 40)
        if asked["failures"]:
            raise asked["failures"].pop(0)
        return str(folder / Path(name).name)

    monkeypatch.setenv("HART_CACHE", str(tmp_path / "own cache"))
    monkeypatch.setattr(datasets, "load_dataset_builder", builder)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(documents.time, "sleep", asked["slept"].append)
    return asked


def test_files_of_the_hub_are_loaded_when_they_are_due(c4: dict[str, Any], make: Make):
    from_hub = make(directory=None)
    assert c4["builder"] == [("allenai/c4", "en")]
    assert [from_hub[i] for i in range(7)] == [make()[i] for i in range(7)]
    assert set(c4["files"]) == {"en/a.jsonl"}
    assert [from_hub[i] for i in range(30)] == [make()[i] for i in range(30)]
    c4["files"].clear()
    assert make(directory=None)[9] == from_hub[9]
    assert set(c4["files"]) == {"en/a.jsonl", "en/b.json.gz"}  # the first for the check of the source


def test_a_network_that_fails_is_given_time(c4: dict[str, Any], make: Make, caplog: pytest.LogCaptureFixture):
    c4["failures"] += [ConnectionError("connection lost\nsecond line"), OSError("reset")]
    expected = make()[0]
    assert make(directory=None)[0] == expected
    assert c4["slept"] == [1, 2]
    assert caplog.messages == [
        "en/a.jsonl: download failed (connection lost); again in 1 s",
        "en/a.jsonl: download failed (reset); again in 2 s",
    ]
    c4["failures"] += [ConnectionError("connection lost\nsecond line")] * documents.TRIES
    with pytest.raises(HartError, match=r"allenai/c4: en/a.jsonl: cannot be downloaded \(connection lost\); run the"):
        make(directory=None)


def test_a_complete_cache_of_the_hub_needs_no_network(
    folder: Path, tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    import huggingface_hub

    expected = [make()[i] for i in range(30)]
    repository = tmp_path / "hub" / "datasets--allenai--c4"
    files = repository / "snapshots" / ("e" * 40) / "en"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("e" * 40)
    files.mkdir(parents=True)
    write(files / "c4-train.00000-of-01024.json.gz", [document(number) for number in range(7)])
    write(files / "c4-train.00001-of-01024.json.gz", [document(number) for number in range(7, DOCUMENTS)])
    write(files / "c4-validation.00000-of-00008.json.gz", ["w " * 50])
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    dataset = make(directory=None)
    assert [dataset[i] for i in range(30)] == expected
    assert any("only what its cache has is used" in message for message in caplog.messages)
    (files / "c4-train.00001-of-01024.json.gz").rename(files / "c4-train.00007-of-01024.json.gz")
    with pytest.raises(HartError, match="the hub's cache has c4-train.00007-of-01024.json.gz but not the file before"):
        make(directory=None)


def test_parquet_of_a_hub_data_set(folder: Path, tmp_path: Path, make: Make):
    import pyarrow
    import pyarrow.parquet

    texts = ["short", *(document(number) for number in range(DOCUMENTS))]
    (tmp_path / "hub").mkdir()
    table = pyarrow.table({"id": list(range(len(texts))), "text": texts})
    pyarrow.parquet.write_table(table, tmp_path / "hub" / "train.parquet", row_group_size=5)
    dataset = make(directory=None, hub_name=str(tmp_path / "hub"))
    assert [dataset[i] for i in range(30)] == [make()[i] for i in range(30)]
    pyarrow.parquet.write_table(table.rename_columns(["id", "content"]), tmp_path / "hub" / "train.parquet")
    with pytest.raises(HartError, match='train.parquet: its rows have no column "text"'):
        make(directory=None, hub_name=str(tmp_path / "hub"))
    (tmp_path / "hub" / "train.parquet").unlink()
    (tmp_path / "hub" / "train.csv").write_text("text\na\n")
    with pytest.raises(HartError, match="train.csv is neither JSON lines nor parquet; give a folder"):
        make(directory=None, hub_name=str(tmp_path / "hub"))


def test_hub_out_of_reach_is_one_line(make: Make):
    with pytest.raises(HartError, match=r"nobody/nothing: cannot be read from the hub \(.*\); give a folder") as caught:
        make(directory=None, hub_name="nobody/nothing")
    assert "\n" not in str(caught.value)


def test_examples_fit_the_collator(make: Make):
    from hart.data.collate import Collator

    batch = Collator(0)([make()[i] for i in range(4)])
    assert batch["labels"].shape[0] == 4 and batch["task_index"].tolist() == [0] * 4
    assert isinstance(batch["demo_ids"], torch.Tensor) and make().tasks[0].label.startswith("text of")
