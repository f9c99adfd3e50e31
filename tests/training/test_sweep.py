"""A sweep: planned, skipped, failed and written runs."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hart.errors import HartError
from hart.model.hart_model import HartModel
from hart.runtime.files import write_json
from hart.training.config import RunConfig
from hart.training.sweep import sweep
from hart.training.sweep_jobs import check_room, remaining, surroundings
from hart.training.sweep_plan import SweepRun, plan
from hart.training.sweep_table import markdown, write_tables

Build = Callable[..., RunConfig]


def short(config: RunConfig) -> RunConfig:
    training = {"max_steps": 2, "batch_size": 4, "num_threads": 1}
    return config.changed(training=training, data={"max_test_instances": 3})


@pytest.fixture
def files(run_config: Build, tmp_path: Path) -> dict[str, Path]:
    """hart and a fine-tuned system, as YAML."""
    tuned = {"weights": "none", "train_main": True, "fusion": False, "peft": []}
    configs = {
        "hart": run_config(),
        "tuned": run_config(model=tuned, data={"demonstrations_to": "main"}, alpha=0.0),
    }
    for name, config in configs.items():
        short(config).save(tmp_path / "configs" / f"{name}.yaml")
    return {name: tmp_path / "configs" / f"{name}.yaml" for name in configs}


def test_a_run_has_a_process_of_its_own(files: dict[str, Path], tmp_path: Path):
    (row,) = sweep(tmp_path / "sweep", plan(tmp_path / "sweep", [files["hart"]], [0]))
    assert row["runs"] == 1 and row["rouge_l"] is not None and 0.05 < row["peak_memory_gib"] < 8


def test_sigterm_is_handed_on_and_waited_for(files: dict[str, Path], tmp_path: Path):
    """The run saves, nobody is left behind, and the same command goes on."""
    out = tmp_path / "sweep"
    # Steps enough not to be over when the signal comes.
    words = [sys.executable, "-m", "hart", "sweep", str(out), str(files["hart"]), "--training.max_steps", "100000"]
    command = subprocess.Popen([*words, "--training.save_every", "1000000"], stderr=subprocess.PIPE, text=True)
    run = out / "hart" / "seed-0" / "run"
    deadline = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    children = Path(f"/proc/{command.pid}/task/{command.pid}/children")
    (child,) = (int(pid) for pid in children.read_text().split()) if children.exists() else (None,)
    other = subprocess.run(words, capture_output=True, text=True)
    assert other.returncode == 2 and other.stderr.count("\n") == 1
    assert "sweep: is in use by another process; wait until it ends, or choose another folder" in other.stderr
    command.send_signal(signal.SIGTERM)
    assert command.wait(timeout=60) == 143, command.communicate()
    assert [path.name.split("-")[0] for path in (run / "checkpoints").iterdir()] == ["checkpoint"]
    assert "stopped by a signal after step" in (run.parent / "log.txt").read_text()
    if child:
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and is not yet reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc to find the runs")
def test_runs_side_by_side_end_with_a_killed_sweep(files: dict[str, Path], tmp_path: Path):
    """They save, as nobody can tell a killed process to hand on anything."""
    out = tmp_path / "sweep"
    words = [sys.executable, "-m", "hart", "sweep", str(out), str(files["hart"]), "--seeds", "0", "1", "--jobs", "2"]
    command = subprocess.Popen([*words, "--training.max_steps", "100000", "--training.save_every", "1000000"])
    metrics = [out / "hart" / f"seed-{seed}" / "run" / "metrics.jsonl" for seed in (0, 1)]
    deadline = time.monotonic() + 180
    while not all(path.exists() for path in metrics) and time.monotonic() < deadline:
        time.sleep(0.1)
    children = Path(f"/proc/{command.pid}/task/{command.pid}/children").read_text().split()
    assert len(children) == 2 and all(alive(int(pid)) for pid in children)
    command.kill()
    command.wait()
    while any(alive(int(pid)) for pid in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(alive(int(pid)) for pid in children)
    assert all((path.parent / "checkpoints").is_dir() for path in metrics)


def test_surroundings_of_a_job(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("hart.training.sweep_jobs.cpu_cores", lambda: 8)
    monkeypatch.setattr("hart.training.sweep_jobs.visible_gpus", lambda: [])
    assert surroundings(0, 1, 1, None) == {} and surroundings(1, 4, 1, 3) == {"OMP_NUM_THREADS": "3"}
    assert surroundings(1, 4, 1, None) == {"OMP_NUM_THREADS": "2"}
    monkeypatch.setattr("hart.training.sweep_jobs.visible_gpus", lambda: ["4", "5", "6", "7"])
    gpus = [surroundings(slot, 4, 1, 1)["CUDA_VISIBLE_DEVICES"] for slot in range(5)]
    assert gpus == ["4", "5", "6", "7", "4"]
    assert [surroundings(slot, 2, 2, 1)["CUDA_VISIBLE_DEVICES"] for slot in range(2)] == ["4,5", "6,7"]
    check_room(2, 2)
    with pytest.raises(HartError, match="--jobs 3 times --processes 2 exceed the 4 GPUs here"):
        check_room(3, 2)


def test_the_rest_of_the_time():
    assert remaining([60.0, 120.0], 4, 2) == ", about 3 min left"
    assert remaining([3600.0], 4, 2) == ", about 2.0 h left" and remaining([1.0], 1, 1) == ", about a minute left"
    assert remaining([60.0], 0, 1) == "" == remaining([], 3, 1)


@pytest.mark.usefixtures("in_this_process")
def test_trains_scores_and_compares_and_does_nothing_twice(files: dict[str, Path], tmp_path: Path):
    out = tmp_path / "sweep"
    runs = plan(out, list(files.values()), [0, 1])
    assert [(run.name, run.seed, run.config.training.seed) for run in runs] == [
        ("hart", 0, 0), ("hart", 1, 1), ("tuned", 0, 0), ("tuned", 1, 1),
    ]  # fmt: skip
    said: list[str] = []
    rows = sweep(out, runs[:1] + runs[2:3], say=said.append)
    assert [row["runs"] for row in rows] == [1, 1] and not any("failed" in line for line in said), said
    said.clear()
    rows = sweep(out, runs, say=said.append)
    assert [line.split(": ")[1] for line in said if "done before" in line] == ["done before"] * 2
    assert [row["runs"] for row in rows] == [2, 2]
    hart, tuned = rows
    assert tuned["trained_parameters"] > 0 and hart["loss_end"] > 0 and hart["peak_memory_gib"] > 0.05
    assert hart["difference"] is None and tuned["difference"] == pytest.approx(tuned["rouge_l"] - hart["rouge_l"])
    assert hart["rouge_l_deviation"] is not None
    assert json.loads((out / "table.json").read_text()) == rows
    assert (out / "table.md").read_text() == markdown(rows)
    assert "| tuned | 2 |" in markdown(rows)
    # Another configuration is another run, though it has the same name.
    (changed,) = plan(out, [files["hart"]], [0], ["--training.alpha", "2"])
    assert changed.results() is None and runs[0].results() is not None


@pytest.mark.usefixtures("in_this_process")
def test_a_failed_run_is_told_and_stops_nobody(files: dict[str, Path], tmp_path: Path):
    bad = tmp_path / "configs" / "bad.yaml"
    bad.write_text(files["hart"].read_text().replace("decoder_layers: 2", "decoder_layers: 9"))
    said: list[str] = []
    missed: list[SweepRun] = []
    runs = plan(tmp_path / "out", [bad, files["hart"]], [0])
    rows = sweep(tmp_path / "out", runs, say=said.append, missed=missed.append)
    assert [run.label for run in missed] == ["bad, seed 0"]
    assert any("bad, seed 0: failed: model.decoder_layers is 9" in line for line in said)
    assert [row["runs"] for row in rows] == [0, 1]
    assert "| bad | 0 | – |" in markdown(rows)


@pytest.mark.usefixtures("in_this_process")
def test_fine_tuning_starts_from_the_pre_training_of_the_sweep(run_config: Build, tmp_path: Path):
    (tmp_path / "text").mkdir()
    line = json.dumps({"text": " ".join(["the cat sat on the mat one two three"] * 6)})
    (tmp_path / "text" / "a.json").write_text("\n".join([line] * 10))
    shared = {"scheme": {"name": "shared"}, "fusion": False}
    folder = tmp_path / "configs"
    tasks = short(run_config(model=shared, alpha=0.0))
    text = {"collection": "four_segments", "dir": None, "max_document_tokens": 60}
    tasks.changed(data=text).save(folder / "pt_pretrain.yaml")
    start = {**shared, "init_from": "runs/mini/pt_pretrain/final"}
    short(run_config(model=start, alpha=0.0)).save(folder / "pt.yaml")
    out = tmp_path / "out"
    paths = [folder / "pt_pretrain.yaml", folder / "pt.yaml"]
    runs = plan(out, paths, [3], text_dir=str(tmp_path / "text"))
    assert runs[1].config.model.init_from == str(out / "pt_pretrain" / "seed-3" / "run" / "final")
    said: list[str] = []
    pretrained, tuned = sweep(out, runs, say=said.append)
    assert not any("failed" in line for line in said), said
    assert pretrained["rouge_l"] is None and tuned["rouge_l"] is not None
    with pytest.raises(HartError, match="pt starts from pt_pretrain; put pt_pretrain before it"):
        plan(out, paths[::-1], [3])


def test_mistakes(files: dict[str, Path], tmp_path: Path):
    with pytest.raises(HartError, match="two configurations are called hart"):
        plan(tmp_path / "out", [files["hart"], files["hart"]], [0])
    with pytest.raises(HartError, match="no such configuration file"):
        plan(tmp_path / "out", [tmp_path / "none.yaml"], [0])
    with pytest.raises(HartError, match=r"hart\.yaml: model\.scheme: unknown name 'casual'; choose one of"):
        plan(tmp_path / "out", [files["hart"]], [0], ["--model.scheme={name: casual}"])
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    runs: list[SweepRun] = plan(tmp_path / "other", [files["hart"]], [0])
    with pytest.raises(HartError, match="exists with other content"):
        sweep(tmp_path / "other", runs)


def test_sweeps_that_share_a_folder_share_its_table(files: dict[str, Path], tmp_path: Path):
    """What each sweep writes holds the rows and seeds of the other; a task is no pair of its own."""
    out = tmp_path / "out"
    runs = plan(out, list(files.values()), [0, 1])
    scores = {("hart", 0): 40.0, ("hart", 1): 44.0, ("tuned", 0): 41.0, ("tuned", 1): 47.0}
    for run in runs:
        score = scores[run.name, run.seed]
        tasks = {name: {"rouge_l": score} for name in "abcd"}
        write_json(run.folder / "results.json", {"config": run.config.to_dict(), "rouge_l": score, "tasks": tasks})
    write_json(out / "study.json", {"study": "out", "rows": {"hart": {}, "tuned": {}, "none": {}}})
    (out / "tuned" / "seed-7").mkdir()
    (out / "tuned" / "seed-7" / "results.json").write_text('{"rouge_l": 4')
    rows = write_tables(out, runs[3:])
    assert [(row["system"], row["runs"]) for row in rows] == [("hart", 2), ("tuned", 2)]
    assert rows[1]["difference"] == pytest.approx(2.0) and rows[1]["difference_error"] == pytest.approx(1.0)
    changed = plan(out, [files["hart"]], [0], ["--training.alpha", "2"])
    assert [row["runs"] for row in write_tables(out, changed)] == [0, 2], "those of another configuration do not count"
    assert "Left out, as their configuration differs: hart seed 1." in (out / "table.md").read_text()
    assert "left out" not in ((write_tables(out, runs) and out) / "table.md").read_text()


def test_a_table_compares_by_the_score_that_counts_first(files: dict[str, Path], tmp_path: Path):
    out = tmp_path / "out"
    runs = plan(out, list(files.values()), [0, 1], ["--data.collection", "procedural", "--data.dir", "null"])
    for run in runs:
        own = 50.0 + 10 * run.seed * (run.name == "tuned")
        found = {"config": run.config.to_dict(), "rouge_l": 70.0, "exact_match": own, "tasks": {}}
        write_json(run.folder / "results.json", found)
    rows = write_tables(out, runs)
    assert rows[1]["difference"] == pytest.approx(5.0) and rows[1]["exact_match_deviation"] == pytest.approx(50**0.5)
    assert "− first row's exact match" in markdown(rows) and markdown(rows).count("| ± |") == 2
    for run in runs:  # tasks of one's own whose instances all have choices
        score = 50.0 + 10 * (run.name == "tuned")
        found = {"config": run.config.to_dict(), "accuracy": score, "columns": {"a": score}, "tasks": {}}
        write_json(run.folder / "results.json", found)
    rows = write_tables(out, runs)
    assert rows[1]["difference"] == pytest.approx(10.0) and "− first row's accuracy" in markdown(rows)


def test_what_lies_beside_the_runs_of_a_sweep_does_not_matter(tmp_path: Path):
    """Figures, and the unfinished file of another sweep that is writing its table."""
    for path in ("figures/fig3.png", ".hart-123", "study.json"):
        write_json(tmp_path / path, {"rows": {}})
    assert sweep(tmp_path, [], say=lambda line: None) == []


def test_why_a_run_failed_is_told_in_any_locale(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    said: list[str] = []
    runs = plan(tmp_path / "sweep", [files["hart"]], [0], ["--model.base", "任务"])
    sweep(tmp_path / "sweep", runs, say=said.append)
    assert "failed: 任务: no checkpoint there" in said[-1]


@pytest.mark.usefixtures("in_this_process")
def test_the_test_tasks_are_scored_on_the_device_of_training(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    chosen = torch.device("cpu", 0)
    monkeypatch.setattr("hart.runtime.devices.select_device", lambda: chosen)
    devices: list[object] = []
    load = HartModel.from_pretrained
    monkeypatch.setattr(
        HartModel, "from_pretrained", lambda name, device=None: devices.append(device) or load(name, device=device)
    )
    sweep(tmp_path / "sweep", plan(tmp_path / "sweep", [files["hart"]], [0]))
    assert devices == [chosen]
