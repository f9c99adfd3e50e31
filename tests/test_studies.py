"""Every study file in the repository loads, its rows build, and they stand for rows of the paper."""

from pathlib import Path

import pytest

from hart.analysis.paper import check_places
from hart.training.blueprint import build
from hart.training.sweep_study import plan_study, read_study

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
STUDIES = sorted((CONFIGS / "studies").glob("*.yaml"))
CHANGED = [
    pytest.param(row, id=f"{path.stem}-{row.name}") for path in STUDIES for row in read_study(path).rows if row.words
]
"""Rows that are more than a file, which tests/test_configs.py builds."""


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_it_loads_and_says_how_it_is_run(path: Path, tmp_path: Path) -> None:
    study = read_study(path)
    runs = plan_study(study, tmp_path)
    assert len(runs) == len(study.rows) * len(study.seeds) >= 20
    command = f"hart sweep configs/studies/{path.name} --output-dir runs/studies/{path.stem}"
    assert command in path.read_text(encoding="utf-8")
    for row in study.rows:
        check_places(row.paper)
        assert row.config.resolve().is_relative_to(CONFIGS)
    # Whatever starts from something starts from a row of this study.
    starts = {run.name: run.config.model.init_from for run in runs if run.config.model.init_from}
    assert all(start.startswith(str(tmp_path)) for start in starts.values()), starts


@pytest.mark.parametrize("row", CHANGED)
def test_a_changed_row_builds_without_weights(row) -> None:
    parts = build(row.build())
    assert all(parameter.is_meta for parameter in parts.main.parameters())


def test_all_rows_of_the_generated_tasks_differ(tmp_path: Path) -> None:
    runs = plan_study(read_study(CONFIGS / "studies" / "procedural.yaml"), tmp_path, seeds=[0])
    systems = [run.config.changed(training={"output_dir": "x"}) for run in runs]
    assert all(systems.count(each) == 1 for each in systems)
    tasks = [run.config.data for run in runs if not run.config.data.segments]
    assert {(data.collection, data.max_test_instances) for data in tasks} == {("procedural", 20)}
