"""The record of a run: unchanged and changed parts when a run is resumed."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hart.data.tasks import Instance, Task
from hart.errors import HartError
from hart.training.config import RunConfig
from hart.training.run_record import RECORD_FILE, SAMPLED_INSTANCES, read_record, task_digests
from hart.training.train import train

Build = Callable[..., RunConfig]


@pytest.fixture
def data(toy_data_dir: Path, tmp_path: Path) -> Path:
    return shutil.copytree(toy_data_dir, tmp_path / "data")


@pytest.fixture
def base(tiny_base_dir: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_base_dir, tmp_path / "base")


def unfinished(config: RunConfig) -> Path:
    """The folder of a run that lost its last checkpoint."""
    run = train(config, quiet=True).parent
    shutil.rmtree(run / "final")
    shutil.rmtree(run / "checkpoints" / "checkpoint-4")
    return run


def change(path: Path, key: str, value: Any) -> None:
    content = json.loads(path.read_text())
    content[key] = value
    path.write_text(json.dumps(content))


def test_a_complete_run_is_none_on_other_data(run_config: Build, data: Path, tmp_path: Path):
    config = run_config(data={"dir": str(data)})
    final = train(config, quiet=True)
    moved = data.rename(tmp_path / "elsewhere")
    assert train(run_config(data={"dir": str(moved)}), quiet=True) == final, "the same tasks at another place"
    written = (final.parent / "config.yaml").read_bytes()
    assert str(moved).encode() in written
    with pytest.raises(HartError, match="data: no such folder"):
        train(config, quiet=True)
    other = shutil.copytree(moved, data)
    change(other / "tasks" / "twice.json", "Definition", ["Write nothing."])
    with pytest.raises(HartError, match="have changed since the run began: .*task twice has changed .definition"):
        train(config, quiet=True)
    mine = [Task("Write the first word.", [("a b", "a")], instances=[Instance("c d", ["c"])], name="mine")]
    with pytest.raises(HartError, match="task reverse is missing; task first is missing"):
        train(config, tasks=mine, quiet=True)
    assert (final.parent / "config.yaml").read_bytes() == written, "a complete run is left as it is"


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("Definition", ["Write nothing."], r"task twice has changed \(definition\);"),
        (
            "Positive Examples",
            [{"input": "a", "output": "b", "explanation": ""}],
            r"task twice has changed \(demonstrations\);",
        ),
        ("Instances", [{"id": "1", "input": "a b", "output": ["b a"]}], r"task twice has changed \(instances\);"),
    ],
)
def test_other_data_are_refused_and_the_task_is_named(run_config: Build, data: Path, key: str, value: Any, told: str):
    config = run_config(data={"dir": str(data)})
    run = unfinished(config)
    before = (run / RECORD_FILE).read_text(), (run / "metrics.jsonl").read_text()
    task = data / "tasks" / "twice.json"
    original = task.read_text()
    change(task, key, value)
    with pytest.raises(HartError, match=told) as refused:
        train(config, quiet=True)
    assert "\n" not in str(refused.value) and "data.dir" in str(refused.value) and str(run) in str(refused.value)
    assert ((run / RECORD_FILE).read_text(), (run / "metrics.jsonl").read_text()) == before, "nothing was touched"
    # Restored, and in another place: the run goes on.
    task.write_text(original)
    moved = data.rename(data.with_name("moved"))
    assert train(run_config(data={"dir": str(moved)}), quiet=True) == run / "final"


def test_a_missing_and_a_new_task_are_named(run_config: Build, data: Path):
    config = run_config(data={"dir": str(data)})
    unfinished(config)
    split = data / "splits" / "default" / "train_tasks.txt"
    shutil.copy(data / "tasks" / "twice.json", data / "tasks" / "double.json")
    split.write_text(split.read_text().replace("twice", "double"))
    with pytest.raises(HartError, match="task twice is missing; task double is new; restore it"):
        train(config, quiet=True)


@pytest.mark.parametrize("intervals", [(0, 2), (2, 0)])
def test_evaluation_may_begin_or_stop_when_a_run_is_resumed(run_config: Build, intervals: tuple[int, int]):
    first, second = (
        run_config(eval_every=every, eval_instances=1, data={"validation_tasks": 1, "max_target_length": 4})
        for every in intervals
    )
    run = unfinished(first)
    assert train(second, quiet=True) == run / "final"


def test_other_validation_tasks_are_refused(run_config: Build, data: Path):
    config = run_config(
        eval_every=2, eval_instances=1, data={"dir": str(data), "validation_tasks": 1, "max_target_length": 4}
    )
    run = unfinished(config)
    (name,) = json.loads((run / RECORD_FILE).read_text())["data"]["validation"]
    change(data / "tasks" / f"{name}.json", "Definition", ["Write nothing."])
    with pytest.raises(HartError, match=rf"validation task {name} has changed \(definition\); restore it"):
        train(config, quiet=True)


@pytest.mark.parametrize("what", ["weights", "tokenizer"])
def test_another_base_under_the_same_name_is_refused(run_config: Build, base: Path, what: str):
    config = run_config()
    config = config.changed(model={"base": str(base)})
    unfinished(config)
    if what == "weights":
        tensors = load_file(base / "model.safetensors")
        tensors["shared.weight"] = tensors["shared.weight"] + 0.5
        save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    else:
        content = json.loads((base / "tokenizer.json").read_text())
        vocabulary = content["model"]["vocab"]
        one, other = list(vocabulary)[-2:]
        vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
        (base / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(HartError, match=rf"base \(model.base\) has changed since the run began, and its {what}"):
        train(config, quiet=True)


def test_other_text_to_pre_train_on_is_refused(run_config: Build, tmp_path: Path):
    folder = tmp_path / "text"
    folder.mkdir()
    line = json.dumps({"text": " ".join(["the cat sat on the mat one two three"] * 6)}) + "\n"
    for name in ("a.json", "b.json"):
        (folder / name).write_text(line * 5)
    text = {"collection": "four_segments", "dir": str(folder), "max_document_tokens": 60}
    config = run_config(model={"scheme": {"name": "shared"}, "fusion": False}, alpha=0.0, data=text)
    run = unfinished(config)
    (folder / "b.json").write_text(line * 6)
    with pytest.raises(HartError, match=r"file b.json has changed \(size\); restore it"):
        train(config, quiet=True)
    (folder / "b.json").write_text(line * 5)
    assert train(config, quiet=True) == run / "final"


def test_a_run_of_an_earlier_version_goes_on_and_gets_a_record(run_config: Build):
    run = unfinished(run_config())
    (run / RECORD_FILE).unlink()
    assert train(run_config(), quiet=True) == run / "final" and read_record(run) is not None


@pytest.mark.parametrize("content", ["{", "[]", '{"base": 1}'])
def test_a_damaged_record_is_one_line(run_config: Build, content: str):
    run = unfinished(run_config())
    (run / RECORD_FILE).write_text(content)
    with pytest.raises(HartError, match=r"run.json: .*choose another training.output_dir") as refused:
        train(run_config(), quiet=True)
    assert "\n" not in str(refused.value)


class OnDisk(Sequence[Instance]):
    """Rows that are made when they are asked for."""

    def __init__(self, count: int, changed: int | None = None) -> None:
        self.count, self.changed, self.read = count, changed, 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, at: Any) -> Any:
        self.read += 1
        return Instance(f"row {at}{'!' if at == self.changed else ''}", ("answer",))


def test_rows_on_the_disk_are_sampled():
    def digest(rows: Sequence[Instance]) -> str:
        return task_digests([Task("d", [("a", "b")], name="t", instances=rows)])["t"]["instances"]

    million = OnDisk(1_000_000)
    same = digest(million)
    assert million.read <= SAMPLED_INSTANCES + 1 and digest(OnDisk(1_000_000)) == same
    assert len({same, digest(OnDisk(1_000_001)), digest(OnDisk(1_000_000, 0)), digest(OnDisk(1_000_000, 999_999))}) == 4


def test_tasks_without_names_are_told_apart():
    tasks = [Task("d", [("a", "b")]), Task("e", [("a", "b")]), Task("f", [("a", "b")], name="x")] * 2
    assert len(task_digests(tasks)) == 6


# --- the optimizer ---------------------------------------------------------------------------------------


def test_what_the_optimizer_fell_back_to_is_written_and_states_of_another_kind_are_refused(
    run_config: Build, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("bitsandbytes")
    from hart.training import optimizer as module

    with monkeypatch.context() as patch:
        patch.setattr(module.importlib.util, "find_spec", lambda _: None)
        run = unfinished(run_config(optimizer="adamw_8bit"))
    assert json.loads((run / RECORD_FILE).read_text())["optimizer"] == "adamw"
    assert json.loads((run / "checkpoints/checkpoint-2/layout.json").read_text())["optimizer"] == "adamw"
    with pytest.raises(HartError, match="states belong to adamw, and this run has adamw_8bit; set training.opt"):
        train(run_config(optimizer="adamw_8bit"), quiet=True)
    # As the message says.
    final = train(run_config(optimizer="adamw"), quiet=True)
    whole = train(run_config("whole", optimizer="adamw"), quiet=True)
    one, other = (load_file(folder / "model.safetensors") for folder in (final, whole))
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_8_bit_states_need_their_library_again(run_config: Build, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("bitsandbytes")
    from hart.training import optimizer as module

    unfinished(run_config(optimizer="adamw_8bit"))
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(HartError, match="belong to adamw_8bit, and this run has adamw; install bitsandbytes again"):
        train(run_config(optimizer="adamw_8bit"), quiet=True)
