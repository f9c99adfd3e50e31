"""hart estimate and hart sweep as a user types them."""

import json
from pathlib import Path

import pytest

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def test_estimate_prints_tables_and_json(ok) -> None:
    text = ok("estimate", CONFIGS / "t5-large" / "hart_sni.yaml")
    assert "134,217,728" in text and "783,150,080" in text and "in all" in text
    content = json.loads(ok("estimate", CONFIGS / "mini" / "hart_sni.yaml", "--json", "--training.batch_size", "64"))
    assert content["tokens"]["main encoder"] == 64 * 192 and content["total_memory"] > 0


def test_what_does_not_fit_is_status_1_with_advice(hart) -> None:
    result = hart("estimate", CONFIGS / "t5-xl" / "hart_sni.yaml", "--devices", "8", "--gpu-memory", "24")
    assert result.status == 1 and result.err == ""
    assert "does not fit into 24 GiB" in result.out and "ZeRO stage 3 (configs" in result.out
    fits = hart("estimate", CONFIGS / "t5-xl" / "hart_sni.yaml", "--devices", "8", "--gpu-memory", "1000")
    assert fits.status == 0


def test_a_card_has_its_memory_and_its_time(hart, ok) -> None:
    config = CONFIGS / "t5-base" / "hart_causal_sni.yaml"
    content = json.loads(ok("estimate", config, "--gpu", "A100-40GB", "--utilisation", "0.5", "--json"))
    time = content["time"]
    assert time["seconds_per_step"] == pytest.approx(content["flops"] / (312e12 * 0.5))
    assert time["hours"] == pytest.approx(time["seconds_per_step"] * 5000 / 3600)
    four = json.loads(ok("estimate", config, "--gpu", "a100-40gb", "--devices", "4", "--json"))["time"]
    assert four["seconds_per_step"] == pytest.approx(time["seconds_per_step"] / 4 * 0.5 / 0.3)
    slow = json.loads(hart("estimate", config, "--gpu", "t4", "--training.bf16", "false", "--json").out)["time"]
    assert slow["seconds_per_step"] == pytest.approx(content["flops"] / (8.1e12 * 0.3))
    assert "if 30% of the peak is reached" in ok("estimate", config, "--gpu", "rtx-4090").replace("\n", " ")
    # Memory of the card counts, unless it is given.
    large = CONFIGS / "t5-xl" / "hart_sni.yaml"
    assert "does not fit into 23 GiB" in hart("estimate", large, "--gpu", "rtx-4090").out
    told = hart("estimate", config, "--gpu", "t4", "--training.bf16", "false").out
    assert "does not fit into 14 GiB" in told and "micro_batch_size: 1" in told and "bf" not in told.split("save:")[1]
    assert hart("estimate", large, "--gpu", "rtx-4090", "--gpu-memory", "900").status == 0


def test_mistakes_are_one_line(refused, tmp_path: Path) -> None:
    config = CONFIGS / "mini" / "hart_sni.yaml"
    assert "--gpu-memory: must be a number" in refused("estimate", config, "--gpu-memory", "-1")
    assert "--gpu a100: not known; choose one of t4, v100," in refused("estimate", config, "--gpu", "a100")
    assert "has no bfloat16; add --training.bf16 false" in refused(
        "estimate", CONFIGS / "t5-large" / "hart_sni.yaml", "--gpu", "T4"
    )
    assert "--utilisation: must be above 0" in refused("estimate", config, "--gpu", "t4", "--utilisation", "2")
    assert "name the card with --gpu" in refused("estimate", config, "--utilisation", "0.5")
    assert "unknown field --model.bases" in refused("estimate", config, "--model.bases", "x")
    assert "two configurations are called hart_sni" in refused("sweep", tmp_path / "out", config, config)
    assert "no such configuration file" in refused("sweep", tmp_path / "out", tmp_path / "none.yaml")
    (tmp_path / "file").write_text("x")
    assert "exists with other content" in refused("sweep", tmp_path / "file", config)
    assert not (tmp_path / "out").exists()
