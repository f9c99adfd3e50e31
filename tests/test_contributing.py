"""The examples of CONTRIBUTING.md run as they stand there."""

import json
import os
import re
import runpy
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from hart import HartModel, Instance, Task
from hart.cli import main
from hart.data.config import DataConfig
from hart.hypernetwork.schemes.base import SCHEMES
from hart.peft.base import KINDS
from hart.runtime.extensions import load_extensions
from hart.training.config import RunConfig
from hart.training.train import train

TEXT = (Path(__file__).resolve().parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^( *)```python\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
EXAMPLES = [re.sub(rf"^{indent}", "", code, flags=re.MULTILINE) for indent, code in BLOCK.findall(TEXT)]


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], Path]]:
    """Write the one example with this text into a module of this name; what it registers is gone after the test."""
    monkeypatch.syspath_prepend(tmp_path)
    before, modules = [(registry, {*registry}) for registry in (SCHEMES, KINDS)], {*sys.modules}

    def write(text: str, name: str) -> Path:
        (code,) = [each for each in EXAMPLES if text in each]
        path = tmp_path / f"{name}.py"
        path.write_text(code, encoding="utf-8")
        return path

    yield write
    for registry, names in before:
        for name in {*registry} - names:
            del registry[name]
    for name in {"pooled", "shift", "sums"} - modules:
        sys.modules.pop(name, None)
    load_extensions.cache_clear()


def imported(path: Path) -> ModuleType:
    return import_module(path.stem)


def test_a_scheme_and_a_kind_need_only_be_imported(
    example: Callable[[str, str], Path], run_config: Callable[..., RunConfig]
) -> None:
    imported(example("class Pooled", "pooled"))
    imported(example("class Shift", "shift"))
    config = run_config(model={"scheme": {"name": "pooled"}, "peft": [{"kind": "shift"}]}, max_steps=2)
    model = HartModel.from_pretrained(train(config, quiet=True))
    adaptation = model.adapt(Task("Copy.", [("a", "a"), ("b", "b")]))
    assert [*adaptation.blocks] == ["shift.encoder.ff", "shift.decoder.ff"]
    assert all(block.any() for block in adaptation.blocks.values())


def test_the_command_takes_a_scheme_of_ones_own(
    example: Callable[[str, str], Path],
    run_config: Callable[..., RunConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    example("class Pooled", "pooled")
    script = example("command()", "mine")
    run_config(max_steps=1).save(tmp_path / "run.yaml")
    words = ["train", str(tmp_path / "run.yaml"), "--model.scheme", "{name: pooled}"]
    monkeypatch.setattr(sys, "argv", [str(script), *words])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    assert ended.value.code == 0
    assert (tmp_path / "run" / "final" / "config.json").is_file()


def test_an_installed_package_needs_no_import(
    example: Callable[[str, str], Path],
    run_config: Callable[..., RunConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The processes of a sweep find its scheme as well; the metadata are those that pip writes."""
    example("class Pooled", "pooled")
    metadata = tmp_path / "pooled-0.1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: pooled\nVersion: 0.1\n", encoding="utf-8")
    entry = re.search(r'entry-points\."(.+)"\]\n(\w+) = "(\w+)"', TEXT)
    assert entry is not None
    (metadata / "entry_points.txt").write_text("[{}]\n{} = {}\n".format(*entry.groups()), encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    load_extensions.cache_clear()
    run_config(max_steps=1).save(tmp_path / "run.yaml")
    words = ["sweep", str(tmp_path / "sweep"), str(tmp_path / "run.yaml"), "--model.scheme", "{name: pooled}"]
    assert main([*words, "--seeds", "0"]) == 0
    (results,) = (tmp_path / "sweep").rglob("results.json")
    assert json.loads(results.read_text())["config"]["model"]["scheme"]["name"] == "pooled"
    assert "pooled" in SCHEMES  # in this process as well, which checked the configuration
    assert HartModel.from_pretrained(results.parent / "run" / "final").hypernetwork.scheme.name == "pooled"


def test_a_collection(example: Callable[[str, str], Path]) -> None:
    sums = imported(example("class Sums", "sums")).Sums()
    tasks = sums.load(DataConfig(max_test_instances=3), "test")
    assert [len(tasks), len(tasks[0].instances)] == [10, 3]
    assert tasks[0].instances[0].references == (str(int(tasks[0].instances[0].input) + 91),)


def test_a_score_of_ones_own(
    example: Callable[[str, str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    definition = "You are given a list of words. Keep only the fruits, then end the answer with the word done."
    shown = [("apple saw pear doctor lime", "apple pear lime done"), ("truck cherry grape black", "cherry grape done")]
    asked = [Instance("plum lion hat banana", ("plum banana done",)), Instance("red lime dog", ("lime tea milk done",))]
    folder = tmp_path / "my-tasks" / "tasks"
    folder.mkdir(parents=True)
    Task(definition, shown, name="fruits", instances=asked).save(folder / "fruits.json")
    runpy.run_path(str(example("def overlap", "overlap")))
    assert capsys.readouterr().out == "fruits 0.75\n"
