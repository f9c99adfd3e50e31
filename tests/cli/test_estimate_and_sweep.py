"""hart estimate and hart sweep as a user types them."""

import json
from pathlib import Path

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


def test_mistakes_are_one_line(refused, tmp_path: Path) -> None:
    config = CONFIGS / "mini" / "hart_sni.yaml"
    assert "--gpu-memory: must be a number" in refused("estimate", config, "--gpu-memory", "-1")
    assert "unknown field --model.bases" in refused("estimate", config, "--model.bases", "x")
    assert "two configurations are called hart_sni" in refused("sweep", tmp_path / "out", config, config)
    assert "no such configuration file" in refused("sweep", tmp_path / "out", tmp_path / "none.yaml")
    (tmp_path / "file").write_text("x")
    assert "exists with other content" in refused("sweep", tmp_path / "file", config)
    assert not (tmp_path / "out").exists()
