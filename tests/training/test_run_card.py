"""The card of a trained model: facts of the run, no paths, and a place for scores."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml

from hart.cli import main
from hart.model.card import CARD_FILE, put_scores
from hart.training.config import RunConfig
from hart.training.train import train


@pytest.fixture
def trained(run_config) -> tuple[RunConfig, Path]:
    config = run_config(seed=3, data={"seed": 5, "validation_tasks": 1}, eval_every=4)
    return config, train(config, quiet=True)


def rows(card: str) -> dict[str, str]:
    return dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", card, re.MULTILINE))


def test_the_card_says_what_the_run_was(trained: tuple[RunConfig, Path], tmp_path: Path) -> None:
    config, final = trained
    card = (final / CARD_FILE).read_text(encoding="utf-8")
    told = rows(card)
    assert told["data"] == "`sni`, from a folder: 2 training tasks, 20 instances"
    assert told["steps"] == "4 of 4, 8 queries each"
    assert told["seeds"] == "training 3, data 5"
    assert f"torch {torch.__version__}" in told["versions"] and "1 processes" in told["hardware"]
    metrics = [json.loads(line) for line in (final.parent / "metrics.jsonl").read_text().splitlines()]
    losses = [row["prediction_loss"] for row in metrics if "prediction_loss" in row]
    assert told["last prediction loss"] == f"{losses[-1]:.3f}"
    (scored,) = [row for row in metrics if "eval_rouge_l" in row]
    assert f"rouge_l {scored['eval_rouge_l']:.2f}" in told["validation tasks, at this step"]
    # The fields that are shown are the run's, but for where things lie.
    shown = yaml.safe_load(re.search(r"```yaml\n(.*?)```", card, re.DOTALL)[1])
    again = RunConfig(**shown)
    wanted = config.to_dict()
    for section, name in (("model", "base"), ("data", "dir"), ("training", "output_dir")):
        wanted[section][name] = Path(wanted[section][name]).name
    assert again.to_dict() == wanted
    assert str(tmp_path) not in card and str(config.data.dir) not in card
    # Nothing is said of the license, but that it must be.
    assert "license:" not in card.partition("# HART")[0] and "## License" in card


def test_an_evaluation_beside_the_model_puts_its_scores_there(trained: tuple[RunConfig, Path], tmp_path: Path) -> None:
    config, final = trained
    before = (final / CARD_FILE).read_text(encoding="utf-8")
    assert "None were measured yet" in before
    words = ["evaluate", str(final), "--data", "sni", "--data-dir", str(config.data.dir)]
    assert main([*words, "--output", str(tmp_path / "elsewhere.json")]) == 0
    assert (final / CARD_FILE).read_text(encoding="utf-8") == before
    for place in (final / "results.json", final.parent / "results.json"):
        assert main([*words, "--output", str(place), "--max-instances", "3"]) == 0
        card = (final / CARD_FILE).read_text(encoding="utf-8")
        overall = json.loads(place.read_text(encoding="utf-8"))["overall"]
        line = f"| sni, test: 1 tasks | 3 | {overall['rouge_l']:.2f} | {overall['exact_match']:.2f} |"
        assert card.count(line) == 1 and "None were measured" not in card
        assert rows(card)["seeds"] == "training 3, data 5"


def test_a_card_of_somebody_s_own_stays(tmp_path: Path) -> None:
    assert not put_scores(tmp_path, "| 1 |")
    (tmp_path / CARD_FILE).write_text("my own words", encoding="utf-8")
    assert not put_scores(tmp_path, "| 1 |")
    assert (tmp_path / CARD_FILE).read_text(encoding="utf-8") == "my own words"
