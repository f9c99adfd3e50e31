"""The bug report: installed versions, no secrets, and a torch that does not work."""

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from hart.runtime import environment as module
from hart.runtime.environment import HIDDEN, PACKAGES, environment, variables

REPOSITORY = Path(__file__).resolve().parents[2]


def test_versions_and_devices_are_those_of_this_process() -> None:
    found = environment()
    assert found["python"] == {"version": platform.python_version(), "executable": sys.executable}
    assert set(found["packages"]) == set(PACKAGES) and found["packages"]["torch"] == version("torch")
    assert found["torch"]["version"] == torch.__version__
    assert found["torch"]["gloo"] == torch.distributed.is_gloo_available()
    assert len(found["torch"]["gpus"]) == (torch.cuda.device_count() if torch.cuda.is_available() else 0)
    assert found["caches"]["hart"] == os.environ["HART_CACHE"]
    assert json.loads(json.dumps(found)) == found


def test_variables_that_matter_are_told_and_secrets_never() -> None:
    given = {
        "HF_HOME": "/cache",
        "OMP_NUM_THREADS": "2",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_TOKEN": "hf_abcdefghijkl",
        "HUGGINGFACE_HUB_TOKEN": "x",
        "HART_TOKEN": "sesame",
        "HF_ENDPOINT": "https://me:sesame@hub.example",
        "HART_NOTE": "hf_abcdefghijklmnop",
        "AWS_SECRET_ACCESS_KEY": "sesame",
        "HOME": "/home/me",
        "RANK": "0",
    }
    hidden = dict.fromkeys(["HF_TOKEN", "HUGGINGFACE_HUB_TOKEN", "HART_TOKEN", "HF_ENDPOINT", "HART_NOTE"], HIDDEN)
    told = {name: given[name] for name in ("HF_HOME", "OMP_NUM_THREADS", "TOKENIZERS_PARALLELISM", "RANK")}
    assert variables(given) == hidden | told


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("raise OSError('libcudart.so.13: cannot open')", "cannot be imported (OSError: libcudart.so.13: cannot open)"),
        ("import os; os._exit(139)", "cannot be imported (its process ended with status 139)"),
        ("import time; time.sleep(60)", "could not be imported within 2 seconds"),
    ],
)
def test_a_broken_torch_is_told(text: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch.py").write_text(text, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert environment(seconds=2 if "sleep" in text else 60)["torch"] == {"problem": told}


def test_no_torch_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "version_of", lambda name: None)
    found = environment()
    assert found["torch"] == {"problem": "is not installed"} and found["hart"]["version"] is None


def test_the_commit_is_that_of_hart_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if (REPOSITORY / ".git").exists():
        words = ["git", "-C", str(REPOSITORY), "rev-parse", "HEAD"]
        whole = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        assert whole.startswith(str(module._commit()).removesuffix("-dirty"))
    # Installed in an environment inside a repository of something else.
    package = tmp_path / "venv" / "lib" / "hart"
    package.mkdir(parents=True)
    (tmp_path / "venv" / ".git").mkdir()
    monkeypatch.setattr(module, "_package", lambda: package)
    assert module._commit() is None
