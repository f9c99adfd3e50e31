"""Chat completions, stop sequences and seeds: answers equal the local model's, for both families."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient

from hart import HartModel
from hart.model.answering import Answer
from hart.serving.stopping import find_stop

from ..conftest import adapt, said, task
from ..test_openai import events

QUERIES = ["one 1", "the cat sat and one", "two 3"]
CHAT = "/v1/chat/completions"


def local(model: HartModel, query: str = "one 1", **options: Any) -> Answer:
    (answer,) = model.answers(query, model.adapt(task(1)), **options)
    return answer


def chat(client: TestClient, id: str, query: Any = "one 1", **fields: Any) -> Any:
    return client.post(CHAT, json={"model": id, "messages": [{"role": "user", "content": query}], **fields})


def content(reply: Any) -> str:
    assert reply.status_code == 200, reply.text
    return reply.json()["choices"][0]["message"]["content"]


def test_a_message_is_a_query(client: TestClient, model: HartModel, id: str) -> None:
    for query in QUERIES:
        expected = local(model, query)
        reply = chat(client, id, query).json()
        usage = {"prompt_tokens": expected.query_tokens, "completion_tokens": expected.tokens}
        assert reply.pop("id").startswith("chatcmpl-") and reply.pop("created") > 1_700_000_000
        assert reply == {
            "object": "chat.completion",
            "model": id,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": expected.text, "refusal": None},
                    "finish_reason": "stop" if expected.finished else "length",
                    "logprobs": None,
                }
            ],
            "usage": {**usage, "total_tokens": sum(usage.values())},
        }
    assert local(model, QUERIES[0]).text != local(model, QUERIES[1]).text
    short = local(model, max_new_tokens=3).text
    assert content(chat(client, id, max_completion_tokens=3)) == content(chat(client, id, max_tokens=3)) == short


def test_the_base_is_asked_by_its_name(client: TestClient, model: HartModel, id: str) -> None:
    form = model.input_format
    read = form.encode_query(model.main.tokenizer, "one 1")
    (bare,) = model.main.generate([read], max_new_tokens=form.max_target_length)
    assert content(chat(client, "base")) == bare != content(chat(client, id))
    assert (
        client.post("/v1/completions", json={"model": "base", "prompt": "one 1"}).json()["choices"][0]["text"] == bare
    )


def test_a_list_of_text_parts_is_a_text(client: TestClient, model: HartModel, id: str) -> None:
    parts = [{"type": "text", "text": "the cat"}, {"type": "text", "text": "one 1"}]
    assert content(chat(client, id, parts)) == local(model, "the cat\none 1").text
    assert content(chat(client, id, parts[1:])) == local(model).text


def test_a_stream(client: TestClient, model: HartModel, id: str) -> None:
    expected = local(model)
    first, *pieces, last, usage = events(chat(client, id, stream=True, stream_options={"include_usage": True}))
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert "".join(each["choices"][0]["delta"]["content"] for each in pieces) == expected.text
    assert last["choices"][0]["delta"] == {}
    assert last["choices"][0]["finish_reason"] == ("stop" if expected.finished else "length")
    assert usage["choices"] == [] and usage["usage"]["completion_tokens"] == expected.tokens
    chunks = [first, *pieces, last, usage]
    assert {each["object"] for each in chunks} == {"chat.completion.chunk"} and len(
        {each["id"] for each in chunks}
    ) == 1
    assert all(each["usage"] is None for each in chunks[:-1])
    assert all("usage" not in each for each in events(chat(client, id, stream=True)))


NO_OPS: dict[str, Any] = {
    "n": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0.0,
    "logit_bias": {},
    "logprobs": False,
    "top_logprobs": 0,
    "user": "me",
    "safety_identifier": "me",
    "prompt_cache_key": "mine",
    "store": False,
    "metadata": {"run": "7"},
    "service_tier": "default",
    "tools": [],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "functions": [],
    "function_call": "none",
    "response_format": {"type": "text"},
    "modalities": ["text"],
    "stop": [],
    "seed": 7,
    "temperature": 0,
    "top_p": 1,
    "stream": False,
    "max_tokens": 8,
    "max_completion_tokens": 8,
}


def test_what_changes_nothing_is_taken(client: TestClient, model: HartModel, id: str) -> None:
    expected = local(model).text
    for fields in (NO_OPS, dict.fromkeys([*NO_OPS, "stream_options"]), {"parallel_tool_calls": False}):
        assert content(chat(client, id, **fields)) == expected


USER, IMAGE = {"role": "user", "content": "one 1"}, {"type": "image_url", "image_url": {"url": "data:,"}}


@pytest.mark.parametrize(
    ("fields", "named", "told"),
    [
        ({"messages": [{"role": "assistant", "content": "one"}]}, "messages", ""),
        ({"messages": []}, "messages", ""),
        ({"messages": [{"role": "robot", "content": "one"}]}, "messages.0.role", "Input should be 'user'"),
        ({"messages": [{"role": ["system"], "content": "one"}]}, "messages.0.role", ""),
        ({"messages": [{"role": "user"}]}, "messages.0.content", ""),
        ({"messages": "one 1"}, "messages", ""),
        ({"messages": [USER | {"content": " "}]}, "messages", ""),
        ({"messages": [USER | {"content": [{"type": "text", "text": " "}]}]}, "messages", ""),
        ({"messages": [USER | {"content": [IMAGE]}]}, "messages.0.content.0", "must be of type text, as this model"),
        ({"messages": [USER | {"content": "one " * 99}]}, "messages.0.content", "has "),
        ({"messages": [USER | {"content": [{"type": "text", "text": "a" * 30_000}] * 2}]}, "messages.0.content", "has"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "only [] or null is supported"),
        ({"tool_choice": "required"}, "tool_choice", ""),
        ({"response_format": {"type": "json_object"}}, "response_format", 'only {"type": "text"} or null is'),
        ({"n": 2}, "n", "without a temperature all answers are the same"),
        ({"n": 2, "temperature": 1, "stream": True}, "n", "a stream has one answer"),
        ({"n": 65, "temperature": 1}, "n", ""),
        ({"logprobs": 2}, "logprobs", ""),
        ({"logprobs": True, "stream": True}, "logprobs", "a stream has none"),
        ({"top_logprobs": 2}, "top_logprobs", "only with logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", ""),
        ({"audio": {"voice": "alloy"}}, "audio", "only null is supported"),
        ({"web_search_options": {}}, "web_search_options", ""),
        ({"store": True}, "store", ""),
        ({"modalities": ["text", "audio"]}, "modalities", ""),
        ({"top_k": 1}, "top_k", ""),
        ({"model": "gpt-4o"}, "model", "give the id of an adaptation, or base; GET /v1/models lists them"),
    ],
)  # fmt: skip
def test_what_would_change_the_answer_is_refused_by_name(
    fields: dict[str, Any], named: str, told: str, client: TestClient, id: str
) -> None:
    reply = chat(client, id, **fields)
    message, param = said(reply, 400), reply.json()["error"]["param"]
    # A blank message is told by its place where it is the query, and as the last one where there may be more.
    assert param.startswith(named) and message.startswith(f"{param}: {told}"), message


def stops_of(text: str) -> list[list[str]]:
    """Within a word, across words, several, the beginning, and ones that are not there."""
    return [[text[2:4]], [text[3:9]], [text[5:7], text[1:4]], [text[:1]], [text + "!", "\n\n\n"], [text[-1]]]


def test_an_answer_ends_before_its_first_stop_sequence(client: TestClient, model: HartModel, id: str) -> None:
    whole = local(model, max_new_tokens=24)
    tokenizer, reasons = model.main.tokenizer, set()
    for stop in stops_of(whole.text):
        ends = [(whole.text.find(each) + len(each), each) for each in stop if each in whole.text]
        text = whole.text[: min(ends)[0] - len(min(ends)[1])] if ends else whole.text
        cuts = [n for n in range(whole.tokens) if any(each in tokenizer.decode(whole.ids[:n]) for each in stop)]
        expected = (text, "stop" if ends or whole.finished else "length", min(cuts, default=whole.tokens))
        fields = {"stop": stop, "max_tokens": 24, "stream_options": {"include_usage": True}}

        reply = chat(client, id, stop=stop, max_tokens=24).json()
        (choice,) = reply["choices"]
        assert (choice["message"]["content"], choice["finish_reason"], reply["usage"]["completion_tokens"]) == expected

        _, *pieces, last, usage = events(chat(client, id, stream=True, **fields))
        told = [each["choices"][0]["delta"]["content"] for each in pieces]
        assert ("".join(told), last["choices"][0]["finish_reason"], usage["usage"]["completion_tokens"]) == expected

        body = {"model": id, "prompt": "one 1", "stream": True, **fields}
        *pieces, last, usage = events(client.post("/v1/completions", json=body))
        told = [each["choices"][0]["text"] for each in pieces]
        assert ("".join(told), last["choices"][0]["finish_reason"], usage["usage"]["completion_tokens"]) == expected
        reasons.add(expected[1])
    assert content(chat(client, id, stop=whole.text[2:4], max_tokens=24)) == local(model, max_new_tokens=24).text[:2]
    assert "stop" in reasons


def test_stop_sequences_in_a_batch(client: TestClient, model: HartModel, id: str) -> None:
    """Rows end by themselves, whatever ends the others."""
    answers = [local(model, query, max_new_tokens=24).text for query in QUERIES]
    stop = answers[0][2:4]
    body = {"model": id, "prompt": QUERIES, "max_tokens": 24, "stop": stop}
    choices = client.post("/v1/completions", json=body).json()["choices"]
    assert [each["text"] for each in choices] == [text.split(stop)[0] for text in answers]
    with ThreadPoolExecutor(4) as pool:
        asked = [(query, mark) for query in QUERIES for mark in (stop, None)]
        replies = list(pool.map(lambda each: chat(client, id, each[0], stop=each[1], max_tokens=24), asked))
    for (query, mark), reply in zip(asked, replies, strict=True):
        text = answers[QUERIES.index(query)]
        assert content(reply) == (text.split(mark)[0] if mark else text)


def test_generation_ends_with_the_stop_sequence(
    client: TestClient, model: HartModel, id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, written = local(model, max_new_tokens=24), []
    generate = model.main.model.generate

    def counting(*args: Any, **options: Any) -> Any:
        tokens = generate(*args, **options)
        written.append(tokens.shape[1] - (options["input_ids"].shape[1] if "input_ids" in options else 1))
        return tokens

    monkeypatch.setattr(model.main.model, "generate", counting)
    for stream in (False, True):
        assert chat(client, id, stop=whole.text[2:4], max_tokens=24, stream=stream).status_code == 200
    assert len(written) == 2 and max(written) < whole.tokens


def test_a_seed_decides_what_is_sampled(client: TestClient, model: HartModel, id: str) -> None:
    def expected(seed: int, query: str) -> str:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return local(model, query, **how).text

    how = {"temperature": 2.0, "top_p": 0.99}
    asked = [(seed, query) for seed in (7, -1, 2**63 - 1) for query in QUERIES]
    with ThreadPoolExecutor(8) as pool:
        others = [pool.submit(chat, client, id, query, **how) for query in QUERIES * 2]
        replies = list(pool.map(lambda each: content(chat(client, id, each[1], seed=each[0], **how)), asked))
    assert all(each.result().status_code == 200 for each in others)
    assert replies == [expected(*each) for each in asked]
    assert len({tuple(replies[begin : begin + len(QUERIES)]) for begin in range(0, len(asked), len(QUERIES))}) > 1
    before = torch.get_rng_state()
    assert content(chat(client, id, seed=7, **how)) == replies[0]
    assert torch.equal(before, torch.get_rng_state()), "the seed of a request decides what others draw"
    _, *pieces, _ = events(chat(client, id, seed=7, stream=True, **how))
    assert "".join(each["choices"][0]["delta"]["content"] for each in pieces) == expected(7, "one 1")
    body = {"model": id, "prompt": QUERIES, "seed": 7, **how}
    choices = client.post("/v1/completions", json=body).json()["choices"]
    assert [each["text"] for each in choices] == [expected(7, query) for query in QUERIES]


def generated(client: TestClient, **fields: Any) -> list[str]:
    reply = client.post("/v1/generate", json={"inputs": QUERIES, "max_new_tokens": 24, **fields})
    assert reply.status_code == 200, reply.text
    if not fields.get("stream"):
        return reply.json()["outputs"]
    *pieces, last = events(reply)
    assert "".join(each["text"] for each in pieces) == last["output"]
    return [last["output"]]


def test_stop_sequences_of_generate(client: TestClient, model: HartModel, id: str) -> None:
    """With tasks mixed, beams and streams: the local answer, cut."""
    ids = [id, adapt(client, 2), adapt(client, 3)]
    local = [model.adapt(task(number)) for number in (1, 2, 3)]
    for beams in (1, 3):
        whole = [
            model.generate(query, own, max_new_tokens=24, num_beams=beams)[0]
            for query, own in zip(QUERIES, local, strict=True)
        ]
        for stop in (whole[0][2:4], [whole[0][2:4], whole[2][-3:], ""], []):
            marks = [each for each in ([stop] if isinstance(stop, str) else stop) if each]
            expected = [text[: find_stop(text, marks)] for text in whole]
            assert generated(client, adaptation=ids, stop=stop, num_beams=beams) == expected
            if beams == 1:
                assert generated(client, inputs=QUERIES[:1], adaptation=id, stop=stop, stream=True) == expected[:1]
            assert (expected != whole) == bool(stop)


def test_a_seed_of_generate(client: TestClient, model: HartModel, id: str) -> None:
    how = {"temperature": 2.0, "top_p": 0.99, "max_new_tokens": 24}
    expected = []
    for query in QUERIES:
        with torch.random.fork_rng():
            torch.manual_seed(7)
            expected += model.generate(query, model.adapt(task(1)), **how)
    assert generated(client, adaptation=id, seed=7, **how) == expected
    assert generated(client, adaptation=id, seed=7, stream=True, **{**how, "inputs": QUERIES[1:2]}) == expected[1:2]
    stop = expected[0][3:5]
    assert generated(client, adaptation=id, seed=7, stop=stop, **how) == [text.split(stop)[0] for text in expected]
    assert generated(client, adaptation=id, seed=8, **how) != expected
    assert generated(client, adaptation=id, seed=7) == generated(client, adaptation=id)
    for field, wrong in (("seed", 2**63), ("seed", True), ("stop", ["a"] * 5), ("stop", 3), ("stop", "a" * 1001)):
        assert field in said(client.post("/v1/generate", json={"inputs": ["one"], field: wrong}), 422)


def test_models_lists_what_can_be_named(client: TestClient, id: str) -> None:
    another = adapt(client, 2)
    listed = client.get("/v1/models").json()
    assert listed["object"] == "list" and {each["id"] for each in listed["data"]} >= {"base", id, another}
    for each in listed["data"]:
        assert each["object"] == "model" and each["created"] > 1_700_000_000 and each["owned_by"]
        assert client.get(f"/v1/models/{each['id']}").json() == each
        assert content(chat(client, each["id"])) is not None
    client.delete(f"/v1/adaptations/{another}")
    assert another not in {each["id"] for each in client.get("/v1/models").json()["data"]}
    for name in (another, "gpt-4o"):
        assert "post its task" in said(client.get(f"/v1/models/{name}"), 404)
    assert "post its task" in said(chat(client, another), 404)
