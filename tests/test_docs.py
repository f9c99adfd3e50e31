"""Names in the documentation exist: fields, defaults, files, functions, modules, texts of the models."""

import ast
import re
from pathlib import Path

import pytest
import yaml

from hart import Demonstration, Task
from hart.data.procedural import load_procedural
from hart.data.prompts import render_task
from hart.hypernetwork.schemes.base import SCHEMES
from hart.peft.base import KINDS
from hart.training.config import SECTIONS, RunConfig, load
from hart.training.run_folder import FREE_FIELDS

REPOSITORY = Path(__file__).resolve().parents[1]
DOCS = REPOSITORY / "docs"
PAGES = (
    "architecture.md",
    "concepts.md",
    "deploying.md",
    "paper_map.md",
    "data.md",
    "own_tasks.md",
    "mini.md",
    "configuration.md",
    "performance.md",
    "scaling.md",
    "systems.md",
    "figures.md",
    "serving.md",
    "studies.md",
    "../README.md",
    "../CONTRIBUTING.md",
)

# `src/hart/training/losses.py:ConsistencyState.loss`, or the file alone.
PLACE = re.compile(r"`((?:src|tests|configs|recipes|benches|deploy)/[\w./-]+)(?::([\w.]+))?`")
# | `section.field` | `default` |
FIELD_ROW = re.compile(r"^\| `(\w+\.\w+)` \| `(.*?)` \|", re.MULTILINE)


def read(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def defined(path: Path) -> set[str]:
    """Names a Python file defines: functions, classes, their members with a dot, assigned names."""
    names: set[str] = set()

    def collect(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(prefix + node.name)
            if isinstance(node, ast.ClassDef):
                collect(node.body, f"{node.name}.")
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            names.update(prefix + target.id for target in targets if isinstance(target, ast.Name))

    collect(ast.parse(path.read_text(encoding="utf-8")).body, "")
    return names


@pytest.mark.parametrize("page", PAGES)
def test_every_place_that_is_named_exists(page: str) -> None:
    wrong = []
    for file, name in PLACE.findall(read(page)):
        path = REPOSITORY / file
        if not path.exists() or (name and name not in defined(path)):
            wrong.append(f"{file}:{name}" if name else file)
    assert not wrong


def test_the_paper_map_names_places() -> None:
    """The pattern above must not silently match nothing."""
    places = PLACE.findall(read("paper_map.md"))
    assert {file.split("/")[0] for file, _ in places} >= {"src", "tests"}
    assert any(name for _, name in places)


def test_every_field_is_documented_with_its_default() -> None:
    defaults = {
        f"{section}.{name}": value
        for section, values in RunConfig().to_dict().items()
        for name, value in values.items()
    }
    fields = {f"{section.section}.{name}" for section in SECTIONS for name in section.model_fields}
    rows = FIELD_ROW.findall(read("configuration.md"))
    assert len(rows) == len({name for name, _ in rows})
    documented = {name: yaml.safe_load(default) for name, default in rows}
    assert documented.keys() == fields
    assert documented == defaults


def test_every_option_of_kinds_and_schemes_is_documented() -> None:
    text = read("configuration.md")
    kinds = {(name, key): value for name, kind in KINDS.items() for key, value in vars(kind()).items()}
    for (name, option), default in kinds.items():
        shown = f"[{', '.join(default)}]" if isinstance(default, list) else default
        assert f"| `{name}` | `{option}` | `{shown}` |" in text
    for name, scheme in SCHEMES.items():
        assert f"| `{name}` |" in text
        for option in scheme.options():
            assert f"| `{name}` | `{option}` |" in text


def test_the_fields_that_may_change_are_listed() -> None:
    (sentence,) = re.findall(r"These fields may change,(.*?)\.\s", read("configuration.md"), re.DOTALL)
    assert set(re.findall(r"`(\w+\.\w+)`", sentence)) == FREE_FIELDS


def test_every_configuration_is_listed_and_loads() -> None:
    text = read("configuration.md")
    # accelerate/ and deepspeed/ hold files of those tools, studies/ lists of rows.
    for path in (REPOSITORY / "configs").rglob("*.yaml"):
        if not {"accelerate", "deepspeed", "studies"} & set(path.parts):
            load(path)
            assert f"`{path.relative_to(REPOSITORY).as_posix()}`" in text


def test_every_module_has_a_row_in_the_architecture() -> None:
    text = read("architecture.md")
    tops = {path.relative_to(REPOSITORY / "src" / "hart").parts[0] for path in (REPOSITORY / "src/hart").rglob("*.py")}
    modules = {top.removesuffix(".py") for top in tops} - {"__init__"}
    assert [name for name in sorted(modules) if f"`{name}`" not in text] == []


def test_texts_of_the_models_are_the_real_ones() -> None:
    """The shown inputs of the hypernetwork are what the code renders, white space included."""
    shown = "procedural_keep_fruit_then_plus"
    (task,) = (task for task in load_procedural("train", max_instances=1) if task.name == shown)
    assert f"```text\n{render_task(task)}```" in read("architecture.md")
    custom = Task(
        "Write the words of the input in reverse order.",
        [Demonstration("red dog", "dog red", "dog comes last."), Demonstration("a b c", "c b a")],
    )
    assert f"```text\n{render_task(custom)}```" in read("data.md")
