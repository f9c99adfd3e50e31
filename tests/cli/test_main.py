"""The whole command: help, version, exit status, messages of libraries."""

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hart as package
from hart import HartError, cli
from hart.cli import adapt, evaluate, main, predict, train
from hart.cli.options import select_device

MODULES = {"train": train, "evaluate": evaluate, "adapt": adapt, "predict": predict}


def in_a_process(*words: str | Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-m", "hart", *map(str, words)], capture_output=True, text=True, env=environment, timeout=120
    )


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"hart {package.__version__}\n"


@pytest.mark.parametrize("command", [*MODULES, "quickstart"])
def test_help_of_each_command_ends_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert f"hart {command}" in capsys.readouterr().out.partition("example")[2]


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    out = capsys.readouterr().out
    listed = set(re.findall(r"^    ([a-z]+)\b", out, re.MULTILINE))
    assert listed == {each.__name__.rpartition(".")[2] for each in cli.COMMANDS}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "COMMAND"),
        (["trian"], "trian"),
        (["adapt", "somewhere"], "--output-dir"),
        (["predict", "somewhere"], "--input"),
        (["evaluate", "somewhere", "--data", "imagenet"], "imagenet"),
        (["evaluate", "somewhere", "--data", "sni", "--max-instances", "0"], "at least 1"),
        (["predict", "a", "--input", "x", "--input-file", "y"], "not allowed with"),
        (["adapt", "somewhere", "--output-dir", "a", "--max_steps", "3"], "--max_steps"),
    ],
)
def test_words_that_no_command_takes(words: list[str], told: str, refused) -> None:
    assert told in refused(*words)


def test_no_model_for_a_system_that_needs_one(refused) -> None:
    assert "MODEL" in refused("evaluate", "--data", "procedural")


@pytest.mark.parametrize("device", ["tpu", "cuda", "cuda:999", "meta"])
def test_wrong_device(device: str, adaptation_dir: Path, model_dir: Path, tmp_path: Path, refused) -> None:
    for words in (
        ("predict", adaptation_dir, "--input", "one 7"),
        ("adapt", model_dir, "--definition", "Swap.", "--demonstration", "a", "b", "--output-dir", tmp_path / "new"),
        ("evaluate", model_dir, "--data", "procedural"),
    ):
        line = refused(*words, "--device", device)
        assert "--device" in line and device in line
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("device", ["tpu", "cuda"])
def test_wrong_device_for_training(device: str, config_file: Path, tmp_path: Path, refused) -> None:
    line = refused("train", config_file, "--device", device)
    assert "--device" in line and device in line
    assert not (tmp_path / "run").exists()


def test_choice_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert select_device(None) == torch.device("cpu")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert select_device(None) == torch.device("cuda")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert select_device(None) == torch.device("cuda:1"), "one of several processes"
    assert select_device("cuda:1") == torch.device("cuda:1")
    assert select_device("cpu") == torch.device("cpu")
    with pytest.raises(HartError, match="cuda:2.*finds 2 GPUs"):
        select_device("cuda:2")


def test_an_option_is_no_text_and_a_misspelt_one_is_named(refused, model_dir: Path, tmp_path: Path) -> None:
    adapt = ("adapt", model_dir, "--definition", "Do.", "--output-dir", tmp_path / "a")
    assert "--demonstration takes 2 texts, and the option --overwrite follows after 1 of them" in refused(
        *adapt, "--demonstration", "apple saw", "--overwrite"
    )
    assert "--definition takes a text, and the option --task follows after 0 of them" in refused(
        "adapt", model_dir, "--definition", "--task", "t.json", "--output-dir", tmp_path / "a"
    )
    assert "unrecognized arguments: --overwite; did you mean --overwrite? (see hart adapt --help)" in refused(
        *adapt, "--overwite"
    )
    told = refused("tasks", "check", tmp_path, "--definition", "x")
    assert "unrecognized arguments: --definition" in told and "did you mean" not in told
    assert "unrecognized arguments: words (see hart adapt --help)" in refused(*adapt, "words")
    assert not (tmp_path / "a").exists()


def test_what_a_command_works_on_is_given_once(refused, model_dir: Path, adaptation_dir: Path, tmp_path: Path) -> None:
    """Of two the last alone would count, without a word."""
    predict, query = ("predict", adaptation_dir), ("--input", "apple")
    make = ("tasks", "make", "t.csv", "--output-dir", tmp_path / "own")
    for words, option in (
        ((*predict, *query), query),
        (predict, ("--input-file", "a.csv")),
        ((*predict, *query), ("--choices", "a,b")),
        (("adapt", model_dir, "--output-dir", tmp_path / "a"), ("--task", "t.json")),
        (("adapt", model_dir, "--output-dir", tmp_path / "a"), ("--definition", "Do.")),
        (make, ("--definition", "Do.")),
    ):
        told = refused(*words, *option, *(() if option == query else option))
        assert f"argument {option[0]}: is given twice; give it once" in told


def test_interruption(hart, config_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hart.training.train.train", interrupted)
    result = hart("train", config_file)
    assert result.status == 130
    (line,) = result.err.split("\n")[1:-1]  # the first is what the terminal shows of the key
    assert line.startswith("hart: interrupted; the same command continues")


def test_our_warnings_are_shown_once_in_one_line(hart, adaptation_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class OfALibrary(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.name.startswith("hart"):
                print("once more", file=sys.stderr)

    def warn(*_: object) -> None:
        logging.getLogger("hart.data.prompts").warning("left out\ndemonstration %d", 2)
        logging.getLogger("hart.training.train").info("the run is complete")
        logging.getLogger("transformers.anything").warning("noise")

    monkeypatch.setattr(predict, "_refuse_what_has_no_use", warn)
    monkeypatch.setattr(logging.getLogger(), "handlers", [OfALibrary()])
    result = hart("predict", adaptation_dir, "--input", "one 7")
    assert result.status == 0 and logging.getLogger("hart").propagate
    assert result.err == "hart: warning: left out demonstration 2\nhart: the run is complete\n"
    assert not any(isinstance(handler, cli._Terminal) for handler in logging.getLogger("hart").handlers)


def test_a_defect_of_ours_is_not_hidden(hart, adaptation_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(predict, "_refuse_what_has_no_use", fail)
    with pytest.raises(ZeroDivisionError):
        hart("predict", adaptation_dir, "--input", "one 7")


def test_commands_import_torch_only_when_they_run() -> None:
    # The package is stood in for, so that this is about the command line alone.
    code = """
import sys, types
package = types.ModuleType("hart")
package.__path__ = [sys.argv[1]]
sys.modules["hart"] = package
from hart.cli import main
try:
    main(["train", "--help"])
finally:
    print(sorted({"torch", "transformers", "rich", "numpy"} & sys.modules.keys()), file=sys.stderr)
"""
    folder = Path(cli.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "[]\n")


def test_the_end_of_a_refused_process(tmp_path: Path) -> None:
    done = in_a_process(
        "adapt", tmp_path / "absent", "--task", tmp_path / "absent.json", "--output-dir", tmp_path / "a"
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("hart: error: ") and done.stderr.count("\n") == 1


def test_the_end_of_a_good_process(adaptation_dir: Path, ok) -> None:
    words = ("predict", adaptation_dir, "--input", "one 7")
    done = in_a_process(*words)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == ok(*words)


def test_a_reader_that_goes_away(adaptation_dir: Path, tmp_path: Path) -> None:
    queries = tmp_path / "queries.jsonl"
    queries.write_text('{"input": "one 7"}\n', encoding="utf-8")
    command = [sys.executable, "-m", "hart", "predict", adaptation_dir, "--input-file", queries]
    # A pipe that nobody reads any more.
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


def test_serve_takes_a_base_and_a_token_that_begins_with_a_dash(
    model_dir: Path, tmp_path: Path, hart, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("fastapi")
    loaded: list[object] = []

    def load(name: str, *, base: str | None, **_: object) -> None:
        loaded.append(base)
        raise HartError("that is all")

    monkeypatch.setattr(package.HartModel, "from_pretrained", load)
    words = ("--token", "--secret", "--base", "elsewhere", "--port", "0", "--store", tmp_path / "store")
    assert "that is all" in hart("serve", model_dir, *words).err and loaded == ["elsewhere"]
