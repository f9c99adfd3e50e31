import json
from io import StringIO
from pathlib import Path
from statistics import fmean

import pytest
from rich.console import Console
from rich.table import Table
from rouge_score.rouge_scorer import RougeScorer

from hart.data.super_natural_instructions import load_sni
from hart.data.tasks import Instance, Task
from hart.errors import HartError
from hart.evaluation.answers import (
    ANSWERS,
    UNCATEGORIZED,
    TaskResult,
    comparison_table,
    copy_demonstration,
    copy_input,
)
from hart.evaluation.base import System
from hart.evaluation.metrics import exact_match, rouge_l
from hart.evaluation.run import evaluate

ECHO = Task(
    "Repeat the input.",
    [("a", "a"), ("b", "b")],
    name="task1_echo",
    categories=("Copying", "Easy [/b]"),
    instances=[
        Instance("one two", ("one two",), "i-1"),
        Instance("three", ("nothing like it", "Three!"), "i-2"),
        Instance("four", ("five",), "i-3"),
    ],
)
LABEL = Task(
    "Yes or no?",
    [("is it?", "yes")],
    name="task2_label",
    categories=("Copying",),
    instances=[Instance("1 > 0", ("yes",), "j-1")],
)
BARE = Task("Say x.", [("a", "x")], instances=[Instance("b", ("y",))])


def answers(task: Task) -> list[str]:
    return {"task1_echo": ["one two", "three", "six"], "task2_label": ["no"]}[task.name]


def rendered(*tables: Table) -> str:
    console = Console(file=StringIO(), width=120)
    console.print(*tables)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_means_are_over_instances_by_task_category_and_all() -> None:
    results = evaluate(System("model", answers), [ECHO, LABEL], ANSWERS)
    by_task = {task.name: task.score for task in results.tasks}
    # Of the three instances of ECHO two are right, of the one of LABEL none.
    assert by_task["task1_echo"].exact_match == pytest.approx(100 * 2 / 3)
    assert by_task["task2_label"].exact_match == 0
    assert results.overall.exact_match == pytest.approx(100 * 2 / 4)
    assert results.overall.rouge_l == pytest.approx(100 * 2 / 4)
    assert results.categories["Copying"] == results.overall
    assert results.categories["Easy [/b]"] == by_task["task1_echo"]
    assert [score.instances for score in by_task.values()] == [3, 1]


def test_a_task_without_name_and_category_is_listed() -> None:
    results = evaluate(System("model", copy_demonstration), [BARE], ANSWERS)
    assert list(results.categories) == [UNCATEGORIZED]
    assert results.tasks[0].name == BARE.label
    assert len(results.tables()) == 1, "a table of one category would repeat that of the tasks"


def test_each_task_is_reported_as_soon_as_it_is_done() -> None:
    events: list[str] = []

    def predict(task: Task) -> list[str]:
        events.append(f"predict {task.name}")
        return answers(task)

    def on_task(result: TaskResult) -> None:
        events.append(f"scored {result.name}")

    evaluate(System("model", predict), [ECHO, LABEL], ANSWERS, on_task=on_task)
    assert events == [
        "predict task1_echo",
        "scored task1_echo",
        "predict task2_label",
        "scored task2_label",
    ]


def test_copy_baselines() -> None:
    assert copy_input(ECHO) == ["one two", "three", "four"]
    assert copy_demonstration(ECHO) == ["a", "a", "a"]
    assert [system.name for system in ANSWERS.baselines] == ["copy-input", "copy-demonstration"]


def test_results_file_holds_the_scores_and_what_they_are_made_of(tmp_path: Path) -> None:
    results = evaluate(System("mine", answers), [ECHO, LABEL], ANSWERS, details={"seed": 3})
    path = tmp_path / "new" / "results.json"
    results.save(path)
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content == results.to_dict()
    assert (content["system"], content["details"]) == ("mine", {"seed": 3})
    references = {i.id: i.references for task in (ECHO, LABEL) for i in task.instances}
    predictions = [p for task in content["tasks"] for p in task["predictions"]]
    assert [p["id"] for p in predictions] == list(references)
    for p in predictions:
        assert p["rouge_l"] == rouge_l(p["prediction"], references[p["id"]])
        assert p["exact_match"] == exact_match(p["prediction"], references[p["id"]])
    mean = fmean(p["rouge_l"] for p in predictions)
    assert content["overall"]["rouge_l"] == pytest.approx(100 * mean)


def test_tables_show_every_row_and_take_no_text_for_markup() -> None:
    results = evaluate(System("mine :car: [/b]", answers), [ECHO, LABEL], ANSWERS)
    text = rendered(results.task_table(), results.category_table())
    for part in ("task1_echo", "66.67", "Easy [/b]", "mine :car: [/b]", "50.00", "all instances"):
        assert part in text


def test_systems_are_shown_side_by_side() -> None:
    systems = [evaluate(system, [ECHO, LABEL], ANSWERS) for system in ANSWERS.baselines]
    text = rendered(comparison_table(systems, title="held-out tasks"))
    assert "held-out tasks" in text
    for results in systems:
        (line,) = (line for line in text.splitlines() if results.system in line)
        assert f"{results.overall.exact_match:.2f}" in line


def test_nothing_to_evaluate_is_said_before_any_generation() -> None:
    empty = Task("d", [("a", "b")], name="task3_empty")
    with pytest.raises(HartError, match="no tasks"):
        evaluate(System("model", answers), [], ANSWERS)
    with pytest.raises(HartError, match="task3_empty: has no Instances"):
        evaluate(System("model", lambda task: pytest.fail("asked for predictions")), [ECHO, empty], ANSWERS)


def test_a_predictor_that_loses_instances_is_a_defect() -> None:
    with pytest.raises(ValueError, match="1 predictions for 3 instances"):
        evaluate(System("model", lambda task: ["x"]), [ECHO], ANSWERS)


def test_copy_baselines_on_real_tasks(shared_data: Path) -> None:
    tasks = load_sni(shared_data / "sni", "test", max_instances=20)
    copied = {
        "copy-input": lambda task, instance: instance.input,
        "copy-demonstration": lambda task, instance: task.demonstrations[0].output,
    }
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    results = {}
    for system in ANSWERS.baselines:
        name = system.name
        results[name] = evaluate(system, tasks, ANSWERS)
        expected = [
            scorer.score_multi(instance.references, copied[name](task, instance))["rougeL"].fmeasure
            for task in tasks
            for instance in task.instances
        ]
        assert results[name].overall.instances == len(expected)
        assert results[name].overall.rouge_l == pytest.approx(100 * fmean(expected))
    # A question put in other words shares more with the question than with another answer. (Over
    # all 119 test tasks copying the answer wins, 28.54 to 14.20, thanks to tasks with few possible
    # answers. The tasks at hand here have none of that kind.)
    by_category = [results[name].categories["Question Rewriting"] for name in results]
    assert by_category[0].rouge_l > by_category[1].rouge_l
