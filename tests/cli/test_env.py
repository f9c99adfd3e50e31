"""hart env: the table, and the same as JSON, without torch."""

import json
import subprocess
import sys

import pytest
import torch

from hart.runtime import environment as module


def test_rows_and_json_say_the_same(ok, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "sesame")
    rows = dict(line.split("  ", 1) for line in ok("env").splitlines())
    rows = {name.strip(): value.strip() for name, value in rows.items()}
    text = ok("env", "--json")
    found = json.loads(text)
    for name, version in found["packages"].items():
        assert rows[name] == (version or "–")
    assert found["torch"]["version"] == torch.__version__ and rows["torch works"].startswith("yes")
    assert "sesame" not in text + str(rows) and rows["HF_TOKEN"] == found["environment"]["HF_TOKEN"] == module.HIDDEN


def test_a_problem_with_torch_has_its_row(ok, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_torch", lambda seconds: {"problem": "is not installed"})
    assert "torch works" in ok("env") and "no: is not installed" in ok("env")


def test_torch_is_imported_by_another_process_alone() -> None:
    code = (
        "import sys\nfrom hart.cli import main\nassert main(['env']) == 0\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=120)
