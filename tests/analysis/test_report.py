"""The report of a folder: content of the page and the CSV file, and refused folders."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from hart.analysis.report import Report, report
from hart.analysis.report_statistics import paired
from hart.errors import HartError

from .conftest import Write, configuration, task_scores, write_run


def cells(made: Report) -> list[dict[str, str]]:
    with made.csv.open(newline="") as file:
        return list(csv.DictReader(file))


def one(made: Report, **wanted: str) -> dict[str, str]:
    (found,) = (row for row in cells(made) if wanted.items() <= row.items())
    return found


def test_scores_and_differences_are_those_of_the_runs(sweep_folder: Write) -> None:
    made = report(sweep_folder())
    scores = {
        row: np.array([[t["exact_match"] for t in task_scores(row, seed, "procedural").values()] for seed in range(3)])
        for row in ("hart", "causal")
    }
    cell = one(made, table="rows-procedural", row="causal", column="exact match")
    assert float(cell["value"]) == pytest.approx(scores["causal"].mean())
    assert float(cell["deviation"]) == pytest.approx(scores["causal"].mean(1).std(ddof=1)) and cell["runs"] == "3"
    expected = paired(scores["causal"], scores["hart"], np.ones(12))
    for column, interval, p in (
        ("over seeds", expected.over_seeds, expected.seeds_p),
        ("over seeds and tasks", expected.over_both, expected.both_p),
    ):
        cell = one(made, table="differences-procedural", row="causal", column=column)
        assert interval is not None
        assert [float(cell[key]) for key in ("value", "low", "high", "p")] == pytest.approx(
            [expected.mean, *interval, p]
        )
    assert made.study.notes == []
    page = made.path.read_text(encoding="utf-8")
    assert made.path.name == "report.html" and made.path.parent == made.csv.parent
    assert f"{expected.mean:+.1f}" in page and page.count("<svg") == 2 + 5
    assert "report" not in [path.name for path in made.path.parent.iterdir()]


def test_a_run_made_otherwise_is_no_run_of_its_row(sweep_folder: Write) -> None:
    folder = sweep_folder(("hart", "causal"))
    alone = one(report(folder), table="rows-procedural", row="hart", column="exact match")
    short = configuration("hart", training={"max_steps": 50, "batch_size": 4, "warmup_steps": 1, "learning_rate": 0.5})
    write_run(folder, "hart", 3, config=short)
    made = report(folder)
    assert one(made, table="rows-procedural", row="hart", column="exact match") == alone
    (note,) = made.study.notes
    assert note.startswith("hart, seed 3: another configuration than most of its row (training.")
    assert "training.max_steps 50, not 100" in note and note.endswith("; …); it is not in the scores.")


def test_a_cell_of_the_paper_is_made_of_rows_that_are_trained_alike(sweep_folder: Write) -> None:
    folder = sweep_folder(("hart", "hypertuning"))
    cell = {"row": "+ Local Consistency Regularization (HART)", "column": "procedural collection, exact match"}
    expected = one(report(folder), table="table-6", **cell)
    for name, changes in {"few": {"data": {"training_tasks": 35}}, "long": {"training": {"max_steps": 900}}}.items():
        for seed in (0, 1):
            write_run(folder, name, seed, config=configuration("hart").changed(**changes))
    made = report(folder)
    assert one(made, table="table-6", **cell) == expected
    page = made.path.read_text(encoding="utf-8")
    assert "Not counted, as they were trained differently from the row here: few, long." in page
    assert "Rows differ in" not in page
    listing = json.loads((folder / "study.json").read_text())
    listing["rows"]["long"] = {"paper": [{"table": 6, "row": "+ Local Consistency Regularization (HART)"}]}
    (folder / "study.json").write_text(json.dumps(listing))
    made = report(folder)
    assert one(made, table="table-6", **cell)["runs"] == "2"
    assert "Rows differ in training.max_steps: long 900, hypertuning 100." in made.path.read_text(encoding="utf-8")


def test_instances_weigh_as_in_the_score(sweep_folder: Write) -> None:
    tasks = {
        "a": {"exact_match": 80.0, "rouge_l": 80.0, "instances": 30},
        "b": {"exact_match": 20.0, "rouge_l": 1.0, "instances": 10},
    }
    folder = sweep_folder(("hart",), (0,), tasks=tasks, exact_match=65.0)
    write_run(
        folder, "causal", 0, tasks={name: {**each, "exact_match": 0.0} for name, each in tasks.items()}, exact_match=0.0
    )
    made = report(folder, against="causal")
    assert made.collections[0].differences["hart"].mean == pytest.approx(65.0)


def test_tables_of_the_paper(sweep_folder: Write) -> None:
    made = report(sweep_folder(("hart", "hypertuning", "ft_zero_shot"), collection="p3"))
    cell = one(made, table="table-4", row="HyperTuning", column="CB")
    assert cell["paper"] == "59.4" and float(cell["value"]) > 0 and cell["runs"] == "3"
    assert one(made, table="table-4", row="LoRA", column="Avg.")["value"] == ""
    average = one(made, table="table-4", row="HART", column="Avg.")
    assert average["paper"] == "55.0"
    assert one(made, table="table-6", row="+ Fusion-in-Decoder (HyperTuning)", column="P3, accuracy")["paper"] == "53.0"
    assert made.collections[0].differences["hypertuning"].tasks == 8, "a column of the table is a task"
    page = made.path.read_text(encoding="utf-8")
    assert "paper 59.4" in page and "Table 4: T5-Large on P3" in page and "Table 2" not in page


def test_a_study_may_say_which_rows_of_the_paper_are_meant(sweep_folder: Write) -> None:
    folder = sweep_folder(("causal", "hart"), paper={"causal": {"table": 2, "row": "HART"}})
    cell = one(report(folder), table="table-2", row="HART", column="procedural collection, exact match")
    assert cell["runs"] == "3"
    folder = sweep_folder(("causal", "hart"), paper={"causal": {"table": 2, "row": "HARP"}})
    with pytest.raises(HartError, match="row causal: Table 2 of the paper has no row HARP; did you mean HART?"):
        report(folder)


def test_orders_are_averaged(sweep_folder: Write) -> None:
    folder = sweep_folder(("hart",), (0,))
    for number in range(2):
        scheme = {"name": "autoregressive", "order": "random", "order_seed": number}
        config = configuration("random", model={"scheme": scheme})
        write_run(folder, f"random_{number}", 0, config=config)
    cell = one(
        report(folder),
        table="table-7",
        row="Depend on one random, fixed layer",
        column="procedural collection, exact match",
    )
    assert cell["runs"] == "2"


def test_other_layouts(sweep_folder: Write, tmp_path: Path) -> None:
    """Without study.json, with what hart evaluate writes, and with a configuration that leaves out a default."""
    folder = sweep_folder(("hart", "causal"), (0, 1))
    (folder / "study.json").unlink()
    before = report(folder)
    assert [row.name for row in before.study.rows] == ["causal", "hart"]
    path = folder / "hart" / "seed-0" / "results.json"
    found = json.loads(path.read_text())
    tasks = [{"name": name, "predictions": [], **scores} for name, scores in found["tasks"].items()]
    overall = {"rouge_l": found["rouge_l"], "exact_match": found["exact_match"], "instances": 240}
    path.write_text(json.dumps({"system": "hart", "overall": overall, "categories": {}, "tasks": tasks}))
    config = folder / "hart" / "seed-0" / "config.yaml"
    content = yaml.safe_load(config.read_text())
    del content["training"]["pairing"]
    config.write_text(yaml.safe_dump(content))
    after = report(folder)
    assert after.collections[0].differences == before.collections[0].differences


def test_what_is_not_finished_is_said_and_left_out(sweep_folder: Write) -> None:
    folder = sweep_folder(("hart", "causal"), (0, 1))
    write_run(folder, "causal", 2, finished=False)
    (folder / "hart" / "seed-1" / "results.json").write_text("{")
    listing = json.loads((folder / "study.json").read_text())
    listing["rows"] |= {name: {"seeds": [0, 1]} for name in ("lora", "prefix_tuning")} | {
        "hint": {"seeds": [0, 1, 2, 3]}
    }
    listing["rows"]["hart"]["seeds"].append(7)
    (folder / "study.json").write_text(json.dumps(listing))
    made = report(folder)
    told = " ".join(made.study.notes)
    assert "Not begun: hart (seed 7); lora, prefix_tuning (seeds 0, 1); hint (seeds 0–3)." in told
    listing["rows"] |= {f"other_{number}": {"seeds": [0]} for number in range(10)}
    (folder / "study.json").write_text(json.dumps(listing))
    assert "other_7 and 2 more rows (seed 0)." in " ".join(report(folder).study.notes)
    assert "causal, seed 2: unfinished, step 50 of 100; it is not in the scores." in told
    assert "hart, seed 1: results.json cannot be read" in told
    assert "One seed only, so no deviation and no interval over seeds: hart." in told
    found = made.collections[0].differences["causal"]
    assert (found.seeds, found.over_seeds) == (1, None) and found.over_both is not None
    page = made.path.read_text(encoding="utf-8")
    assert "One seed: no interval over seeds" in page and "no interval</td>" in page


def test_a_page_of_its_own(sweep_folder: Write, tmp_path: Path) -> None:
    diagnostics = {"one_state": False, "layer_cosine": 0.9, "variance": {"tasks": 0.25}, "effective_rank": None}
    diagnostics["scores"] = {"own": {"exact_match": 61.0}, "another_task": {"exact_match": 3.0}}
    robustness = {"scores": {"own": {"exact_match": 61.0}, "no_definition": {"exact_match": 7.0}}, "queries": 5}
    robustness |= {"like_the_base": 0.2, "distractors_like_the_base": None}
    measured = {"diagnostics": diagnostics, "robustness": robustness}
    folder = sweep_folder(("hart", "causal"), (0, 1), **measured, host={"torch": "2.13"})
    made = report(folder, output=tmp_path / "pages" / "own.html", against="causal")
    assert made.csv == tmp_path / "pages" / "own.csv" and not (folder / "report.html").exists()
    page = made.path.read_text(encoding="utf-8")
    assert "Differences to causal" in page and "4 runs: torch 2.13" in page
    assert one(made, table="diagnostics", row="hart", column="cosine of layers, upper half")["value"] == "0.9"
    assert ">variance between stacks</th>" in page and "variance between stacks" not in made.csv.read_text()
    assert one(made, table="adaptations", row="causal", column="another task's")["value"] == "3.0"
    assert one(made, table="robustness", row="hart", column="without definition")["value"] == "7.0"
    interference = one(made, table="interference", row="hart", column="queries of another task")
    assert interference["value"] == "0.2" and "distractors</th>" not in page
    assert "exact match of tasks told in other ways" in page and "without demonstrations" not in page
    assert not re.search(r"""(?:src|href)=["'](?!#|data:)|url\(["']?(?!#)|@import|<script""", page), (
        "nothing from elsewhere"
    )
    assert re.search(r"model\.scheme: .*causal", page), "what differs from the first row"
    assert "hart train " in page
    again = report(folder, output=tmp_path / "again.html", against="causal")
    assert again.path.read_text() == page, "the same runs give the same page"


def test_a_teacher_and_other_data_are_differences(sweep_folder: Write) -> None:
    folder = sweep_folder(("hart",), (0,))
    learns = configuration("hart").changed(training={"alpha": 0.0}, distillation={"teacher": "base"})
    write_run(folder, "taught", 0, config=learns)
    write_run(folder, "elsewhere", 0, config=configuration("hart").changed(data={"distractors": "a/other.txt"}))
    page = report(folder).path.read_text(encoding="utf-8")
    assert "distillation.teacher: &quot;base&quot;" in page and "data.distractors: &quot;other.txt&quot;" in page


def test_a_loss_that_is_not_finite_breaks_no_picture(sweep_folder: Write) -> None:
    folder = sweep_folder(("hart", "causal"), (0,))
    with (folder / "causal" / "seed-0" / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 110, "prediction_loss": NaN}\n5\n{"step": 120, "predic')
    lost = folder / "hart" / "seed-0" / "run" / "metrics.jsonl"
    lost.write_text('{"step": 10, "prediction_loss": NaN}\n')
    page = report(folder).path.read_text(encoding="utf-8")
    assert "nan" not in re.sub(r"[a-z]nan|nan[a-z]", "", page.partition('id="losses"')[2].partition("</section>")[0])


def test_names_are_escaped(sweep_folder: Write) -> None:
    folder = sweep_folder(("hart",), (0, 1))
    write_run(folder, "<b>&", 0, config=configuration("causal"))
    page = report(folder).path.read_text(encoding="utf-8")
    assert "<b>" not in page and "&lt;b&gt;&amp;" in page


def broken(folder: Path, kind: str) -> dict[str, Any]:
    if kind == "other tasks":
        write_run(folder, "causal", 0, tasks={"other": {"exact_match": 1.0, "rouge_l": 1.0, "instances": 3}})
    if kind == "other counts":
        tasks = {name: {**each, "instances": 7} for name, each in task_scores("causal", 0, "procedural").items()}
        write_run(folder, "causal", 0, tasks=tasks)
    if kind == "nothing finished":
        for path in folder.glob("*/*/results.json"):
            path.unlink()
    if kind == "output is a folder":
        (folder / "page.html").mkdir()
        return {"output": folder / "page.html"}
    return {"against": {"against": "hard"}, "csv": {"output": folder / "page.csv"}}.get(kind, {})


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("other tasks", r"seed-0 were scored on different tasks \(1 and 12, 0 the same\)|\(12 and 1, 0 the same\)"),
        ("other counts", r"different tasks \(12 and 12, 0 the same\)"),
        ("nothing finished", "no run has scores yet"),
        ("against", "--against hard: no row of that name has scores in .*; did you mean hart?"),
        ("output is a folder", "page.html: is a folder; give the path of a file"),
        ("csv", "page.csv: is the name of the CSV file beside the page"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_written(sweep_folder: Write, kind: str, message: str) -> None:
    folder = sweep_folder(("hart",), (0,))
    options = broken(folder, kind)
    with pytest.raises(HartError, match=message) as refused:
        report(folder, **options)
    assert "\n" not in str(refused.value)
    assert not list(folder.glob("*.csv")) and not (folder / "report.html").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"exact_match": None},
        {"tasks": {"task_0": {"rouge_l": 1.0, "exact_match": 1.0}, "task_1": {"instances": 20}}},
        {"tasks": "task_0"},
        {"diagnostics": "none"},
        {"validation": [1.0]},
    ],
)
def test_results_of_another_form_are_left_out(sweep_folder: Write, changes: dict[str, Any]) -> None:
    folder = sweep_folder(("hart",), (0, 1))
    path = folder / "hart" / "seed-1" / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    assert "hart, seed 1: results.json cannot be read" in " ".join(report(folder).study.notes)


def test_no_sweep(tmp_path: Path) -> None:
    with pytest.raises(HartError, match="none: no such folder; give the folder of a sweep"):
        report(tmp_path / "none")
    (tmp_path / "notes").mkdir()
    with pytest.raises(HartError, match="is not a sweep, as it has no NAME/seed-N"):
        report(tmp_path)
