"""Queries far from a bundled model's training data are reported, its own queries never."""

import json
import logging
from pathlib import Path

import pytest

from hart import Demonstration, HartModel, Task
from hart.cli import main
from hart.data.procedural import load_procedural
from hart.data.prompts import Cuts
from hart.model.bundled import MODELS, resolve_model
from hart.model.familiarity import MOST, SEEN_FILE, note_unfamiliar, unseen_share

TASK = Task("Keep only the fruits.", [Demonstration("apple saw", "apple")])
ENGLISH = (
    "The committee decided on Tuesday that the new bridge should be finished before winter.",
    "Question: why do leaves fall? Context: Trees save water when the days become short.",
    "Größe und Gewicht werden nicht angegeben.",
)


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> HartModel:
    return HartModel.from_pretrained(request.param)


def share(model: HartModel, query: str) -> float:
    found = unseen_share(model.name, model.input_format.encode_query(model.main.tokenizer, query))
    assert found is not None
    return found


def test_the_list_is_that_of_the_training_queries(model: HartModel) -> None:
    kept = json.loads((Path(resolve_model(model.name)) / SEEN_FILE).read_text(encoding="utf-8"))
    form, tokenizer = model.input_format, model.main.tokenizer
    some = [each.input for task in load_procedural("train", max_instances=3) for each in task.instances]
    assert {token for query in some for token in form.encode_query(tokenizer, query)} <= set(kept)
    assert kept == sorted(set(kept)) and len(kept) < 300


def test_unseen_tasks_are_familiar_and_english_is_not(model: HartModel) -> None:
    own = [each.input for task in load_procedural("test", max_instances=10) for each in task.instances]
    assert max(share(model, query) for query in own) == 0
    assert min(share(model, query) for query in ENGLISH) > MOST


def test_tasks_are_told_of_by_their_demonstrations(model: HartModel, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for task in load_procedural("test", max_instances=1):
            model.adapt(Task(task.definition, task.demonstrations[:2], name=task.name))
        assert caplog.messages == []
        model.adapt(Task("Judge the sentence.", [Demonstration(each, "good") for each in ENGLISH[:2]], name="english"))
    (said,) = caplog.messages
    assert f"of its demonstrations never occur in the training of {model.name}" in said and "english" in said


def test_a_server_starts_without_a_word(model: HartModel, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("fastapi", reason="needs the extra serve")
    from fastapi.testclient import TestClient

    from hart.serving.app import create_app

    with caplog.at_level(logging.WARNING), TestClient(create_app(model)):
        pass
    assert caplog.messages == []


def test_python_and_the_command_line_warn_once(
    model: HartModel, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    adaptation = model.adapt(TASK)
    with caplog.at_level(logging.WARNING):
        model.generate(["plum lion hat banana"], adaptation)
        model.generate([ENGLISH[0]])  # the base alone: nobody knows what it was trained for
    assert caplog.messages == []
    model.generate(["plum lion", *ENGLISH], adaptation)
    (said,) = caplog.messages
    assert said.startswith("query 2 of 4: ") and f"never occur in the training of {model.name}" in said
    assert "the same for query 3 of 4, query 4 of 4" in said
    adaptation.save_pretrained(tmp_path / "a")
    for query, lines in (("plum lion", 0), (ENGLISH[0], 1)):
        capsys.readouterr()
        assert main(["predict", str(tmp_path / "a"), "--input", query]) == 0
        assert len(capsys.readouterr().err.splitlines()) == lines


def test_of_other_models_nothing_is_known() -> None:
    cuts = Cuts()
    assert unseen_share("runs/mine/final", [1, 2, 3]) is None and unseen_share("mini", []) is None
    note_unfamiliar("runs/mine/final", [1, 2, 3], cuts, "query 1")
    assert not cuts
