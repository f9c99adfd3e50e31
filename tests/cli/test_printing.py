"""Printing on limited terminals and without a reader: results are saved first."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.table import Table

from hart.cli import main, predict
from hart.cli.printing import show
from hart.model.main_model import MainModel


@dataclass
class Printed:
    status: int
    out: bytes
    err: str


@pytest.fixture
def printing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable:
    """Run a command in this process whose standard output is a file, with an encoding, or a given descriptor."""

    def run(*words: str | Path, encoding: str = "utf-8", to: int | None = None) -> Printed:
        capsys.readouterr()
        path = tmp_path / "printed"
        with open(path if to is None else to, "w", encoding=encoding, closefd=to is None) as out:
            monkeypatch.setattr(sys, "stdout", out)
            status = main([str(word) for word in words])
        return Printed(status, path.read_bytes() if to is None else b"", capsys.readouterr().err)

    return run


@pytest.fixture
def unread() -> Iterator[int]:
    """The end of a pipe whose other end is closed."""
    read, write = os.pipe()
    os.close(read)
    yield write
    os.close(write)


def evaluation(sni_dir: Path, *words: str | Path) -> tuple[str | Path, ...]:
    return ("evaluate", "--data", "sni", "--data-dir", sni_dir, "--system", "copy-input", *words)


def test_results_are_saved_though_nobody_reads(sni_dir: Path, tmp_path: Path, printing, unread: int) -> None:
    results = tmp_path / "results.json"
    done = printing(*evaluation(sni_dir, "--output", results), to=unread)
    assert (done.status, done.err) == (1, "")
    assert json.loads(results.read_text(encoding="utf-8"))["system"] == "copy-input"


def test_an_adaptation_is_saved_though_nobody_reads(
    model_dir: Path, task_file: Path, tmp_path: Path, printing, unread: int
) -> None:
    done = printing("adapt", model_dir, "--task", task_file, "--output-dir", tmp_path / "a", to=unread)
    assert (done.status, done.err) == (1, "")
    assert (tmp_path / "a" / "adaptation.json").exists()


def test_answers_that_nobody_reads_are_not_made(
    adaptation_dir: Path, tmp_path: Path, printing, unread: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries = tmp_path / "queries.jsonl"
    queries.write_text('{"input": "one 7"}\n' * 3, encoding="utf-8")
    asked: list[int] = []
    monkeypatch.setattr(predict, "CHUNK", 1)
    monkeypatch.setattr(MainModel, "generate", lambda _, rows, *__, **___: asked.append(len(rows)) or ["a"] * len(rows))
    done = printing("predict", adaptation_dir, "--input-file", queries, "--batch-size", "1", to=unread)
    assert (done.status, done.err, asked) == (1, "", [1])


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1"])
def test_a_terminal_that_cannot_show_a_character(sni_dir: Path, tmp_path: Path, encoding: str, printing) -> None:
    (sni_dir / "tasks" / "task3.json").rename(sni_dir / "tasks" / "任务.json")
    (sni_dir / "splits" / "default" / "test_tasks.txt").write_text("任务\ntask4\n", encoding="utf-8")
    results = tmp_path / "résultats 結果.json"
    done = printing(*evaluation(sni_dir, "--output", results), encoding=encoding)
    assert (done.status, done.err) == (0, "")
    out = done.out.decode(encoding)
    assert r"\u4efb\u52a1" in out and "all instances" in out and r"\u7d50\u679c.json" in out
    assert json.loads(results.read_text(encoding="utf-8"))["tasks"][0]["name"] == "任务"


def test_an_error_in_characters_that_cannot_be_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    with io.TextIOWrapper(io.BytesIO(), encoding="ascii") as err:
        monkeypatch.setattr(sys, "stderr", err)
        assert main(["predict", "任务", "--input", "a"]) == 2
        told = b"has no adaptation (adaptation.json is missing); give a folder that hart adapt wrote"
        assert err.buffer.getvalue() == b"hart: error: \\u4efb\\u52a1: " + told + b"\n"


def test_a_folder_whose_name_is_no_text(sni_dir: Path, tmp_path: Path, printing) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    sni_dir.rename(folder)
    results = tmp_path / "results.json"
    done = printing(*evaluation(folder, "--output", results))
    # A configuration is text, so it cannot name such a folder; the message can be printed all the same.
    assert done.status == 2 and not results.exists()
    assert done.err.startswith("hart: error: ") and "bytes that are not UTF-8" in done.err
    assert done.err.count("\n") == 1


def test_an_error_without_a_reader_of_errors(tmp_path: Path, unread: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with open(unread, "w", encoding="utf-8", closefd=False) as err:
        monkeypatch.setattr(sys, "stderr", err)
        assert main(["predict", str(tmp_path / "absent"), "--input", "a"]) == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no device that is always full")
def test_a_full_disk_behind_standard_output(sni_dir: Path, tmp_path: Path, printing) -> None:
    results = tmp_path / "results.json"
    full = os.open("/dev/full", os.O_WRONLY)  # written to only; nothing replaces it
    done = printing(*evaluation(sni_dir, "--output", results), to=full)
    os.close(full)
    assert done.status == 2 and results.exists()
    assert done.err == "hart: error: standard output: cannot be written (No space left on device)\n"


def test_the_end_of_a_process_that_nobody_reads(unread: int) -> None:
    for words, status in ((("--help",), 0), (("evaluate", "--data", "procedural", "--system", "copy-input"), 1)):
        command = [sys.executable, "-m", "hart", *words]
        done = subprocess.run(command, stdout=unread, stderr=subprocess.PIPE, timeout=120)
        assert (done.returncode, done.stderr) == (status, b"")


def test_closed_standard_output(tmp_path: Path) -> None:
    command = f'exec "{sys.executable}" -m hart predict "{tmp_path}" --input "one 7" >&-'
    done = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "has no adaptation" in done.stderr


@pytest.mark.parametrize("columns", ["0", "1", "10", "abc", "-5", "60", "300"])
def test_numbers_are_whole_on_any_width(columns: str, sni_dir: Path, ok, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    out = ok(*evaluation(sni_dir))
    assert out.count("ROUGE-L") == out.count("exact match") == out.count("instances ┃") == 2
    (row,) = (line for line in out.splitlines() if "task3" in line)
    assert [cell.strip() for cell in row.split("│")[1:-1]] == ["task3", "66.67", "0.00", "5"]


def test_a_narrow_terminal_tears_names_not_numbers(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    table = Table("task", "score")
    table.add_row("a_name_that_is_longer_than_the_terminal_is_wide_and_longer", "12.34")
    show(table)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 50 and any("12.34" in line for line in lines)


@pytest.mark.parametrize("command", ["adapt", "evaluate", "predict", "estimate", "train", "sweep"])
def test_help_on_a_narrow_terminal(command: str, hart, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("COLUMNS", "10")
    with pytest.raises(SystemExit) as stop:
        hart(command, "--help")
    assert stop.value.code == 0
