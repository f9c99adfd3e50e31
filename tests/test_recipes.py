"""The recipe for one GPU, run with a tiny base on the CPU, and its estimated cost on the intended GPU."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hart.data.distractors import read_distractors
from hart.training.config import load
from hart.training.estimate import estimate
from hart.training.gpus import GPUS

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes" / "one_gpu" / "train_and_publish.sh"
TINY = (
    "--model.decoder_layers 1 --model.dtype float32 --training.bf16 false --training.optimizer adamw "
    "--training.max_steps 2 --training.batch_size 4 --training.micro_batch_size 4 --training.warmup_steps 0 "
    "--training.num_workers 0 --data.num_demonstrations 1"
)


def run(cwd: Path, data: Path, *words: str, extra: str, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": sys.executable, "DATA": str(data), "EXTRA": extra, **settings}
    return subprocess.run(
        ["bash", RECIPE, *words], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )


def test_the_recipe_goes_from_a_config_to_a_scored_model(tiny_base_dir: Path, toy_data_dir: Path, tmp_path: Path):
    config = str(ROOT / "configs" / "t5-small" / "hart_causal_sni.yaml")
    tiny = f"{TINY} --model.base {tiny_base_dir}"
    data = Path(shutil.copytree(toy_data_dir, tmp_path / "data"))
    lists = {name: data / "splits" / "default" / f"{name}_tasks.txt" for name in ("train", "test")}
    *train, moved = lists["train"].read_text().split()
    lists["train"].write_text("\n".join(train))
    with lists["test"].open("a") as file:
        file.write(f"\n{moved}\n")  # diagnostics compare two tasks
    done = run(tmp_path, data, config, extra=tiny, TEST="--max-instances 2")
    assert done.returncode == 0, done.stderr
    made = tmp_path / "runs" / "t5-small" / "hart_causal_sni"
    results = json.loads((made / "results.json").read_text())
    assert results["overall"] and results["diagnostics"]
    assert "Give NAME/MODEL as second word to upload it" in done.stdout
    # The same command again trains and scores nothing; what does not fit is not begun.
    before = (made / "results.json").stat().st_mtime_ns, (made / "metrics.jsonl").read_text()
    assert run(tmp_path, data, config, extra=tiny).returncode == 0
    assert before == ((made / "results.json").stat().st_mtime_ns, (made / "metrics.jsonl").read_text())
    large = "--training.micro_batch_size 128"
    refused = run(tmp_path, data, config, extra=large, GPU="rtx-3090")
    assert refused.returncode == 1 and "does not fit into 23 GiB" in refused.stdout


@pytest.mark.parametrize("size", ["t5-small", "t5-base", "flan-t5-base"])
def test_the_rungs_fit_into_a_card_of_16_gb(size: str) -> None:
    config = load(ROOT / "configs" / size / "hart_causal_sni.yaml")
    assert estimate(config).total_memory < 12
    older = config.changed(training={"bf16": False, "micro_batch_size": 1})
    assert estimate(older).total_memory < GPUS["t4"].memory


def test_the_distractors_of_mini_base_are_what_their_recipe_writes(tmp_path: Path) -> None:
    """Two for each combination that is trained on, and those that are held out."""
    recipe, found = ROOT / "recipes" / "mini_base" / "distractors.py", tmp_path / "found.txt"
    subprocess.run([sys.executable, str(recipe), str(found)], check=True)
    kept = recipe.with_suffix(".txt")
    assert found.read_text(encoding="utf-8") == kept.read_text(encoding="utf-8")
    trained, held_out = read_distractors(kept)
    assert (len(trained), len(held_out)) == (560, 62)
