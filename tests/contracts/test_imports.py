"""Imports of commands: a task file needs no torch, and an answer no library of training."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hart import Instance, Task
from hart.data.own_tasks.folder import add_tasks

PLOTS = {"matplotlib", "scipy", "sklearn", "pandas"}
TRAINING = {"tensorboard", "datasets", "matplotlib", "deepspeed", "bitsandbytes", "peft"}
"""Not scipy, which transformers imports where it is installed."""
TORCH = {"torch", "transformers", "tokenizers", "accelerate", "huggingface_hub"}


def imported(code: str, *words: object) -> set[str]:
    """The top-level modules that a process has when it has run `code`, with `words` as its arguments."""
    told = (
        "\nimport json, sys\nsys.stderr.write(chr(10) + json.dumps(sorted({m.partition('.')[0] for m in sys.modules})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code + told, *map(str, words)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stderr.rpartition("\n")[2]))


def hart(*commands: str) -> str:
    """Code that runs commands of the command line; `{}` in them are the arguments in order."""
    lines = ["import sys", "from hart.cli import main", "given = iter(sys.argv[1:])"]
    for command in commands:
        words = ", ".join("next(given)" if word == "{}" else repr(word) for word in command.split())
        lines += ["try:", f"    status = main([{words}])", "except SystemExit as stop:", "    status = stop.code"]
        lines += ["assert not status, status"]
    return "\n".join(lines)


@pytest.mark.parametrize(
    "code",
    [
        "import hart; dir(hart); hart.__version__",
        "from hart import Task, Demonstration, Instance, HartError; Task('Do.', [('a', 'b')])",
        "from hart import Client; Client('http://127.0.0.1:1').close()",
        hart("--help"),
        hart("adapt --help"),
        hart("predict --help"),
    ],
)
def test_the_light_names_and_every_help_import_nothing_heavy(code: str) -> None:
    assert not imported(code) & (TORCH | TRAINING | PLOTS | {"numpy", "pydantic", "rich"})


def test_a_folder_of_tasks_is_checked_without_torch(tmp_path: Path) -> None:
    tasks = [Task("Do.", [("a", "b")], name=name, instances=[Instance("c", ("d",))]) for name in ("one", "two")]
    add_tasks(tmp_path, tasks, testing={"two"}, overwrite=False)
    assert not imported(hart("tasks check {}"), tmp_path) & (TORCH | TRAINING | PLOTS)


def test_a_report_is_made_without_torch() -> None:
    assert not imported("import hart.analysis.report") & (TORCH | TRAINING - {"matplotlib"})


def test_answers_need_nothing_of_training(tmp_path: Path) -> None:
    adapt = "adapt mini --definition Fruits. --demonstration apple apple --output-dir {}"
    found = imported(hart(adapt, "predict {} --input plum"), tmp_path / "a", tmp_path / "a")
    assert "torch" in found and not found & TRAINING


def test_a_server_needs_nothing_of_training() -> None:
    pytest.importorskip("fastapi")
    assert not imported("import hart.serving.app, hart.serving.engine, hart.cli.serve") & TRAINING
