"""hart figures from the command line, on a trained run and on the bundled model."""

import shutil
from pathlib import Path

from hart.cli import main


def test_a_run_gives_what_it_can(ok, hart, refused, config_file: Path, tmp_path: Path) -> None:
    assert main(["train", str(config_file)]) == 0
    out = tmp_path / "figures"
    text = ok("figures", tmp_path / "run", "--output-dir", out, "--max-tasks", "2", "--formats", "svg")
    assert "fig4_consistency: not made: needs a run with training.alpha 0" in text
    assert "fig1_attention: not made: needs a model with scheme bidirectional or causal" in text
    assert f"states_cosine: {out}/states_cosine.svg, {out}/states_cosine.csv" in text
    names = {"fig5_consistency_loss", "fig5_tsne", "states_cosine"}
    assert {path.stem for path in out.glob("*.svg")} == names
    assert {path.stem for path in out.glob("*.csv")} == names | {"fig5_tsne_silhouettes"}
    assert not list(out.glob("*.png")) and not list(out.glob(".hart-*"))

    shutil.rmtree(tmp_path / "run" / "final")
    text = ok("figures", tmp_path / "run", "--output-dir", tmp_path / "again", "--formats", "svg", "--max-tasks", "2")
    assert "unfinished, step 4 of 4; used as far as it goes (its model is checkpoint-4)" in text
    assert (tmp_path / "again" / "states_cosine.csv").read_text() == (out / "states_cosine.csv").read_text()

    out.joinpath("file").touch()
    assert "cannot be written" in refused("figures", "mini", "--output-dir", out / "file")
    assert "no such folder" in refused("figures", tmp_path / "none")
    assert "invalid choice: 'gif'" in refused("figures", "mini", "--formats", "gif")


def test_where_no_figure_can_be_made_the_status_is_2(hart, tmp_path: Path, sni_dir: Path, config_file: Path) -> None:
    assert main(["train", str(config_file), "--training.max_steps", "1"]) == 0
    run = tmp_path / "run"
    for path in (run / "metrics.jsonl", run / "steps.csv"):
        path.unlink()
    result = hart("figures", run, "--data-dir", tmp_path / "gone", "--output-dir", tmp_path / "figures")
    assert result.status == 2 and result.err.count("\n") == 1
    assert "no figure can be made of these runs; the lines above say why" in result.err
    assert len(result.out.splitlines()) == 6 and not (tmp_path / "figures").exists()


def test_the_bundled_model_is_read_on_the_bundled_tasks(ok, tmp_path: Path) -> None:
    text = ok("figures", "mini", "--output-dir", tmp_path, "--formats", "png", "--max-tasks", "2")
    assert "mean over 2 tasks of the test split" in text
    assert (tmp_path / "states_cosine.png").is_file() and (tmp_path / "fig5_tsne.png").is_file()
