"""The load test of benches/, short: no request is lost or gets the answer of another task."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "benches" / "serving_load.py"


def test_every_reply_is_that_of_its_own_task(tmp_path: Path) -> None:
    pytest.importorskip("psutil")
    words = [
        "--clients",
        "20",
        "--seconds",
        "2",
        "--tasks",
        "6",
        "--queries",
        "3",
        "--output",
        str(tmp_path / "r.json"),
    ]
    done = subprocess.run([sys.executable, str(BENCH), *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))["results"]
    for way, found in results.items():
        outcomes = found["outcomes"]
        assert outcomes["sent"] == outcomes["right"] > 20 and outcomes["wrongly adapted"] == 0, (way, outcomes)
        assert found["exit_status"] == 0
    assert results["mixing"]["tasks_per_batch"] > 1.5
    assert results["one task per batch"]["tasks_per_batch"] == 1.0
