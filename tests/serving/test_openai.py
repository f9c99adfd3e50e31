"""/v1/completions with requests of OpenAI's clients: fields without effect are accepted, others refused."""

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from hart import HartModel

from .conftest import adapt, task, to_json

PYTHON_SDK = {
    "accept": "application/json",
    "authorization": "Bearer not-needed",
    "user-agent": "OpenAI/Python 2.8.0",
    "x-stainless-lang": "python",
    "x-stainless-retry-count": "0",
}
PROMPTS = ["one 1", "two 3 one", "the cat sat on the mat"]
NULLS = (
    "best_of echo frequency_penalty logit_bias logprobs max_tokens n presence_penalty seed stop stream stream_options "
    "suffix temperature top_p user"
).split()


@pytest.fixture
def id(client: TestClient) -> str:
    return client.post("/v1/adaptations", json=to_json(task(1))).json()["id"]


@pytest.fixture
def expected(model: HartModel) -> str:
    return model.generate("one 1", model.adapt(task(1)))[0]


def ask(client: TestClient, id: str, **fields: Any) -> Any:
    return client.post("/v1/completions", json={"model": id, "prompt": "one 1", **fields}, headers=PYTHON_SDK)


def events(reply: Any) -> list[Any]:
    *lines, last, end = reply.text.split("\n\n")
    assert reply.status_code == 200 and last == "data: [DONE]" and end == ""
    return [json.loads(line.removeprefix("data: ")) for line in lines]


NO_OPS: list[dict[str, Any]] = [
    *({name: None} for name in NULLS),
    dict.fromkeys(NULLS),
    {"n": 1, "best_of": 1, "echo": False, "logprobs": False, "suffix": "", "stop": [], "logit_bias": {}, "user": "me"},
    {"stop": "", "presence_penalty": 0, "frequency_penalty": 0.0, "seed": 7, "temperature": 0, "top_p": 0.9},
    # LangChain's defaults, but for its temperature of 0.7.
    {"temperature": 0.0, "top_p": 1, "frequency_penalty": 0, "presence_penalty": 0, "n": 1, "max_tokens": 8},
    {"stream_options": {"include_usage": False, "include_obfuscation": None}},
    {"store": False, "metadata": {"a": "b"}, "service_tier": "auto", "stop": [""], "max_completion_tokens": 8},
]


@pytest.mark.parametrize("fields", NO_OPS)
def test_what_changes_nothing_is_taken(fields: dict[str, Any], client: TestClient, id: str, expected: str) -> None:
    reply = ask(client, id, **fields)
    assert reply.status_code == 200, reply.text
    assert reply.json()["choices"][0]["text"] == expected


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"n": 2}, "n"),
    ({"n": True}, "n"),
    ({"best_of": 3}, "best_of"),
    ({"echo": True}, "echo"),
    ({"logprobs": True}, "logprobs"),
    ({"logprobs": 21}, "logprobs"),
    ({"logprobs": 2, "stream": True}, "logprobs"),
    ({"suffix": "."}, "suffix"),
    ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
    ({"stop": 7}, "stop"),
    ({"stop": "a" * 1001}, "stop"),
    ({"stop": ["one", 7]}, "stop.1"),
    ({"seed": 2**63, "temperature": 1.0}, "seed"),
    ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
    ({"store": True}, "store"),
    ({"service_tier": "flex"}, "service_tier"),
    ({"metadata": {"a": 1}}, "metadata.a"),
    ({"model": "gpt-4o"}, "model"),
    ({"model": "base\n"}, "model"),
    ({"presence_penalty": 0.5}, "presence_penalty"),
    ({"frequency_penalty": -1}, "frequency_penalty"),
    ({"logit_bias": {"50256": -100}}, "logit_bias"),
    ({"top_p": 0.5}, "top_p"),
    ({"top_p": 0.5, "temperature": None}, "top_p"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
    ({"prompt": [1, 2, 3]}, "prompt"),
    ({"prompt": [[1, 2], [3]]}, "prompt"),
    ({"prompt": None}, "prompt"),
    ({"prompt": ["one 1", " "]}, "prompt.1"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": True}, "max_tokens"),
    ({"top_k": 1}, "top_k"),
]


@pytest.mark.parametrize(("fields", "named"), REFUSED)
def test_what_would_change_the_answer_is_refused_by_name(
    fields: dict[str, Any], named: str, client: TestClient, id: str
) -> None:
    reply = ask(client, id, **fields)
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (400, named), reply.text
    assert (
        error["message"].startswith(f"{named}: ") and "\n" not in error["message"] and "Value error" not in reply.text
    )


def test_tokens_are_counted_as_they_are_generated(client: TestClient, model: HartModel, id: str) -> None:
    """Of answers that end and of ones that are cut, whatever their text would be tokenised to."""
    adaptation, prompts = model.adapt(task(1)), ["one 1", "two 3 one", "the cat sat on the mat"]
    reasons = set()
    for limit in (1, 2, 3, 5, 8, 40):
        answers = model.answers(prompts, adaptation, max_new_tokens=limit)
        reply = client.post("/v1/completions", json={"model": id, "prompt": prompts, "max_tokens": limit}).json()
        told = [(each["text"], each["finish_reason"]) for each in reply["choices"]]
        assert told == [(each.text, "stop" if each.finished else "length") for each in answers]
        read, written = sum(each.query_tokens for each in answers), sum(each.tokens for each in answers)
        usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
        assert reply["usage"] == usage
        reasons |= {reason for _, reason in told}
        for prompt, answer in zip(prompts, answers, strict=True):
            fields = {"model": id, "prompt": prompt, "max_tokens": limit, "stream": True}
            *chunks, end = events(client.post("/v1/completions", json=fields))
            assert end["choices"][0]["finish_reason"] == ("stop" if answer.finished else "length")
            assert all("usage" not in each for each in [*chunks, end])
            assert all(each["choices"][0]["finish_reason"] is None for each in chunks)
    assert "length" in reasons


def test_an_end_at_the_limit_is_an_end(client: TestClient, model: HartModel, id: str, monkeypatch: Any) -> None:
    """The last token that there was room for is the end of sequence, which an untrained model never says of itself."""
    monkeypatch.setattr(model.main.model.generation_config, "forced_eos_token_id", model.main.tokenizer.eos_token_id)
    reply = ask(client, id, max_tokens=3).json()
    assert (reply["choices"][0]["finish_reason"], reply["usage"]["completion_tokens"]) == ("stop", 3)


def test_usage_of_a_stream(client: TestClient, model: HartModel, id: str, expected: str) -> None:
    (answer,) = model.answers("one 1", model.adapt(task(1)))
    *chunks, end, usage = events(ask(client, id, stream=True, stream_options={"include_usage": True}))
    assert "".join(each["choices"][0]["text"] for each in chunks) == expected
    assert end["choices"][0]["finish_reason"] == ("stop" if answer.finished else "length")
    assert usage["choices"] == [] and usage["usage"]["completion_tokens"] == answer.tokens
    assert usage["usage"]["prompt_tokens"] == answer.query_tokens
    assert all(each["usage"] is None for each in [*chunks, end])
    assert {each["id"] for each in [*chunks, end, usage]} == {usage["id"]}


def test_nulls_and_one_token_of_the_other_routes(client: TestClient, model: HartModel, id: str, expected: str) -> None:
    nulls = dict.fromkeys(("max_new_tokens", "num_beams", "temperature", "top_p", "stream"))
    reply = client.post("/v1/generate", json={"inputs": ["one 1"], "adaptation": id, **nulls})
    assert reply.json()["outputs"] == [expected]
    one = client.post("/v1/generate", json={"inputs": ["one 1"], "adaptation": id, "max_new_tokens": 1})
    assert one.json()["outputs"] == model.generate("one 1", model.adapt(task(1)), max_new_tokens=1)
    alone = client.post("/v1/generate", json={"inputs": ["one 1"], "adaptation": id, "top_p": 0.5})
    assert alone.status_code == 422 and alone.json()["error"]["param"] == "top_p"
    scored = {"input": "one 1", "choices": ["one"], "adaptation": None, "normalisation": None}
    assert client.post("/v1/score", json=scored).status_code == 200
    shown = [{**each, "explanation": None} for each in to_json(task(1))["demonstrations"]]
    same = client.post("/v1/adaptations", json={"definition": task(1).definition, "demonstrations": shown})
    assert same.json()["id"] == id
    described = client.get("/openapi.json").json()["components"]["schemas"]["GenerateIn"]["properties"]
    assert all({"type": "null"} in described[name]["anyOf"] for name in nulls)


def test_completions(client: TestClient, model: HartModel) -> None:
    id = adapt(client, 1)
    (expected,) = model.generate("one 1", model.adapt(task(1)))
    one = client.post("/v1/completions", json={"model": id, "prompt": "one 1"}).json()
    (choice,) = one["choices"]
    assert (choice["text"], choice["index"], one["object"], one["model"]) == (expected, 0, "text_completion", id)
    usage = one["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    several = client.post("/v1/completions", json={"model": id, "prompt": PROMPTS, "max_tokens": 2}).json()
    assert [each["index"] for each in several["choices"]] == [0, 1, 2]
    cut = model.generate(PROMPTS, model.adapt(task(1)), max_new_tokens=2)
    assert [each["text"] for each in several["choices"]] == cut
    assert "length" in {each["finish_reason"] for each in several["choices"]}
