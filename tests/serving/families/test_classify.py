"""Classification over HTTP: choices and probabilities of the local model, in batches of several tasks."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from tokenizers import Regex, normalizers
from transformers import AutoTokenizer

from hart import Client, HartError, HartModel
from hart.data.input_format import InputFormat
from hart.model.adaptation import Adaptation
from hart.model.bundled import resolve_base
from hart.model.classifying import CONTENT_FREE, classify
from hart.serving.checks import Checks
from hart.serving.settings import MAX_SCORES

from ..conftest import adapt, running, said, task, to_json

QUERIES = ["one 1", "the cat sat and one", "two 3"]
CHOICES = ["one", "the cat two", "3"]
NUMBERS = [str(number) for number in range(32)]
OWN = [["one", "two"], CHOICES, ["mat", "the cat"]]


def ask(client: TestClient, **fields: Any) -> list[Any]:
    reply = client.post("/v1/classify", json={"inputs": QUERIES, "choices": CHOICES} | fields)
    assert reply.status_code == 200, reply.text
    return reply.json()["classifications"]


def same(found: list[Any], expected: list[Any]) -> bool:
    """Whether choices are the same, and probabilities but for the last digits, in the same order."""
    return len(found) == len(expected) and all(
        one["choice"] == other.choice
        and list(one["probabilities"]) == list(other.probabilities)
        and one["probabilities"] == pytest.approx(other.probabilities, rel=1e-3, abs=0)
        for one, other in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize("choices", [CHOICES, OWN], ids=["of all", "of each"])
@pytest.mark.parametrize("how", [{}, {"normalisation": "mean"}, {"calibrate": True}], ids=str)
def test_classifications_are_those_of_the_local_model(
    choices: Any, how: dict[str, Any], client: TestClient, model: HartModel
) -> None:
    local = [model.adapt(task(number)) for number in range(3)]
    ids = [adapt(client, number) for number in range(3)]
    one = model.classify(QUERIES, choices, local[1], **how)
    assert same(ask(client, choices=choices, adaptation=ids[1], **how), one)
    mixed = model.classify(QUERIES, choices, Adaptation.stack(local), **how)
    assert same(ask(client, choices=choices, adaptation=ids, **how), mixed)
    assert same(ask(client, choices=choices, adaptation=[to_json(task(n)) for n in range(3)], **how), mixed)
    assert not same(ask(client, choices=choices, adaptation=ids[1], **how), mixed), "tasks change no probability"


def test_the_bare_base_reads_as_the_model_does(client: TestClient, model: HartModel) -> None:
    read = [model.input_format.encode_query(model.main.tokenizer, text) for text in (*QUERIES, CONTENT_FREE)]
    for calibrate in (False, True):
        expected = classify(model.main, read[:-1], CHOICES, calibrate=calibrate, content_free=read[-1])
        assert same(ask(client, calibrate=calibrate), expected)


def test_requests_of_several_tasks_share_a_batch(client: TestClient, model: HartModel) -> None:
    ids = [adapt(client, number) for number in range(3)]
    asked = [(n, own) for n in range(3) for own in OWN]
    with ThreadPoolExecutor(len(asked)) as pool:
        found = list(pool.map(lambda each: ask(client, adaptation=ids[each[0]], choices=each[1]), asked))
    for (n, own), got in zip(asked, found, strict=True):
        assert same(got, model.classify(QUERIES, own, model.adapt(task(n))))
    counted = dict(line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines())
    batches, tasks = (float(counted[f'hart_batch_tasks_{name}{{kind="classify"}}']) for name in ("count", "sum"))
    assert tasks > batches


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"choices": ["one"]}, "choices: List should have at least 2 items"),
        ({"choices": "one,two"}, "choices: Input should be a valid list"),
        ({"choices": ["one", " "]}, "choices.1"),
        ({"choices": ["one", " One"]}, "choices: the choices 'one' and ' One' read the same"),
        ({"choices": [["a", "b"], ["\uff41", "b"], ["ﬁ", "fi"]]}, "choices.2: the choices 'ﬁ' and 'fi' read the same"),
        ({"choices": [["a", "b"]] * 2}, "choices: lists for 2 of 3 inputs"),
        ({"choices": [["a", "b"], "a", ["a", "b"]]}, "choices.1: Input should be a valid list"),
        ({"choices": ["a", ["a", "b"]]}, "choices.1: Input should be a valid string"),
        ({"choices": ["a", "cat " * 100]}, "choices.1: has "),
        ({"choices": [str(n) for n in range(65)]}, "choices: List should have at most 64"),
        ({"inputs": ["one"] * 33, "choices": NUMBERS}, f"choices: 1056 over all inputs, at most {MAX_SCORES}"),
        ({"inputs": ["one", "cat " * 100, "two"]}, "inputs.1: has "),
        ({"adaptation": ["0" * 64] * 2}, "adaptation: 2 for 3 inputs"),
        ({"normalisation": "most"}, "normalisation"),
        ({"num_beams": 2}, "num_beams"),
    ],
)  # fmt: skip
def test_mistakes_are_named(change: dict[str, Any], told: str, client: TestClient) -> None:
    reply = client.post("/v1/classify", json={"inputs": QUERIES, "choices": CHOICES} | change)
    assert said(reply, 422).startswith(told)


def test_choices_that_are_the_same_tokens_are_refused() -> None:
    """As where a tokenizer has neither of their characters."""
    tokenizer = AutoTokenizer.from_pretrained(resolve_base("mini-base"))
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(Regex("[☃☄]"), "?")
    checks = Checks(tokenizer, tokenizer, InputFormat())
    assert checks.classes([" one", "two three "], "choices")[0] == ["one", "two three"]
    with pytest.raises(HartError, match="choices.3: the choices '☃' and '☄' have the same tokens in this model"):
        checks.classes(["☃", "☄"], "choices.3")
    checks.close()


def test_the_client_has_the_signature_of_the_local_model(folder: Path, model: HartModel, tmp_path: Path) -> None:
    local = [model.adapt(task(number)) for number in range(3)]
    with running(folder, "--store", tmp_path / "store") as (_, address), Client(address) as remote:
        there = [remote.adapt(task(number)) for number in range(3)]
        calls: list[tuple[Any, ...]] = [(QUERIES[0], CHOICES), (QUERIES, CHOICES), (tuple(QUERIES), tuple(OWN))]
        for queries, choices in calls:
            for how in ({}, {"calibrate": True, "normalisation": "mean"}):
                got = remote.classify(queries, choices, there[0], **how)
                assert same([vars(each) for each in got], model.classify(queries, choices, local[0], **how))
        got = remote.classify(QUERIES, OWN, there)
        assert same([vars(each) for each in got], model.classify(QUERIES, OWN, Adaptation.stack(local)))
        assert remote.classify([], CHOICES) == model.classify([], CHOICES) == []
        for of, adapted in ((model, local[0]), (remote, there[0])):
            for choices in ("one", ["one"], ["one", "One"], [["one", "two"]] * 2, ["one", ""]):
                with pytest.raises(HartError) as told:
                    of.classify(QUERIES, choices, adapted)  # type: ignore[attr-defined]
                assert "\n" not in str(told.value)
