"""Fixtures for the command line: a tiny trained model, a data folder, and a way to run commands."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from hart import HartModel
from hart.cli import main, predict
from hart.model.main_model import MainModel
from hart.training.config import DataConfig, ModelConfig

LENGTHS = {"max_demonstrations_length": 256, "max_query_length": 64, "max_target_length": 8}


@dataclass
class Result:
    status: int
    out: str
    err: str


Run = Callable[..., Result]
Refused = Callable[..., str]


@pytest.fixture(autouse=True)
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands choose the CPU, as the tests' own models do, so that both give the same numbers."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


@pytest.fixture
def hart(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process."""

    def run(*words: str | Path) -> Result:
        capsys.readouterr()
        status = main([str(word) for word in words])
        captured = capsys.readouterr()
        return Result(status, captured.out, captured.err)

    return run


@pytest.fixture
def ok(hart: Run) -> Callable[..., str]:
    """Run a command that must work without a word on stderr; gives what it printed."""

    def run(*words: str | Path) -> str:
        result = hart(*words)
        assert (result.status, result.err) == (0, "")
        return result.out

    return run


@pytest.fixture
def refused(hart: Run) -> Refused:
    """Run a command that must be refused as a mistake of the user; gives the one line that says why."""

    def run(*words: str | Path) -> str:
        result = hart(*words)
        assert result.status == 2
        assert result.out == ""
        (line,) = result.err.splitlines()
        assert line.startswith("hart: error: ")
        return line

    return run


def task_json(number: int) -> dict[str, Any]:
    """A small task as S-NI writes them."""
    words = ["one", "two", "three", "four", "five"]
    examples = [{"input": f"{w} {number}", "output": f"{number} {w}", "explanation": "Swapped."} for w in words[:2]]
    return {
        "Categories": ["Even" if number % 2 == 0 else "Odd"],
        "Definition": [f"Swap the word and the number {number}."],
        "Positive Examples": examples,
        "Instances": [{"id": w, "input": f"{w} {number}", "output": [f"{number} {w}", w]} for w in words],
    }


def write_sni(folder: Path) -> Path:
    """A data folder in the official layout: tasks 0 to 2 for training, 3 and 4 for testing."""
    (folder / "tasks").mkdir(parents=True)
    (folder / "splits" / "default").mkdir(parents=True)
    for number in range(5):
        (folder / "tasks" / f"task{number}.json").write_text(json.dumps(task_json(number)), encoding="utf-8")
    for split, numbers in (("train", range(3)), ("test", range(3, 5))):
        names = "".join(f"task{number}\n" for number in numbers)
        (folder / "splits" / "default" / f"{split}_tasks.txt").write_text(names, encoding="utf-8")
    return folder


@pytest.fixture
def sni_dir(tmp_path: Path) -> Path:
    """A data folder of this test's own, to be damaged at will."""
    return write_sni(tmp_path / "sni")


@pytest.fixture
def config_file(tmp_path: Path, sni_dir: Path, tiny_base_dir: Path) -> Path:
    """Four steps on `sni_dir`; the run's folder is `run` beside the file."""
    config = {
        "model": {"base": str(tiny_base_dir), "decoder_layers": 2, "peft": [{"kind": "prefix", "length": 4}]},
        "data": {"collection": "sni", "dir": str(sni_dir), **LENGTHS},
        "training": {
            "output_dir": str(tmp_path / "run"),
            "max_steps": 4,
            "batch_size": 2,
            "optimizer": "adamw",
            "log_every": 1,
            "save_every": 2,
            "trackers": [],
        },
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory, tiny_base_dir: Path) -> Path:
    """A saved HART model, untrained; tests only read it."""
    folder = tmp_path_factory.mktemp("models") / "tiny-hart"
    model = ModelConfig(base=str(tiny_base_dir), decoder_layers=2, peft=[{"kind": "prefix", "length": 4}])
    HartModel.from_config(model, DataConfig(**LENGTHS)).save_pretrained(folder)
    return folder


@pytest.fixture
def task_file(tmp_path: Path) -> Path:
    path = tmp_path / "custom.json"
    path.write_text(json.dumps(task_json(7)), encoding="utf-8")
    return path


@pytest.fixture
def adaptation_dir(tmp_path: Path, model_dir: Path, task_file: Path, ok: Callable[..., str]) -> Path:
    folder = tmp_path / "adapted"
    ok("adapt", model_dir, "--task", task_file, "--output-dir", folder)
    return folder


@pytest.fixture
def p3_model(tiny_base_dir: Path, tmp_path: Path) -> Path:
    """A model that reads prompts, as one trained on P3."""
    data = DataConfig(
        collection="p3", demonstrations="sampled", num_demonstrations=4, max_query_length=64, max_target_length=8
    )
    model = HartModel.from_config(ModelConfig(base=str(tiny_base_dir), decoder_layers=1), data)
    model.save_pretrained(tmp_path / "p3-model")
    return tmp_path / "p3-model"


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    """An input file of three queries."""
    path = tmp_path / "queries.jsonl"
    lines = [{"input": "one 7"}, {"input": "a longer query than the others"}, {"input": "Größe 7", "id": 3}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def interrupted_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Each answer is the number of its query; the user stops the command after some."""

    def stop_after(chunks: int) -> None:
        monkeypatch.setattr(predict, "CHUNK", 1)
        done: list[str] = []

        def generate(_: MainModel, rows: list[list[int]], *__: object, **___: object) -> list[str]:
            if len(done) == chunks:
                raise KeyboardInterrupt
            done.append(f"answer {len(done)}")
            return done[-1:]

        monkeypatch.setattr(MainModel, "generate", generate)

    return stop_after
