"""The store of adaptations: contents, limits, several processes, and failures of a disk."""

import errno
import itertools
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sqlite3
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from hart import Adaptation, HartError, Task
from hart.runtime.files import damage
from hart.serving.store import Store, adaptation_id

KILLS = int(os.environ.get("HART_KILLS", "12"))
"""Writers that are killed; more with HART_KILLS."""


def made(number: int, width: int = 8) -> Adaptation:
    """The adaptation of task `number`; its values tell which."""
    task = Task(f"Add {number}.", [("1", str(1 + number))])
    return Adaptation(
        blocks={
            f"prefix.{stack}.{part}": torch.full((1, 2, 4, width), float(number))
            for stack in ("encoder", "decoder")
            for part in ("key", "value")
        },
        memory=None,
        memory_mask=None,
        peft=[{"kind": "prefix", "length": 4}],
        base="base",
        base_revision=None,
        base_fingerprint="f" * 64,
        tasks=[{"name": "", **task.to_dict()}],
        model="model",
    )


def is_task(adaptation: Adaptation | None, number: int) -> bool:
    return adaptation is not None and all(bool((rows == number).all()) for rows in adaptation.blocks.values())


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def folders(store: Store) -> set[str]:
    return {path.name for path in (store.folder / "adaptations").iterdir()}


def test_what_is_put_comes_back(store: Store) -> None:
    record = store.put(made(3), model_fingerprint="m", seconds=0.25)
    assert is_task(store.get(record.id), 3)
    again = Store(store.folder).record(record.id)
    assert again == record
    assert (record.model, record.seconds, record.uses) == ("model", 0.25, 0)
    assert record.task["Definition"] == ["Add 3."]
    assert store.totals() == (1, record.bytes)
    assert record.bytes == sum(path.stat().st_size for path in (store.folder / "adaptations" / record.id).iterdir())


def test_the_same_task_is_kept_once(store: Store) -> None:
    first = store.put(made(3), model_fingerprint="m")
    second = store.put(made(3), model_fingerprint="m")
    assert second.id == first.id and folders(store) == {first.id}
    assert store.put(made(3), model_fingerprint="other").id != first.id
    found = store.record(first.id)
    assert found is not None and found.uses == 1


def test_ids_are_of_base_model_and_task() -> None:
    task = Task("Add.", [("1", "2")])
    same = adaptation_id("b", "m", task)
    assert adaptation_id("b", "m", Task(" Add. ", [("1 ", "\n2")], name="named")) == same
    others = [
        adaptation_id("c", "m", task),
        adaptation_id("b", "n", task),
        adaptation_id("b", "m", Task("Add!", [("1", "2")])),
        adaptation_id("b", "m", Task("Add.", [("12", "")])),
        adaptation_id("b", "m", Task("Add.", [("1", "2"), ("1", "2")])),
    ]
    assert len({same, *others}) == 6


@pytest.mark.parametrize(
    "id", ["", "..", "../index.sqlite", "A" * 64, "a" * 63, "a" * 64 + "\n", "/etc/passwd", "%2e%2e"]
)
def test_no_other_name_is_an_id(store: Store, id: str) -> None:
    assert store.get(id) is None and store.record(id) is None and store.delete(id) is False


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    size = Store(tmp_path / "probe").put(made(0), model_fingerprint="m").bytes
    store = Store(tmp_path / "store", max_bytes=3 * size + size // 2)
    ids = [store.put(made(n), model_fingerprint="m").id for n in range(3)]
    store.touch({ids[0]: 5, "0" * 64: 1})
    ids.append(store.put(made(3), model_fingerprint="m").id)
    assert folders(store) == {ids[0], ids[2], ids[3]}
    assert [record.id for record in store.records()][-1] == ids[2]
    kept = store.record(ids[0])
    assert kept is not None and kept.uses == 5
    with pytest.raises(HartError, match="raise its limit"):
        Store(tmp_path / "small", max_bytes=size - 1).put(made(0), model_fingerprint="m")
    assert folders(Store(tmp_path / "small")) == set()
    # A smaller limit holds from the next start on.
    assert Store(store.folder, max_bytes=size).totals() == (1, size)


def test_records_are_paged_and_told_apart_by_model(store: Store) -> None:
    for number in range(5):
        store.put(made(number), model_fingerprint="even" if number % 2 == 0 else "odd")
    assert [len(store.records("even")), len(store.records("odd")), len(store.records())] == [3, 2, 5]
    pages = [record.id for offset in (0, 2, 4) for record in store.records(limit=2, offset=offset)]
    assert pages == [record.id for record in store.records()]


def test_delete(store: Store) -> None:
    record = store.put(made(1), model_fingerprint="m")
    assert store.delete(record.id) and not store.delete(record.id)
    assert store.get(record.id) is None and store.totals() == (0, 0) and folders(store) == set()


@pytest.mark.parametrize("how", ["truncated", "changed", "file deleted", "folder deleted", "unsealed", "emptied"])
def test_damage_is_found_removed_and_made_good(store: Store, how: str) -> None:
    record = store.put(made(2), model_fingerprint="m")
    folder = store.folder / "adaptations" / record.id
    tensors = folder / "adaptation.safetensors"
    content = bytearray(tensors.read_bytes())
    if how == "truncated":
        tensors.write_bytes(content[:-10])
    elif how == "changed":
        content[-1] ^= 1
        tensors.write_bytes(content)
    elif how == "file deleted":
        tensors.unlink()
    elif how == "folder deleted":
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
    elif how == "unsealed":
        (folder / "checksums.json").unlink()
    else:
        (folder / "adaptation.json").write_text("{}", encoding="utf-8")
        (folder / "checksums.json").write_text("{}", encoding="utf-8")
    assert store.get(record.id) is None
    assert store.record(record.id) is None and folders(store) == set()
    assert store.put(made(2), model_fingerprint="m").id == record.id
    assert is_task(store.get(record.id), 2)


@pytest.mark.parametrize("how", ["garbage", "truncated", "deleted"])
def test_a_lost_index_is_made_anew(store: Store, how: str) -> None:
    before = {store.put(made(n), model_fingerprint="m", seconds=n).id: n for n in range(3)}
    index = store.folder / "index.sqlite"
    for path in store.folder.glob("index.sqlite-*"):
        path.unlink()
    if how == "garbage":
        index.write_bytes(b"not a database, by far" * 500)
    elif how == "truncated":
        index.write_bytes(index.read_bytes()[:1000])
    else:
        index.unlink()
    again = Store(store.folder)
    assert {record.id: record.seconds for record in again.records()} == before
    assert all(is_task(again.get(id), number) for id, number in before.items())


def older(store: Store, how: str) -> None:
    """Give the index the form that another version has."""
    with closing(sqlite3.connect(store.folder / "index.sqlite", isolation_level=None)) as connection:
        if how == "columns missing":
            connection.execute("PRAGMA user_version = 0")
            connection.execute("ALTER TABLE adaptations DROP COLUMN uses")
        elif how == "columns missing, version right":
            connection.execute("ALTER TABLE adaptations DROP COLUMN seconds")
        elif how == "a newer version":
            connection.execute("ALTER TABLE adaptations ADD COLUMN more TEXT NOT NULL DEFAULT ''")
            connection.execute("PRAGMA user_version = 99")
        elif how == "no version":
            connection.execute("PRAGMA user_version = 0")
        else:
            connection.execute("DROP TABLE adaptations")


OLDER = ["columns missing", "columns missing, version right", "a newer version", "no version", "no table"]


@pytest.mark.parametrize("how", OLDER)
@pytest.mark.parametrize("running", [False, True])
def test_an_index_of_another_version_is_made_anew(store: Store, how: str, running: bool) -> None:
    """At the start, and also under a store that is in use; then at the latest with the next call but one."""
    before = {store.put(made(n), model_fingerprint="m", seconds=n).id: n for n in range(3)}
    older(store, how)
    again = store if running else Store(store.folder)
    with suppress(HartError):
        assert len(again.records()) == 3
    assert {record.id: record.seconds for record in again.records()} == before
    assert all(is_task(again.get(id), number) for id, number in before.items())
    again.put(made(7), model_fingerprint="m")
    again.touch(dict.fromkeys(before, 2))
    assert [record.uses for record in again.records()] == [2, 2, 2, 0]
    assert check_whole(Store(store.folder)) == 4


@pytest.mark.parametrize("value", ["'{'", "''", "'[1'", "x'00ff'", "CAST(x'ff7b' AS TEXT)"])
@pytest.mark.parametrize("running", [False, True])
def test_an_index_with_a_damaged_row_is_made_anew(store: Store, value: str, running: bool) -> None:
    """SQLite finds nothing wrong with it. Under a store in use it is found by the first call that reads the row."""
    before = {store.put(made(n), model_fingerprint="m", seconds=n).id: n for n in range(3)}
    with closing(sqlite3.connect(store.folder / "index.sqlite", isolation_level=None)) as connection:
        connection.execute(f"UPDATE adaptations SET task = {value} WHERE seconds = 1")
    again = store if running else Store(store.folder)
    with suppress(HartError):
        assert len(again.records()) == 3
    assert {record.id: record.seconds for record in again.records()} == before
    assert check_whole(Store(store.folder)) == 3


def test_a_name_with_a_damaged_letter_hides_no_row(store: Store) -> None:
    id = store.put(made(1), model_fingerprint="m").id
    with closing(sqlite3.connect(store.folder / "index.sqlite", isolation_level=None)) as connection:
        connection.execute("UPDATE adaptations SET model = CAST(x'ff' AS TEXT)")
    assert [record.id for record in store.records()] == [id] and is_task(store.get(id), 1)


@pytest.mark.parametrize("what", ["everything", "adaptations", "index", "index made garbage"])
def test_what_is_taken_away_under_a_running_store_is_made_again(store: Store, what: str) -> None:
    before = {store.put(made(n), model_fingerprint="m").id: n for n in range(3)}
    index = store.folder / "index.sqlite"
    if what == "everything":
        shutil.rmtree(store.folder)
    elif what == "adaptations":
        shutil.rmtree(store.folder / "adaptations")
    elif what == "index":
        index.unlink()
    else:
        index.write_bytes(b"not a database, by far" * 500)
    kept = {} if what in ("everything", "adaptations") else before
    store.check()
    assert {record.id for record in store.records()} == set(kept) and store.totals()[0] == len(kept)
    for id, number in before.items():
        assert is_task(store.get(id), number) if id in kept else store.get(id) is None
    for number in range(5):
        assert is_task(store.get(store.put(made(number), model_fingerprint="m").id), number)
    assert check_whole(Store(store.folder)) == 5


@pytest.mark.parametrize("first", ["put", "get", "record", "records", "totals", "touch", "delete", "check"])
def test_any_call_heals(store: Store, first: str) -> None:
    id = store.put(made(1), model_fingerprint="m").id
    shutil.rmtree(store.folder)
    arguments: dict[str, Any] = {"put": (made(1),), "touch": ({id: 1},), "get": (id,), "record": (id,), "delete": (id,)}
    getattr(store, first)(*arguments.get(first, ()), **({"model_fingerprint": "m"} if first == "put" else {}))
    assert stat.S_IMODE(store.folder.stat().st_mode) == 0o700
    assert is_task(store.get(store.put(made(1), model_fingerprint="m").id), 1)


def test_a_place_that_cannot_be_made_again_is_told(store: Store) -> None:
    shutil.rmtree(store.folder)
    store.folder.write_text("a file, where the folder was", encoding="utf-8")
    for call in (store.check, store.totals, store.records, lambda: store.put(made(1), model_fingerprint="m")):
        with pytest.raises(HartError, match="cannot be written") as told:
            call()
        assert str(store.folder) in str(told.value) and "\n" not in str(told.value)
    store.folder.unlink()
    store.check()


def test_threads_that_find_it_gone_make_one_store(store: Store) -> None:
    """Many at once find the folder removed, or the index of another version; all of them go on with the same one."""
    for round_ in range(4):
        store.put(made(99), model_fingerprint="m")
        if round_ % 2:
            older(store, "columns missing")
        else:
            shutil.rmtree(store.folder)
        with ThreadPoolExecutor(8) as pool:
            ids = [record.id for record in pool.map(lambda n: store.put(made(n), model_fingerprint="m"), range(16))]
        assert {record.id for record in store.records()} >= set(ids)
        check_whole(store)


def test_what_a_dead_writer_left_is_swept(store: Store) -> None:
    record = store.put(made(1), model_fingerprint="m")
    kept = store.folder / "adaptations"
    (kept / ".hart-abc" / "new").mkdir(parents=True)
    (kept / ("0" * 64)).mkdir()
    (kept / ("1" * 64)).mkdir()
    (kept / ("1" * 64) / "adaptation.json").write_text("{", encoding="utf-8")
    # Renamed, and killed before the index knew.
    with sqlite3.connect(store.folder / "index.sqlite") as connection:
        connection.execute("DELETE FROM adaptations")
    again = Store(store.folder)
    assert folders(again) == {record.id} and again.totals() == (1, record.bytes)
    assert is_task(again.get(record.id), 1)


def test_what_no_store_has_made_stays(tmp_path: Path) -> None:
    """`adaptations` is what users call folders of their own, too."""
    for name in ("fruits/adaptation.json", "notes.txt", ".git/config"):
        path = tmp_path / "adaptations" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine", encoding="utf-8")
    store = Store(tmp_path)
    record = store.put(made(1), model_fingerprint="m")
    assert Store(tmp_path).totals() == (1, record.bytes)
    assert folders(store) == {"fruits", "notes.txt", ".git", record.id}


def test_a_reader_without_a_limit_drops_nothing(store: Store) -> None:
    ids = {store.put(made(number), model_fingerprint="m").id for number in range(3)}
    with sqlite3.connect(store.folder / "index.sqlite") as connection:
        connection.execute("UPDATE adaptations SET bytes = ?", (2**40,))
    assert folders(Store(store.folder, max_bytes=None)) == ids
    assert len(folders(Store(store.folder))) == 0


def test_a_disk_that_does_not_answer_now_is_no_damage(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    record = store.put(made(1), model_fingerprint="m")

    def fail(path: Path) -> str:
        raise OSError(errno.EMFILE, "Too many open files", str(path))

    with monkeypatch.context() as patched:
        patched.setattr("hart.runtime.files.folders.sha256", fail)
        with pytest.raises(HartError, match="cannot be read"):
            store.get(record.id)
    assert is_task(store.get(record.id), 1)


def test_several_rows_and_unwritable_places(store: Store, tmp_path: Path) -> None:
    with pytest.raises(HartError, match="adaptations of one task, this one has 2"):
        store.put(Adaptation.stack([made(1), made(2)]), model_fingerprint="m")
    (tmp_path / "file").touch()
    with pytest.raises(HartError, match="cannot be written"):
        Store(tmp_path / "file" / "store")


def test_the_setting_moves_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HART_CACHE", str(tmp_path / "elsewhere"))
    assert Store().folder == tmp_path / "elsewhere" / "adaptations"


def write_on(folder: Path, first: int, written: Any) -> None:
    """Put and delete until killed."""
    store = Store(folder)
    for number in itertools.count(first):
        store.put(made(number % 40, width=2000), model_fingerprint="m")
        written.value += 1
        if number % 3 == 0:
            with suppress(IndexError):
                store.delete(store.records(limit=1)[0].id)


def check_whole(store: Store) -> int:
    """Every row has its folder, whole, with the right values, and nothing else lies there; returns their number."""
    records = store.records(limit=1000)
    assert {record.id for record in records} == folders(store)
    for record in records:
        assert damage(store.folder / "adaptations" / record.id) is None
        number = int(record.task["Definition"][0].removeprefix("Add ").removesuffix("."))
        assert is_task(store.get(record.id), number)
    with sqlite3.connect(store.folder / "index.sqlite") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    return len(records)


def test_killed_writers_leave_a_whole_store(tmp_path: Path) -> None:
    """Two processes write and delete; one of them is killed at a random time, again and again."""
    chance, folder, context = random.Random(0), tmp_path / "store", multiprocessing.get_context("fork")

    def start(first: int) -> tuple[Any, Any]:
        written = context.Value("q", 0)
        process = context.Process(target=write_on, args=(folder, first, written), daemon=True)
        process.start()
        return process, written

    survivor, survived = start(0)
    killed_after = []
    try:
        for number in range(KILLS):
            victim, written = start(7 * number)
            # Half of them at any time, half while they surely write.
            until = time.monotonic() + 30
            while number % 2 and not written.value and time.monotonic() < until:
                time.sleep(0.001)
            time.sleep(chance.uniform(0.0, 0.1))
            victim.kill()
            victim.join()
            assert victim.exitcode == -signal.SIGKILL
            killed_after.append(written.value)
            if number % 10 == 9:
                # Opened while the other one writes.
                Store(folder).totals()
        assert survivor.is_alive(), "the writer that nobody killed ended"
    finally:
        survivor.kill()
        survivor.join()
    assert sum(killed_after) > 0 and survived.value > 0
    count = check_whole(Store(folder))
    print(f"{KILLS} kills; the killed had written {sum(killed_after)}, the other {survived.value}; {count} kept")


def put_with_little_room(folder: Path, told: Any) -> None:
    """Put while files may not grow beyond some kilobytes, as on a disk without room; counts what is told of it."""
    store = Store(folder)
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    for limit in (0, 100, 5000, 20000, 60000, 90000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            store.put(made(2, width=2000), model_fingerprint="m")
        except HartError as error:
            told.value += "cannot be written" in str(error) and "\n" not in str(error)


def test_a_full_disk_is_told_and_leaves_the_store_whole(store: Store) -> None:
    kept, context = store.put(made(1), model_fingerprint="m"), multiprocessing.get_context("fork")
    told = context.Value("q", 0)
    process = context.Process(target=put_with_little_room, args=(store.folder, told), daemon=True)
    process.start()
    process.join()
    assert (process.exitcode, told.value) == (0, 6)
    assert folders(store) == {kept.id} and check_whole(store) == 1
    record = store.put(made(2, width=2000), model_fingerprint="m")
    assert json.loads((store.folder / "adaptations" / record.id / "record.json").read_text())["seconds"] == 0.0
    assert check_whole(Store(store.folder)) == 2
