"""hart config: a configuration with all its fields, and the schema."""

import json
import subprocess
import sys
from pathlib import Path

import yaml

from hart.training.config import json_schema, load

TEXT = "training: {max_steps: 7}"


def test_show_prints_every_field(ok, tmp_path: Path) -> None:
    file, again = tmp_path / "run.yaml", tmp_path / "again.yaml"
    file.write_text(TEXT)
    out = ok("config", "show", file, "--model.peft.0.length", "8")
    again.write_text(out)
    assert load(again) == load(file, ["--model.peft.0.length", "8"])
    assert yaml.safe_load(out)["training"]["max_steps"] == 7


def test_schema(ok, tmp_path: Path) -> None:
    assert ok("config", "schema") == json_schema()
    file = tmp_path / "schema.json"
    assert ok("config", "schema", "--output", file) == ""
    assert json.loads(file.read_text(encoding="utf-8")) == json.loads(json_schema())


def test_mistakes(hart, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("training: {max_step: 7}")
    for words, message in {
        ("show", file): "unknown field training.max_step; did you mean training.max_steps?",
        ("show", tmp_path / "absent.yaml"): "no such configuration file",
        ("show",): "required: CONFIG.yaml",
        ("schema", "--training.seed", "1"): "config schema: unknown option --training.seed",
        ("schema", "--output", tmp_path): "is a folder",
        (): "required: {show,schema}",
    }.items():
        result = hart("config", *words)
        assert (result.status, result.out, result.err.count("\n")) == (2, "", 1) and message in result.err


def test_a_wrong_configuration_is_told_before_torch_is_imported(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("training: {max_step: 7}")
    code = f"""
import sys
from hart.cli import main
for command in ("train", "estimate"):
    assert main([command, {str(file)!r}]) == 2
assert main(["config", "show", {str(file)!r}, "--training.max_steps", "1"]) == 2
print(sorted({{"torch", "transformers", "datasets"}} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
