"""Accuracy of chosen answers against explicit counting, ties, baselines, and the paper's table."""

import json
from pathlib import Path
from statistics import mean

import pytest
from rich.console import Console
from sklearn.metrics import f1_score

from hart.data.p3.subsets import load_p3
from hart.data.tasks import Instance, Task
from hart.errors import HartError
from hart.evaluation.base import System
from hart.evaluation.choices import BASELINES, CHOICES, ChoiceResults, chance, comparison_table, majority
from hart.evaluation.metrics import macro_f1
from hart.evaluation.run import evaluate


def evaluate_choices(score, tasks: list[Task], *, system: str = "model", **options) -> ChoiceResults:
    return evaluate(System(system, score=score), tasks, CHOICES, **options)


def task(name: str, answers: str, choices: str = "abc", category: str = "") -> Task:
    instances = [Instance(f"{name} {i}", (answer,), choices=tuple(choices)) for i, answer in enumerate(answers)]
    return Task("", [("x", "y")], name=name, categories=[category] if category else [], instances=instances)


def always(choice: int):
    return lambda task: [[float(place == choice) for place in range(len(i.choices))] for i in task.instances]


def test_accuracy_counts_right_answers():
    results = evaluate_choices(always(1), [task("t", "abbc")])
    (template,) = results.tasks
    assert template.accuracy == results.accuracy == 50
    assert [answer.correct for answer in template.instances] == [0, 1, 1, 0]
    assert template.instances[0].choice == 1


def test_macro_f1_is_that_of_scikit_learn():
    targets, predictions = [0, 0, 1, 2, 2, 2], [0, 1, 1, 2, 0, 0]
    assert macro_f1(targets, predictions) == pytest.approx(f1_score(targets, predictions, average="macro"))
    assert macro_f1([0, 0], [3, 0]) == pytest.approx(f1_score([0, 0], [3, 0], average="macro", zero_division=0))
    (template,) = evaluate_choices(always(0), [task("t", "aabc")]).tasks
    assert template.macro_f1 == pytest.approx(100 * f1_score([0, 0, 1, 2], [0] * 4, average="macro"))
    for targets, predictions in (([], []), ([1], [1, 2])):
        with pytest.raises(ValueError, match="one prediction for each"):
            macro_f1(targets, predictions)


def equal(task: Task) -> list[list[float]]:
    """A model that cannot tell the first two choices apart."""
    return [[0.0, 0.0, -1.0]] * len(task.instances)


@pytest.mark.parametrize("answers", ["ab", "aa", "bb", "bbbb"])
@pytest.mark.parametrize("choices", ["abc", "bac"])
def test_choices_with_equal_scores_share_what_is_earned_in_any_order(answers: str, choices: str):
    results = evaluate_choices(equal, [task("t", answers, choices), task("u", "c", choices)])
    tied, clear = results.tasks
    assert tied.accuracy == 50 and clear.accuracy == 0
    assert tied.macro_f1 is None and tied.tied == len(answers)
    assert all(answer.tied for answer in tied.instances)


def test_ties_are_marked_and_told_once_with_counts():
    tasks = [task("t", "ab"), task("u", "a"), task("of one kind", "a", "aab")]
    results = evaluate_choices(equal, tasks)
    mark = {"instances": 3, "of": 4, "tasks": 2, "of_tasks": 3, "first": "t"}
    content = results.to_dict()
    assert content["details"]["tied_choices"] == mark
    assert [each["tied_choices"] for each in content["tasks"]] == [2, 1, 0]
    (remark,) = results.remarks
    assert remark.startswith("3 of 4 instances (in 2 of 3 tasks, first: t) have several best choices with equal scores")
    assert evaluate_choices(always(1), tasks).remarks == []
    assert "tied_choices" not in evaluate_choices(always(1), tasks).to_dict()["details"]


def test_equal_texts_are_one_answer():
    assert evaluate_choices(equal, [task("t", "aa", "aab")]).accuracy == 100
    # The second "a" is as right as the first.
    assert evaluate_choices(always(2), [task("t", "ab", "aba")]).accuracy == 50


def test_macro_f1_needs_the_same_choices_everywhere():
    mixed = Task("", [("x", "y")], name="m", instances=[*task("t", "a").instances, *task("t", "a", "ab").instances])
    assert evaluate_choices(always(0), [mixed]).tasks[0].macro_f1 is None


@pytest.mark.parametrize(("answers", "right"), [("abb", 200 / 3), ("abab", 50), ("cab", 100 / 3)])
def test_majority_is_the_most_frequent_answer(answers: str, right: float):
    assert evaluate_choices(majority, [task("t", answers)]).accuracy == pytest.approx(right)


def test_chance_is_what_guessing_earns():
    assert BASELINES[1].score is chance
    assert evaluate_choices(chance, [task("t", "abc")]).accuracy == pytest.approx(100 / 3)
    assert evaluate_choices(chance, [task("t", "ab", "aabc")]).accuracy == pytest.approx(100 * 3 / 8)


TEMPLATES = {
    "anli_r1_x": ("aa", "anli_r1"),
    "anli_r1_y": ("ab", "anli_r1"),
    "anli_r3_x": ("bb", "anli_r3"),
    "super_glue_cb_x": ("ab", "super_glue_cb"),
    "super_glue_copa_x": ("ab", "super_glue_copa"),
    "super_glue_copa_y": ("aa", "super_glue_copa"),
    "super_glue_copa_z": ("aa", "super_glue_copa"),
    "of_my_own": ("ab", ""),
}


def test_columns_are_those_of_the_paper():
    tasks = [task(name, answers, "ab", category) for name, (answers, category) in TEMPLATES.items()]
    results = evaluate_choices(always(0), tasks, system="first")
    # ANLI is the mean of its rounds: (75 + 0) / 2, not the mean of three templates.
    expected = {"ANLI": 37.5, "CB": 50, "COPA": pytest.approx(250 / 3), "of_my_own": 50}
    assert results.columns() == expected and list(results.columns()) == list(expected)
    assert results.accuracy == pytest.approx(mean([37.5, 50, 250 / 3, 50]))
    assert list(results.macro_f1) == ["CB"]
    console = Console(width=120, record=True)
    other = evaluate_choices(majority, tasks[:1], system="other")
    console.print(comparison_table([results, other], summary="median", title="here"))
    lines = console.export_text().splitlines()
    assert lines[0].strip() == "here"
    assert [cell.strip() for cell in lines[2].split("┃")[1:-1]] == ["system", *expected, "Avg."]
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines[4:6]]
    assert cells[0] == ["first", "37.5", "50.0", "100.0", "50.0", "59.4"]
    assert cells[1] == ["other", "100.0", "–", "–", "–", "100.0"]


def test_results_are_written_whole(tmp_path: Path):
    results = evaluate_choices(always(0), [task("super_glue_cb_x", "ab")], system="s", details={"seed": 3})
    results.save(tmp_path / "results.json")
    content = json.loads((tmp_path / "results.json").read_text())
    assert (content["system"], content["details"], content["accuracy"]) == ("s", {"seed": 3}, 50)
    assert content["columns"]["mean"] == content["columns"]["median"] == {"CB": 50}
    (only,) = content["tasks"]
    assert (only["name"], only["dataset"], only["instances"]) == ("super_glue_cb_x", "super_glue_cb", 2)
    assert only["answers"][1] == {"id": "", "choice": 0, "correct": 0.0, "scores": [1.0, 0.0, 0.0], "tied": False}


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ([], "there are no tasks"),
        ([task("t", "")], "t: has no Instances"),
        ([task("t", "ad")], "t: instance 1: the answer 'd' is not among the choices"),
        ([task("t", "a", "a")], "t: instance 0: has 1 choices"),
    ],
)
def test_what_cannot_be_judged_is_refused_before_the_work(tasks: list[Task], message: str):
    def never(task: Task):
        raise AssertionError

    with pytest.raises(HartError, match=message):
        evaluate_choices(never, tasks)


def test_scores_that_are_no_scores_are_refused():
    with pytest.raises(HartError, match="t: the scores are not finite"):
        evaluate_choices(lambda _: [[0.0, float("nan"), 1.0]], [task("t", "a")])
    with pytest.raises(ValueError, match="not one for each choice"):
        evaluate_choices(lambda _: [[0.0]], [task("t", "a")])


def test_baselines_on_real_data(shared_data: Path):
    tasks = load_p3(shared_data / "p3", "test", subsets=["super_glue_copa_*", "super_glue_cb_*"])
    found = {each.name: evaluate(each, tasks, CHOICES).columns() for each in BASELINES}
    assert found["chance"] == {"CB": pytest.approx(100 / 3), "COPA": 50}
    assert found["majority"]["COPA"] >= 50 and found["majority"]["CB"] > 100 / 3
