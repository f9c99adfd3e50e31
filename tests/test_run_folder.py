"""The folder of a run: what is taken for its own, what is refused, and what a crash leaves."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from hart.config import RunConfig, load
from hart.errors import HartError
from hart.run_folder import RunFolder, read_metrics

Build = Callable[..., RunConfig]


def test_new_folder_holds_the_resolved_configuration(run_config: Build):
    config = run_config("deep/run")
    run = RunFolder(config)
    assert [p.name for p in run.path.iterdir()] == ["config.yaml"]
    assert load(run.path / "config.yaml") == config


def test_empty_folder_is_taken(run_config: Build, tmp_path: Path):
    (tmp_path / "run").mkdir()
    assert RunFolder(run_config()).last_checkpoint() is None


def test_run_goes_on_with_the_same_configuration(run_config: Build):
    RunFolder(run_config())
    RunFolder(run_config())


@pytest.mark.parametrize("is_folder", [True, False])
def test_other_content_is_refused_and_kept(run_config: Build, tmp_path: Path, is_folder: bool):
    taken = tmp_path / "run"
    if is_folder:
        taken.mkdir()
    thesis = taken / "thesis.tex" if is_folder else taken
    thesis.write_text("years of work")
    with pytest.raises(HartError, match="run: exists with other content"):
        RunFolder(run_config())
    assert thesis.read_text() == "years of work"
    assert list(tmp_path.rglob("*")) == ([taken, thesis] if is_folder else [taken])


def test_other_configuration_is_refused_and_the_difference_named(run_config: Build):
    first = RunFolder(run_config(alpha=1.0))
    before = (first.path / "config.yaml").read_text()
    with pytest.raises(HartError, match=r"training.alpha was 1.0 and is 10.0") as refused:
        RunFolder(run_config(alpha=10.0))
    assert "seed" not in str(refused.value) and "\n" not in str(refused.value)
    with pytest.raises(HartError, match=r"model.peft was \[.*'length': 4.*\] and is \[.*'length': 8"):
        RunFolder(run_config(alpha=1.0, model={"peft": [{"kind": "prefix", "length": 8}]}))
    assert (first.path / "config.yaml").read_text() == before


def test_fields_that_change_no_number_may_change(run_config: Build):
    RunFolder(run_config())
    changed = run_config(
        model={"attention": "eager"}, micro_batch_size=2, log_every=3, save_every=3, num_workers=1, num_threads=1
    )
    assert load(RunFolder(changed).path / "config.yaml") == changed


def test_resume_false_refuses_a_run(run_config: Build):
    RunFolder(run_config())
    with pytest.raises(HartError, match="training.resume is false"):
        RunFolder(run_config(resume=False))


@pytest.mark.parametrize("content", [b"a: [", b"\xff\xfe\x00", b""])
def test_config_of_something_else_is_refused_in_one_line(run_config: Build, tmp_path: Path, content: bytes):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_bytes(content)
    with pytest.raises(HartError, match="choose another training.output_dir") as refused:
        RunFolder(run_config())
    assert "\n" not in str(refused.value)


def test_long_lists_of_differences_are_cut(run_config: Build, tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump({"services": {"web": {"image": "nginx"}}}))
    with pytest.raises(HartError, match=r"and \d+ more\)"):
        RunFolder(run_config())


def test_folder_that_cannot_be_made_is_refused(run_config: Build, tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(HartError, match="run: cannot be created"):
        RunFolder(run_config("file/run"))


def test_other_processes_of_a_run_write_nothing(run_config: Build, tmp_path: Path):
    RunFolder(run_config(), owner=False)
    assert not (tmp_path / "run").exists()


def test_newest_checkpoint_is_by_number_and_half_written_ones_go(run_config: Build):
    run = RunFolder(run_config())
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-old", ".partial/checkpoint-11"):
        (run.checkpoints / name).mkdir(parents=True)
    assert run.last_checkpoint() == run.checkpoints / "checkpoint-10"
    assert run.last_checkpoint(before=10) == run.checkpoints / "checkpoint-9"
    assert run.last_checkpoint(before=9) is None
    assert not (run.checkpoints / ".partial").exists()


def test_metrics_are_rewound_to_a_step_and_a_torn_line_is_forgotten(run_config: Build):
    run = RunFolder(run_config())
    run.rewind_metrics(0)
    assert not run.metrics.exists()
    rows = [{"step": step, "loss": 1 / step} for step in (1, 2, 3)]
    for row in rows:
        run.append_metrics(row)
    with run.metrics.open("a") as file:
        file.write(json.dumps({"step": 4, "loss": 0.25})[:-5])
    assert run.read_metrics() == rows
    run.rewind_metrics(2)
    run.append_metrics({"step": 3, "loss": 0.5})
    assert read_metrics(run.metrics) == [*rows[:2], {"step": 3, "loss": 0.5}]
