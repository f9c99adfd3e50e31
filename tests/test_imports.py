"""Imports point one way: each module of the package stands on the layers below it only."""

import ast
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "src" / "hart"

# From the ground up. Modules of one layer know nothing of each other; a new top-level module or
# package is given its place here.
LAYERS: list[set[str]] = [
    {"errors"},
    {"runtime"},
    {"peft"},
    {"data", "hypernetwork"},
    {"model"},
    {"evaluation"},
    {"serving", "training"},
    {"analysis", "benchmarks"},
    {"cli"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def modules() -> dict[str, list[Path]]:
    """Top-level module or package of hart -> its files; the package's own __init__ stands above."""
    found: dict[str, list[Path]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        top = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        if top != "__init__":
            found.setdefault(top, []).append(path)
    return found


def imported(tree: ast.AST, package: list[str]) -> set[str]:
    """Top-level modules of hart that a file imports, anywhere in it."""
    names: list[list[str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = base + (node.module.split(".") if node.module else [])
            names += [[*base, alias.name] for alias in node.names]
    # `import hart` alone, or a name from it, would reach around the layers.
    return {name[1] if len(name) > 1 else "" for name in names if name[0] == "hart"}


def test_the_reader_of_imports_sees_every_form() -> None:
    text = """
import hart.a, os
import hart.b.c as x
from hart import d
from hart.e.f import g
from . import h
from ..i import j
from .k import l
def late():
    from hart import m
import hart
"""
    assert imported(ast.parse(text), ["hart", "own"]) == {"a", "b", "d", "e", "own", "i", "m", ""}


def test_every_module_has_a_place() -> None:
    missing = sorted(modules().keys() - LEVEL.keys())
    assert not missing, f"add {missing} to LAYERS in {Path(__file__).name}"


def test_imports_point_down() -> None:
    wrong = []
    for top, paths in modules().items():
        for path in paths:
            package = ["hart", *path.relative_to(SOURCE).parts[:-1]]
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for name in sorted(imported(tree, package) - {top}):
                if LEVEL.get(name, len(LAYERS)) >= LEVEL.get(top, -1):
                    wrong.append(f"{path.relative_to(SOURCE)} imports {name or 'hart itself'}")
    assert not wrong
