"""Files of documents that are wrong, read repeatedly, or on the hub."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from numbered_documents import DOCUMENTS, Make, document, loaded, parts, write

from hart.data import documents, reading
from hart.errors import HartError


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([json.dumps({"text": document(3)}), "{"], "line 2: not a document, the text is not JSON"),
        ([json.dumps({"txt": "a"})], 'line 1: must be a JSON object with a text as "text"'),
        ([json.dumps(["a"])], "line 1: must be a JSON object"),
        ([json.dumps({"text": "few words"})], "has no document of 16 words or more .1 shorter"),
        ([json.dumps({"text": " ".join(["w"] * 15)})], "has no document of 16 words or more .1 shorter"),
        ([], "has no document of 16 words or more .0 shorter"),
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
    assert (
        message.endswith("; it is left out, as are 1 more of the file")
        and "a.jsonl, line 2 contains an invalid char" in message
    )


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
    assert any("only its local cache is used" in message for message in caplog.messages)
    (files / "c4-train.00001-of-01024.json.gz").rename(files / "c4-train.00007-of-01024.json.gz")
    with pytest.raises(
        HartError, match="the hub's cache has c4-train.00007-of-01024.json.gz and lacks the file before"
    ):
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
    with pytest.raises(HartError, match="train.csv must be JSON lines or parquet; give a folder"):
        make(directory=None, hub_name=str(tmp_path / "hub"))


def test_hub_out_of_reach_is_one_line(make: Make):
    with pytest.raises(HartError, match=r"nobody/nothing: cannot be read from the hub \(.*\); give a folder") as caught:
        make(directory=None, hub_name="nobody/nothing")
    assert "\n" not in str(caught.value)
