"""Undocumented parts of other libraries: used in one file per library, listed, and still existing."""

import ast
import importlib
import re
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SOURCE = REPOSITORY / "src" / "hart"
# | `torch.Tensor._version` | what for |
ROW = re.compile(r"^\| `((?:torch|transformers|deepspeed|accelerate)[.\w]+)` \| \S", re.MULTILINE)


def listed() -> list[str]:
    return ROW.findall((REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8"))


def exists(name: str) -> bool:
    """Whether modules and attributes along a dotted name are all there."""
    first, *rest = name.split(".")
    found = importlib.import_module(first)
    path = first
    for part in rest:
        path += f".{part}"
        if not hasattr(found, part):
            try:
                importlib.import_module(path)
            except ImportError:
                return False
        found = getattr(found, part)
    return True


def private(path: Path) -> set[str]:
    """Names with a leading underscore that a file takes from objects or modules."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and re.match(r"_[a-z]", node.attr):
            names.add(node.attr)
        elif isinstance(node, ast.ImportFrom) and re.search(r"(^|\.)_[a-z]", node.module or ""):
            names.add(str(node.module))
    return names


def own(path: Path) -> set[str]:
    """Names that a file of hart defines or assigns."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {
        node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.attr if isinstance(node, ast.Attribute) else node.id)
    return names | {"_asdict", "_exit"}  # documented


def test_names_that_others_may_take_away_are_still_there() -> None:
    names = listed()
    assert len(names) >= 10, "the table in docs/architecture.md"
    gone = [name for name in names if not exists(name)]
    assert not gone, f"gone from the library: {gone}; mend src/hart/runtime/third_party and the table"


def test_private_names_are_used_in_one_place_per_library() -> None:
    wrong = {}
    ours = set().union(*map(own, SOURCE.rglob("*.py")))
    for path in SOURCE.rglob("*.py"):
        if "third_party" not in path.parts:
            found = private(path) - ours - {"_reset_state"}  # the last row of the table
            if found:
                wrong[path.relative_to(SOURCE).as_posix()] = sorted(found)
    assert not wrong
