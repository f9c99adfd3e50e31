"""The notebooks: executed as committed, without traces of the executing machine."""

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
OF_A_MACHINE = re.compile(
    r"(?<![\w.:/-])/(?:home|mnt|opt|private|root|srv|tmp|usr|Users|var|work)/|\b[A-Z]:\\\\|\d{4}-\d\d-\d\d"
)
"""Absolute paths, and dates."""

by_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path: Path) -> list[dict[str, Any]]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def test_there_are_notebooks() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["adapt_and_serve", "look_inside", "own_tasks"]


@by_notebook
def test_committed_notebooks_are_executed_from_top_to_bottom(path: Path) -> None:
    cells = code_cells(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    kinds = [output["output_type"] for cell in cells for output in cell["outputs"]]
    assert len(kinds) > len(cells) / 2 and "error" not in kinds
    # Warnings and progress bars are of the moment.
    assert all(output.get("name") != "stderr" for cell in cells for output in cell["outputs"])


@by_notebook
def test_committed_notebooks_are_small_and_of_no_machine(path: Path) -> None:
    assert path.stat().st_size < 150_000
    for cell in code_cells(path):
        for output in cell["outputs"]:
            texts = {**output.get("data", {}), "text": output.get("text", "")}
            shown = "".join("".join(text) for kind, text in texts.items() if not kind.startswith("image/"))
            assert OF_A_MACHINE.search(shown) is None, shown


@by_notebook
def test_notebooks_run_in_a_fresh_kernel(path: Path) -> None:
    """About a minute of one core each; `execute` raises what a cell raises."""
    for module in ("nbclient", "nbformat", "ipykernel"):
        pytest.importorskip(module, reason=f"needs {module}: pip install 'hart-hypernet[notebooks]'")
    spec = importlib.util.spec_from_file_location("notebooks", REPOSITORY / "docs" / "site" / "notebooks.py")
    assert spec is not None and spec.loader is not None
    notebooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(notebooks)
    executed = notebooks.execute(path)
    assert [cell["execution_count"] for cell in executed.cells if cell["cell_type"] == "code"] == [
        cell["execution_count"] for cell in code_cells(path)
    ]
