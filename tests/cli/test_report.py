"""hart report and the study form of hart sweep as a user types them."""

import json
from pathlib import Path

import pytest
import yaml

from hart.training import sweep_table
from hart.training.config import RunConfig
from hart.training.sweep_plan import RESULTS_FILE, SweepRun


def write(folder: Path, row: str, score: float) -> None:
    own = folder / row / "seed-0"
    own.mkdir(parents=True)
    scheme = {"name": "shared" if row == "hypertuning" else "autoregressive"}
    config = RunConfig().changed(data={"collection": "procedural"}, model={"scheme": scheme})
    task = {"rouge_l": score, "exact_match": score, "instances": 5}
    results = {"config": config.to_dict(), "rouge_l": score, "exact_match": score, "tasks": {"a": task, "b": task}}
    (own / RESULTS_FILE).write_text(json.dumps(results))


def test_it_prints_the_main_table_and_where_the_rest_is(hart, tmp_path: Path) -> None:
    for row, score in (("hart", 40.0), ("hypertuning", 37.5)):
        write(tmp_path / "sweep", row, score)
    result = hart("report", tmp_path / "sweep", "--against", "hypertuning")
    assert result.status == 0
    assert "+2.5" in result.out and "exact match" in result.out and "procedural collection" in result.out
    assert str(tmp_path / "sweep" / "report.html") in result.out.replace("\n", "")
    assert result.err == "hart: One seed only, so no deviation and no interval over seeds: hart, hypertuning.\n"
    assert (tmp_path / "sweep" / "report.csv").is_file()


def test_tasks_of_ones_own_with_choices_have_an_accuracy(hart, tmp_path: Path) -> None:
    for row, score in (("hart", 40.0), ("hypertuning", 37.5)):
        write(tmp_path / "sweep", row, score)
        path = tmp_path / "sweep" / row / "seed-0" / RESULTS_FILE
        found = json.loads(path.read_text())
        found["config"]["data"]["collection"] = "sni"
        task = {"accuracy": score, "instances": 5}
        columns = {"accuracy": score, "columns": {"a": score, "b": score}, "tasks": {"a": task, "b": task}}
        diagnosed = {"diagnostics": {"scores": {"own": {"accuracy": score}}}}
        path.write_text(json.dumps({"config": found["config"], **columns, **diagnosed}))
    result = hart("report", tmp_path / "sweep")
    assert result.status == 0, result.err
    assert "accuracy" in result.out and "−2.5" in result.out and "ROUGE-L" not in result.out
    cells = (tmp_path / "sweep" / "report.csv").read_text().splitlines()
    assert "rows-sni,hypertuning,accuracy,37.5,,1,,,," in cells and "adaptations,hart,own,40.0,,1,,,," in cells


def test_mistakes_of_a_report(refused, tmp_path: Path) -> None:
    assert "no such folder; give the folder of a sweep" in refused("report", tmp_path / "none")
    assert "it has no NAME/seed-N" in refused("report", tmp_path)


@pytest.fixture
def study(tmp_path: Path, config_file: Path) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({"base": config_file.name, "rows": {"a": None, "b": {"training.alpha": 0.0}}}))
    return path


def test_mistakes_of_a_study(refused, study: Path, config_file: Path, tmp_path: Path) -> None:
    out = ("--output-dir", tmp_path / "out")
    assert "no such row; choose one of a, b" in refused("sweep", study, *out, "--row", "A1a")
    assert "a study must be the only file" in refused("sweep", study, config_file, *out)
    assert "--row: needs a study" in refused("sweep", config_file, *out, "--row", "a")
    assert "--seeds has a seed twice" in refused("sweep", study, *out, "--seeds", "1", "1")
    assert "no configuration follows OUT" in refused("sweep", study)
    assert "unknown field --training.alph" in refused("sweep", config_file, *out, "--training.alph", "1")
    content = yaml.safe_load(study.read_text())
    content["rows"]["a"] = {"paper": {"table": 2, "row": "HARP"}}
    study.write_text(yaml.safe_dump(content))
    assert "row a: paper: Table 2 of the paper has no row HARP; did you mean HART?" in refused("sweep", study, *out)
    assert not (tmp_path / "out").exists()


def test_a_sweep_without_any_result_is_no_success(hart, study: Path, tmp_path: Path, monkeypatch) -> None:
    rows = [dict.fromkeys(sweep_table._COLUMNS) | {"system": "a", "runs": 0}]
    monkeypatch.setattr("hart.training.sweep.sweep", lambda *_, **__: rows)
    result = hart("sweep", study, "--output-dir", tmp_path / "out")
    assert result.status == 2 and "| a | 0 |" in result.out and "out: no run has results" in result.err


def test_a_sweep_with_a_failed_run_is_no_success(hart, study: Path, tmp_path: Path, monkeypatch) -> None:
    rows = [dict.fromkeys(sweep_table._COLUMNS) | {"system": "a", "runs": 1}]

    def swept(_: Path, runs: list[SweepRun], *, missed, **__: object) -> list[dict[str, object]]:
        missed(runs[0])
        return rows

    monkeypatch.setattr("hart.training.sweep.sweep", swept)
    result = hart("sweep", study, "--output-dir", tmp_path / "out")
    assert result.status == 2 and "| a | 1 |" in result.out
    assert "out: a, seed 0 not done; the lines above say why" in result.err
