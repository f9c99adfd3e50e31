"""`hart bench` as a user calls it, at the smallest size."""

import json
from pathlib import Path

import pytest

from hart.cli import main
from hart.cli.bench import NAMES

TINY = ("--shape", "tiny", "--tokens", "32", "--repeats", "1", "--device", "cpu")


def test_names_are_those_of_the_benchmarks() -> None:
    from hart.benchmarks import benchmarks

    assert tuple(benchmarks()) == NAMES


def test_figures_are_printed_and_added_to_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bench.json"
    assert main(["bench", "steps", *TINY, "--output", str(path)]) == 0
    assert main(["bench", "mixed-tasks", "prefix", *TINY, "--batch", "2", "--output", str(path)]) == 0
    figures = json.loads(path.read_text(encoding="utf-8"))["figures"]
    assert list(figures) == [
        "autoregressive steps with cache, all heads, 6 layers, batch 1",
        "32 queries of 16 tasks in one batch",
        "main model with prefixes, forward, batch 2",
        "main model with prefixes, generate, batch 2",
    ]
    for figure in figures.values():
        assert figure["value"] > 0 and figure["met"] in (True, False) and figure["limit"]
        assert figure["settings"]["shape"] == "tiny" and figure["environment"]["torch"]
        for variant in figure["variants"].values():
            assert variant.keys() == {"seconds", "gflop", "peak_mib"} and min(variant.values()) > 0
    assert "without cache" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name", ["hypernetwork", "training", "in-context", "half", "lora", "prefix-peft", "decoder-only"]
)
def test_every_other_benchmark_runs(name: str, tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    assert main(["bench", name, *TINY, "--batch", "1", "--output", str(path)]) == 0
    assert json.loads(path.read_text(encoding="utf-8"))["figures"]


def test_growth_draws_its_picture(tmp_path: Path) -> None:
    assert main(["bench", "growth", *TINY, "--plots", str(tmp_path)]) == 0
    assert "<svg" in (tmp_path / "growth.svg").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["speed"], "no benchmark 'speed'; choose from hypernetwork"),
        (["steps", "--shape", "t5-huge"], "--shape: no size 't5-huge'; choose from tiny"),
        (["prefix-peft", "--shape", "t5-small"], "PEFT's prefixes need heads · d_kv equal to d_model"),
        (["steps", "--repeats", "0"], "must be a whole number of at least 1, not '0'"),
        (["steps", "--output", "."], "is a folder; give the path of a file"),
    ],
)
def test_mistakes_are_told_in_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *words]) == 2
    error = capsys.readouterr().err
    assert message in error.splitlines()[-1] and "Traceback" not in error


def test_a_file_of_something_else_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "other.json"
    path.write_text("[1]", encoding="utf-8")
    assert main(["bench", "steps", *TINY, "--output", str(path)]) == 2
    assert "is not a file of hart bench" in capsys.readouterr().err
    assert path.read_text(encoding="utf-8") == "[1]"
