"""Study files: their meaning, refused files, and the choice in a grid."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from hart.errors import HartError
from hart.training.config import RunConfig
from hart.training.sweep import sweep
from hart.training.sweep_plan import PEAK, RESULTS_FILE, SweepRun
from hart.training.sweep_study import is_study, plan_study, read_study

Build = Callable[..., RunConfig]
Study = Callable[..., Path]


@pytest.fixture
def study(run_config: Build, tmp_path: Path) -> Study:
    """Write a study over a base of two steps, with these fields."""
    base = run_config(max_steps=2, batch_size=4, num_threads=1).changed(data={"max_test_instances": 2})
    base.save(tmp_path / "configs" / "base.yaml")

    def write(**fields: Any) -> Path:
        path = tmp_path / "configs" / "studies" / "toy.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump({"base": "../base.yaml", **fields}, sort_keys=False))
        return path

    return write


def test_rows_change_a_base_in_the_order_of_precedence(study: Study, tmp_path: Path) -> None:
    path = study(
        set={"training.alpha": 2.0, "training.warmup_steps": 1},
        seeds=[3, 4],
        rows={
            "plain": None,
            "changed": {"training.alpha": 0.5, "model.peft.0.length": 2},
            "other": {"config": "../base.yaml", "set": {"training.alpha": 0.25}, "paper": {"table": 2, "row": "HART"}},
        },
    )
    assert is_study(path) and not is_study(tmp_path / "configs" / "base.yaml")
    found = read_study(path)
    out = tmp_path / "out"
    runs = plan_study(found, out, overrides=["--training.warmup_steps", "2"])
    assert [(run.name, run.seed) for run in runs] == [(n, s) for n in ("plain", "changed", "other") for s in (3, 4)]
    assert [run.config.training.alpha for run in runs[::2]] == [2.0, 0.5, 0.25]
    assert [run.config.model.peft[0]["length"] for run in runs[::2]] == [4, 2, 4]
    assert {run.config.training.warmup_steps for run in runs} == {2} and runs[1].config.training.seed == 4
    assert runs[-1].about == {
        "row": "other",
        "command": f"hart sweep {path} --output-dir {out} --row other --seeds 4 --training.warmup_steps 2",
        "paper": [{"table": 2, "row": "HART"}],
    }
    assert list(found.listing()["rows"]) == ["plain", "changed", "other"]
    assert [(run.name, run.seed) for run in plan_study(found, out, names=["other"], seeds=[7])] == [("other", 7)]


def test_a_row_brings_the_one_that_it_starts_from(study: Study, tmp_path: Path) -> None:
    found = read_study(study(rows={"first": None, "second": {"init_from": "first"}, "third": None}))
    runs = plan_study(found, tmp_path, names=["second"])
    assert [run.name for run in runs] == ["first", "second"]
    assert runs[1].config.model.init_from == str(tmp_path / "first" / "seed-0" / "run" / "final")
    assert runs[1].sources == (runs[0].folder,)


def test_a_row_made_otherwise_than_the_one_that_it_starts_from_is_refused(study: Study, tmp_path: Path) -> None:
    """A study's `set` reaches rows that pre-train as well; said before hours of it, not behind them."""
    rows = {"first": {"model.scheme": {"name": "shared"}}, "second": {"init_from": "first"}}
    found = read_study(study(rows=rows))
    with pytest.raises(
        HartError, match=r"row second starts from first, which has model\.scheme .*'shared'.*must be equal"
    ):
        plan_study(found, tmp_path)
    rows["second"]["model.scheme"] = {"name": "shared"}
    assert len(plan_study(read_study(study(rows=rows)), tmp_path)) == 2
    kind = {"kind": "prefix", "length": 3}
    rows["second"]["model.peft"] = [kind]
    with pytest.raises(HartError, match=r"which has model\.peft .*must be equal"):
        plan_study(read_study(study(rows=rows)), tmp_path)
    rows["first"]["model.peft"] = [{**kind, "cross": False}]
    assert len(plan_study(read_study(study(rows=rows)), tmp_path)) == 2, "a default may be left out"


def test_a_row_learns_from_what_another_has_trained(study: Study, tmp_path: Path) -> None:
    """The teacher is trained first, with the same seed; rows for which it makes no sense are refused by name."""
    few_shot = {
        "model.weights": "none",
        "model.train_main": True,
        "model.peft": [],
        "model.fusion": False,
        "data.demonstrations_to": "main",
        "training.alpha": 0.0,
        "training.queries_per_task": 1,
    }
    taught = {"teacher": "few_shot", "distillation.temperature": 2.0, "training.alpha": 0.0}
    path = study(rows={"few_shot": few_shot, "taught": taught, "plain": None})
    out = tmp_path / "out"
    runs = plan_study(read_study(path), out, names=["taught"], seeds=[5])
    assert [run.name for run in runs] == ["few_shot", "taught"] and runs[1].sources == (runs[0].folder,)
    assert runs[1].config.distillation.teacher == str(out / "few_shot" / "seed-5" / "run" / "final")
    sweep(out, runs, listing=read_study(path).listing(), say=lambda _: None)
    recorded = [json.loads(line) for line in (out / "taught/seed-5/run/metrics.jsonl").read_text().splitlines()]
    assert any(line.get("distillation_loss", 0) > 0 for line in recorded)
    moved = out.rename(tmp_path / "moved")
    assert all(run.results() for run in plan_study(read_study(path), moved, names=["taught"], seeds=[5]))
    # A try of the study's first seed needs that seed's teacher, which other seeds alone do not train.
    grid = {**taught, "grid": {"training.learning_rate": [1e-3]}}
    path = study(set={"data.validation_tasks": 1}, seeds=[0, 1], rows={"few_shot": few_shot, "taught": grid})
    told: list[str] = []
    sweep(tmp_path / "part", plan_study(read_study(path), tmp_path / "part", seeds=[1]), say=told.append)
    assert any("not done: it needs" in line and "seed-0" in line for line in told)
    path = study(rows={"few_shot": few_shot, "again": {"set": {**few_shot, "model.peft": []}, "teacher": "few_shot"}})
    with pytest.raises(HartError, match="row again: distillation.teacher: must be null where data.demonstrations_to"):
        plan_study(read_study(path), out)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rows": {}}, "toy.yaml: rows is empty"),
        ({"row": {"a": None}}, "toy.yaml: unknown field row; did you mean rows?"),
        ({"rows": [1]}, "toy.yaml: rows: must be a mapping from the name of a row to its changes, not"),
        ({"rows": {"a/b": None}}, "row a/b: a row's name must consist of letters"),
        ({"rows": {1: None}}, "row 1: a row's name must consist of letters"),
        ({"rows": {"a": {"confg": "x"}}}, "row a: unknown field confg; did you mean config?"),
        ({"rows": {"a": {"training.alph": 1}}}, "row a: unknown field training.alph; did you mean training.alpha?"),
        ({"rows": {"a": {"trainig.alpha": 1}}}, "row a: unknown field trainig.alpha; did you mean training.alpha?"),
        ({"rows": {"a": {"training.alpha": -1}}}, "row a: training.alpha: must be at least 0, not -1"),
        ({"rows": {"a": {"set": {"alpha": 1}}}}, "row a: set: alpha has no section; write section.field"),
        ({"rows": {"a": {"model.scheme": {"name": "casual"}}}}, "row a: model.scheme: unknown name 'casual'"),
        ({"rows": {"a": {"model.scheme.rwos": 8}}}, "row a: model.scheme.autoregressive: unknown option 'rwos'"),
        ({"rows": {"a": {"model.peft.0.kind": "lroa"}}}, "row a: model.peft: unknown kind 'lroa'"),
        (
            {"set": {"data.validation_tasks": 1}, "rows": {"a": {"grid": {"model.peft.0.lenght": [1]}}}},
            "row a: model.peft.prefix: unknown field 'lenght'",
        ),
        ({"rows": {"a": {"config": "../none.yaml"}}}, "none.yaml: no such configuration file"),
        ({"rows": {"a": {"init_from": "b"}}}, "row a: init_from: b must be another row of the study"),
        ({"rows": {"a": {"init_from": "b"}, "b": None}}, "row a starts from b; put b before it"),
        ({"rows": {"a": {"teacher": "b"}}}, "row a: teacher: b must be another row of the study"),
        ({"rows": {"a": {"teacher": ["a"]}}}, "row a: teacher: "),
        ({"rows": {"a": {"teacher": "b"}, "b": None}}, "row a learns from b; put b before it"),
        ({"rows": {"a": {"paper": {"table": "2"}}}}, "row a: paper must be {table: NUMBER, row: LABEL}"),
        ({"rows": {"a": {"paper": {"tabel": 2}}}}, "row a: paper: unknown field tabel; did you mean table?"),
        ({"rows": {"a": None}, "seeds": 3}, "toy.yaml: seeds must be a list of whole numbers, not 3"),
        ({"rows": {"a": None}, "seeds": [1, 1]}, "toy.yaml: seeds has a seed twice"),
        ({"rows": {"a": None}, "base": None}, "row a: names no configuration"),
        ({"rows": {"a": {"grid": {"training.alpha": 1}}}}, "row a: grid: training.alpha must be a list of values"),
        ({"rows": {"a": {"grid": {"training.alpha": [1]}}}}, "row a: grid: there are no validation tasks to choose on"),
        ({"rows": {"a": {"grid": {"training.seed": [1]}}}}, "row a: grid: training.seed is set by the study's"),
        ({"rows": {"a": {"grid_steps": 0}}}, "row a: grid_steps must be a whole number of at least 1, not 0"),
    ],
)
def test_mistakes_are_one_line(study: Study, tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(HartError) as refused:
        plan_study(read_study(study(**fields)), tmp_path / "out")
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_two_rows_of_one_name_and_no_such_row(study: Study, tmp_path: Path) -> None:
    path = study(rows={"hart": None})
    path.write_text(path.read_text() + "  hart: {}\n")
    with pytest.raises(HartError, match=r"toy\.yaml: not valid YAML, line \d+: hart is given twice"):
        read_study(path)
    with pytest.raises(HartError, match="--row harp: .* has no such row; did you mean hart?"):
        plan_study(read_study(study(rows={"hart": None})), tmp_path, names=["harp"])


def settle(run: SweepRun, **found: Any) -> None:
    """Write what a finished run leaves."""
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / RESULTS_FILE).write_text(json.dumps({"config": run.config.to_dict(), **found}))


def test_a_grid_is_decided_on_validation_tasks_for_all_seeds(study: Study, tmp_path: Path) -> None:
    grid = {"training.learning_rate": [1e-4, 1e-3, 1e-2], "training.alpha": [0.0]}
    path = study(set={"data.validation_tasks": 1}, seeds=[5, 6], rows={"a": {"grid": grid, "grid_steps": 1}})
    runs = plan_study(read_study(path), tmp_path / "out")
    tries = runs[0].candidates
    assert runs[1].candidates == tries and [each.seed for each in tries] == [5] * 3
    assert [each.config.training.learning_rate for each in tries] == [1e-4, 1e-3, 1e-2]
    assert {each.config.training.max_steps for each in tries} == {1} and len({each.folder for each in tries}) == 3
    # With other seeds alone, the study's first seed decides all the same.
    assert plan_study(read_study(path), tmp_path / "out", seeds=[9])[0].candidates == tries
    assert runs[0].resolved() is None
    scores = [{"rouge_l": 40.0, "exact_match": 9.0}, {"rouge_l": 50.0, "exact_match": 2.0}]
    for each, score in zip(tries, scores, strict=False):
        settle(each, validation=score)
    chosen = runs[1].resolved()
    assert chosen is not None and chosen.config.training.learning_rate == 1e-3
    assert (chosen.config.training.max_steps, chosen.config.training.seed) == (2, 6)
    assert chosen.about["chosen"] == {
        "fields": {"training.learning_rate": 1e-3, "training.alpha": 0.0},
        "on": "validation tasks, seed 5, 1 steps",
        "candidates": [
            {"fields": tries[0].fields, "validation": scores[0]},
            {"fields": tries[1].fields, "validation": scores[1]},
            {"fields": tries[2].fields, "failed": True},
        ],
    }
    assert runs[0].best() is None, "one step is not the training of two"


@pytest.mark.parametrize(
    ("field", "values", "also"),
    [
        ("distillation.teacher", [None, "base"], {"training.alpha": 0.0}),
        ("model.init_from", [None, "/elsewhere/final"], {}),
        ("data.distractors", ["one.txt", "two.txt"], {}),
    ],
)
def test_what_a_run_starts_or_learns_from_can_be_chosen(
    study: Study, tmp_path: Path, field: str, values: list[Any], also: dict[str, Any]
) -> None:
    path = study(set={"data.validation_tasks": 1, **also}, rows={"a": {"grid": {field: values}}})
    (run,) = plan_study(read_study(path), tmp_path)
    first, second = run.candidates
    settle(first, validation={"rouge_l": 1.0})
    settle(second, validation={"rouge_l": 2.0})
    chosen = run.resolved()
    assert chosen is not None and chosen.about["chosen"]["fields"] == {field: values[1]}
    section, _, name = field.partition(".")
    assert chosen.config.to_dict()[section][name] == values[1]
    assert run.best() == second, "the training that is taken over"


def test_a_row_and_its_grid_do_not_both_say_whom_it_learns_from(study: Study, tmp_path: Path) -> None:
    rows = {"a": None, "b": {"init_from": "a", "grid": {"model.init_from": [None, "x"]}}}
    with pytest.raises(HartError, match="row b: grid: model.init_from is set by init_from of the row"):
        plan_study(read_study(study(set={"data.validation_tasks": 1}, rows=rows)), tmp_path)


def test_another_file_of_distractors_is_another_run(study: Study, tmp_path: Path) -> None:
    """Where a file lies makes no difference, which file it is does."""

    def planned(path: str) -> SweepRun:
        (run,) = plan_study(read_study(study(set={"data.distractors": path}, rows={"a": None})), tmp_path)
        return run

    settle(planned("here/first.txt"))
    assert planned("there/first.txt").results() is not None
    assert planned("here/second.txt").results() is None


@pytest.mark.usefixtures("in_this_process")
def test_a_full_try_is_not_trained_twice(study: Study, tmp_path: Path) -> None:
    grid = {"training.learning_rate": [1e-3, 1e-2]}
    path = study(set={"data.validation_tasks": 1}, seeds=[0, 1], rows={"a": {"grid": grid}})
    out, found = tmp_path / "out", read_study(path)
    said: list[str] = []
    (row,) = sweep(out, plan_study(found, out), listing=found.listing(), say=said.append)
    assert row["runs"] == 2 and not any("failed" in line for line in said), said
    first = json.loads((out / "a" / "seed-0" / RESULTS_FILE).read_text())
    assert first["chosen"]["on"] == "validation tasks, seed 0, 2 steps" and first["validation"] and first["tasks"]
    tried = [json.loads(each.read_text()) for each in sorted((out / "a" / "grid").glob(f"*/{RESULTS_FILE}"))]
    assert len(tried) == 2 and not any("tasks" in each for each in tried), "the test tasks are looked at once"
    assert first[PEAK] in [each[PEAK] for each in tried], "the memory of its training, which was the try's"
    # Its training was moved, not repeated.
    assert sorted((each / "run").exists() for each in (out / "a" / "grid").iterdir()) == [False, True]
    assert json.loads((out / "study.json").read_text()) == found.listing()
    said.clear()
    sweep(out, plan_study(found, out), say=said.append)
    assert [line.partition(": ")[2] for line in said] == ["done before"] * 4


@pytest.mark.usefixtures("in_this_process")
def test_a_try_that_fails_is_no_run_that_is_missed(study: Study, tmp_path: Path) -> None:
    path = study(set={"data.validation_tasks": 1}, rows={"a": {"grid": {"model.decoder_layers": [9, 2]}}})
    said: list[str] = []
    missed: list[SweepRun] = []
    runs = plan_study(read_study(path), tmp_path / "out")
    (row,) = sweep(tmp_path / "out", runs, say=said.append, missed=missed.append)
    assert any("failed" in line for line in said) and row["runs"] == 1 and not missed


def test_results_count_wherever_the_sweep_is_kept(study: Study, tmp_path: Path) -> None:
    found = read_study(study(rows={"first": None, "second": {"init_from": "first"}}))
    here, there = (plan_study(found, tmp_path / place) for place in ("here", "there"))
    for run in here:
        settle(run)
        assert run.results() is not None
    (tmp_path / "here").rename(tmp_path / "there")
    assert all(run.results() is not None for run in there)
    changed = plan_study(found, tmp_path / "there", overrides=["--training.alpha", "3"])
    assert all(run.results() is None for run in changed)
