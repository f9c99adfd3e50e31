"""The folder of a run: accepted and refused folders, and the remains of a crash."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from hart.errors import HartError
from hart.training.config import RunConfig, load
from hart.training.run_folder import RunFolder, holding, read_metrics
from hart.training.train import train

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
        model={"attention": "eager"},
        micro_batch_size=2,
        log_every=3,
        save_every=3,
        eval_every=3,
        num_workers=1,
        num_threads=1,
    )
    again = RunFolder(changed)
    assert load(again.path / "config.yaml") == run_config(), "until it is known that the run goes on"
    again.save_config()
    assert load(again.path / "config.yaml") == changed


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
    with pytest.raises(HartError, match="run/config.yaml: cannot be written"):
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
    assert read_metrics(run.metrics) == rows
    run.rewind_metrics(2)
    run.append_metrics({"step": 3, "loss": 0.5})
    assert read_metrics(run.metrics) == [*rows[:2], {"step": 3, "loss": 0.5}]


def test_a_field_that_the_saved_configuration_leaves_out_has_its_default(run_config: Build):
    saved = RunFolder(run_config()).path / "config.yaml"
    content = yaml.safe_load(saved.read_text())
    del content["training"]["adam_beta1"]
    saved.write_text(yaml.safe_dump(content))
    RunFolder(run_config())
    content["training"]["unknown"] = "mean"
    saved.write_text(yaml.safe_dump(content))
    with pytest.raises(HartError, match="training.unknown was 'mean' and is None"):
        RunFolder(run_config())


# --- one process at a time -------------------------------------------------------------------------------

HOLDING = """
import sys, time
from pathlib import Path
from hart.training.run_folder import holding

with holding(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the folder `run`."""
    command = [sys.executable, "-c", HOLDING, str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_refused_in_one_line_and_touches_nothing(
    run_config: Build, tmp_path: Path, holder: subprocess.Popen[str]
):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(HartError, match="run: is in use by another process; wait until it ends, or choose") as told:
        train(run_config(), quiet=True)
    assert "\n" not in str(told.value) and sorted(tmp_path.rglob("*")) == before
    holder.kill()  # with no chance to tidy up
    holder.wait()
    assert (tmp_path / "run" / ".lock").exists()
    assert train(run_config(), quiet=True).is_dir()


def test_the_lock_is_free_again_after_a_run_and_after_an_error(run_config: Build, tmp_path: Path):
    with pytest.raises(HartError):
        train(run_config(data={"dir": str(tmp_path / "none")}), quiet=True)
    assert not (tmp_path / "run").exists()
    train(run_config(), quiet=True)
    with holding(tmp_path / "run"):
        pass


def test_an_empty_folder_is_empty_again_after_an_error(run_config: Build, tmp_path: Path):
    (tmp_path / "real").mkdir()
    (tmp_path / "run").symlink_to("real")
    with pytest.raises(HartError, match="none"):
        train(run_config(data={"dir": str(tmp_path / "none")}), quiet=True)
    assert (tmp_path / "run").is_symlink() and not any((tmp_path / "real").iterdir())
    assert train(run_config(), quiet=True) == tmp_path / "run" / "final"
    assert (tmp_path / "real" / "final" / "config.json").is_file() and (tmp_path / "run").is_symlink()


def test_a_link_to_nothing_is_refused(run_config: Build, tmp_path: Path):
    (tmp_path / "run").symlink_to("nowhere")
    with pytest.raises(HartError, match="run: is a broken link; create its target, or choose another"):
        train(run_config(), quiet=True)
    (tmp_path / "run").unlink()
    (tmp_path / "run").symlink_to("run")
    with pytest.raises(HartError, match="run: .*choose another|run: cannot be"):
        train(run_config(), quiet=True)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="of Unix")
def test_a_folder_without_permission_is_one_line(run_config: Build, tmp_path: Path):
    """Root may write everywhere, so the command runs as nobody where the tests run as root."""
    open_place = Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        open_place.chmod(0o755)
        folder = open_place / "run"
        folder.mkdir()
        for mode in (0o000, 0o555):
            folder.chmod(mode)
            code = (
                "import os, sys; from pathlib import Path; from hart.errors import HartError\n"
                "from hart.training.run_folder import RunFolder, holding\n"
                "if os.geteuid() == 0: os.setuid(65534)\n"
                "try:\n  RunFolder.check_free(Path(sys.argv[1]))\n  with holding(Path(sys.argv[1])): pass\n"
                "except HartError as error: print(error)"
            )
            done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True)
            assert done.stdout.count("\n") == 1 and not done.stderr, done.stderr
            assert f"{folder}: cannot be " in done.stdout and "Permission denied" in done.stdout
    finally:
        folder.chmod(0o755)
        shutil.rmtree(open_place)


def test_losses_of_steps_are_rewound_with_the_metrics(run_config: Build):
    run = RunFolder(run_config())
    run.append_steps(1, {"loss": [0.5, 0.25], "prediction_loss": [0.5, 0.125]})
    run.append_steps(3, {"loss": [1.0], "prediction_loss": [1e-7]})
    with run.steps.open("a") as file:
        file.write("1")  # of line 14, when the process died
    run.rewind_metrics(2)
    run.append_steps(3, {"loss": [2.0], "prediction_loss": [3.0]})
    assert run.steps.read_text().splitlines() == ["step,loss,prediction_loss", "1,0.5,0.5", "2,0.25,0.125", "3,2.0,3.0"]


def test_a_torn_header_of_steps_is_written_anew(run_config: Build):
    run = RunFolder(run_config())
    run.steps.write_text("step,lo")  # when the process died
    run.rewind_metrics(-1)
    run.append_steps(1, {"loss": [0.5]})
    assert run.steps.read_text().splitlines() == ["step,loss", "1,0.5"]


def test_a_line_of_metrics_that_cannot_be_written_is_one_line(run_config: Build):
    run = RunFolder(run_config())
    run.metrics.mkdir()
    with pytest.raises(HartError, match=r"metrics.jsonl: cannot be written .*to continue from the last checkpoint"):
        run.append_metrics({"step": 1})
