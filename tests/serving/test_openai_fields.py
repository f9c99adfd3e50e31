"""The table in docs/serving.md of fields of OpenAI's clients: complete, and correct for each field."""

import re
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from starlette.testclient import TestClient

from hart.serving.openai_schemas import ChatIn, CompletionIn, ConversationIn, StreamOptions

from .conftest import adapt, said

PATHS = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}
SCHEMAS = {"completions": CompletionIn, "chat": ChatIn}
ANY_OTHER = "of_tomorrow"
TEXT = Path(__file__).parents[2] / "docs" / "serving.md"
SAMPLED = {"temperature": 1.0, "seed": 3}
USER = {"role": "user", "content": "one 1"}


def read_table() -> dict[tuple[str, str], str]:
    """What is done with each field of each route: taken, not kept, refused, ignored."""
    found = {}
    for line in TEXT.read_text(encoding="utf-8").splitlines():
        match = re.fullmatch(r"\| (.+?) \| (both|completions|chat) \| \*\*(.+?)\*\*.*\|", line)
        if match:
            names = re.findall(r"`(\w+)`", match[1]) or [ANY_OTHER]
            routes = list(PATHS) if match[2] == "both" else [match[2]]
            for name in names:
                for route in routes:
                    assert (route, name) not in found, f"{name} has two rows"
                    found[route, name] = match[3]
    return found


TABLE = read_table()

# Values that change nothing, or act; and values that are refused.
CASES: dict[str, tuple[list[Any], list[Any]]] = {
    "model": (["base"], ["gpt-4o", None]),
    "prompt": (["one 1", ["one 1", "two 3"]], [[1, 2], " ", None]),
    "messages": ([[USER], [{"role": "user", "content": [{"type": "text", "text": "one"}]}]], [[], None]),
    "max_tokens": ([1, 8], [0, 513]),
    "max_completion_tokens": ([1, 8], [0, 513]),
    "temperature": ([0, 2], [-1, 3]),
    "top_p": ([1], [0, 2]),
    "seed": ([0, -1], [2**63, 0.5]),
    "stop": (["a", ["a", "b"], []], [["a"] * 5, 3]),
    "stream": ([False], ["perhaps"]),
    "stream_options": ([{}, {"include_usage": False}], [{"include_usage": True}, {"include_obfuscation": True}]),
    "n": ([1], [0, 2, 65]),
    "best_of": ([1], [2]),
    "logprobs": ([False], ["perhaps", -1]),
    "top_logprobs": ([0], [-1, 2, 21]),
    "user": (["me", ""], [7]),
    "metadata": ([{"a": "b"}], [{"a": 1}, "a"]),
    "safety_identifier": (["me"], [7]),
    "prompt_cache_key": (["me"], [7]),
    "frequency_penalty": ([0, 0.0], [0.1, -2]),
    "presence_penalty": ([0, 0.0], [0.1, -2]),
    "logit_bias": ([{}], [{"50256": -100}]),
    "echo": ([False], [True, 0]),
    "suffix": ([""], ["."]),
    "store": ([False], [True]),
    "service_tier": (["auto", "default"], ["flex", "priority"]),
    "tools": ([[]], [[{"type": "function", "function": {"name": "f"}}]]),
    "functions": ([[]], [[{"name": "f"}]]),
    "tool_choice": (["none", "auto"], ["required"]),
    "function_call": (["none", "auto"], [{"name": "f"}]),
    "parallel_tool_calls": ([True, False], [1]),
    "response_format": ([{"type": "text"}], [{"type": "json_object"}]),
    "modalities": ([["text"]], [["text", "audio"]]),
    "audio": ([], [{"voice": "alloy", "format": "mp3"}]),
    "web_search_options": ([], [{}]),
    "moderation": ([], [{"model": "omni-moderation-latest"}]),
    "top_k": ([-1, 0], [5]),
    "min_p": ([0], [0.1]),
    "repetition_penalty": ([1], [1.2]),
    "reasoning_effort": (["low"], []),
    "verbosity": (["low"], []),
    "prediction": ([{"type": "content", "content": "one"}], []),
    "prompt_cache_options": ([{"mode": "implicit"}], []),
    "prompt_cache_retention": (["24h"], []),
    ANY_OTHER: ([{"a": [1]}], []),
}


def test_each_field_of_the_schemas_has_a_row() -> None:
    for route, schema in SCHEMAS.items():
        rows = {name for where, name in TABLE if where == route and TABLE[where, name] != "ignored"}
        assert rows == set(schema.model_fields), route
    assert ChatIn.model_fields.keys() == ConversationIn.model_fields.keys()
    assert set(StreamOptions.model_fields) == {"include_usage", "include_obfuscation"}
    assert {name for _, name in TABLE} == CASES.keys()
    assert set(TABLE.values()) == {"taken", "not kept", "refused", "ignored"}


def test_each_field_of_the_official_client_has_a_row() -> None:
    pytest.importorskip("openai", reason="needs the package openai")
    from openai.types import completion_create_params as completions
    from openai.types.chat import completion_create_params as chat

    for route, params in (
        ("completions", completions.CompletionCreateParamsStreaming),
        ("chat", chat.CompletionCreateParamsStreaming),
    ):
        names = set(params.__annotations__)
        for base in params.__mro__:
            names |= set(getattr(base, "__annotations__", {}))
        names |= set(get_type_hints(params))
        missing = {name for name in names if (route, name) not in TABLE}
        assert not missing, f"{route}: {sorted(missing)} are in no row of docs/serving.md"


def ask(client: TestClient, route: str, id: str, name: str, value: Any) -> Any:
    query = {"prompt": "one 1"} if route == "completions" else {"messages": [USER]}
    return client.post(PATHS[route], json={"model": id, **query, name: value})


def text(reply: Any) -> str:
    choice = reply.json()["choices"][0]
    return choice["text"] if "text" in choice else choice["message"]["content"]


def test_what_the_rows_say(serve: Any) -> None:
    client, strict = serve(), serve(strict=True)
    id = adapt(client, 1)
    plain = text(ask(client, "completions", id, "user", None))
    for (route, name), done in TABLE.items():
        right, wrong = CASES[name]
        for value in right:
            reply, refused = (ask(each, route, id, name, value) for each in (client, strict))
            assert reply.status_code == 200, (route, name, value, reply.text)
            ignored = reply.headers.get("x-hart-ignored")
            if done == "ignored":
                assert ignored == name and text(reply) == plain
                assert said(refused, 400).startswith(f"{name}: is not known here")
                assert refused.json()["error"] | {"message": ""} == {
                    "message": "", "type": "invalid_request", "param": name, "code": "unknown_parameter"
                }  # fmt: skip
            else:
                assert ignored is None and refused.status_code == 200, (route, name, value)
            if done in ("refused", "not kept"):
                assert text(reply) == plain, (route, name, value)
        for value in wrong:
            reply = ask(client, route, id, name, value)
            told = said(reply, 400)
            assert (reply.json()["error"]["param"] or "").startswith(name), (route, name, value, told)
            assert told.startswith(name), told
        if done != "ignored" and name not in ("model", "prompt", "messages"):
            assert text(ask(client, route, id, name, None)) == plain
        if done == "refused":
            assert wrong, f"{name} is refused at no value"


def test_taken_fields_act(client: TestClient) -> None:
    """Those whose values above leave the answer as it is."""
    id = adapt(client, 1)
    body = {"model": id, "prompt": "one 1"}

    def answered(**fields: Any) -> Any:
        reply = client.post("/v1/completions", json=body | fields)
        assert reply.status_code == 200, reply.text
        return reply.json()

    plain = answered()["choices"][0]["text"]
    assert answered(max_tokens=2)["usage"]["completion_tokens"] == 2
    assert answered(max_completion_tokens=2)["usage"]["completion_tokens"] == 2
    assert answered(stop=plain[2:4])["choices"][0]["text"] == plain.split(plain[2:4])[0]
    drawn = answered(**SAMPLED)["choices"][0]["text"]
    assert drawn == answered(**SAMPLED)["choices"][0]["text"] != plain
    assert answered(**SAMPLED, top_p=0.01)["choices"][0]["text"] == plain
    assert len(answered(**SAMPLED, n=2, best_of=2)["choices"]) == 2
    assert len(answered(logprobs=2)["choices"][0]["logprobs"]["tokens"]) > 1
    assert answered(model="base")["choices"][0]["text"] != plain


def test_names_of_ignored_fields_are_a_header_whatever_they_are(client: TestClient) -> None:
    id = adapt(client, 1)
    odd = {"a,b\r\nX-Evil: 1": 1, "é": 2, "c" * 500: 3, "nothing": None}
    reply = client.post(PATHS["chat"], json={"model": id, "messages": [USER | odd], "max_tokens": 1, **odd})
    assert reply.status_code == 200 and "x-evil" not in reply.headers
    names = reply.headers["x-hart-ignored"].split(", ")
    assert len(names) == 6 and all(len(each) < 400 and each.isascii() for each in names)
    reply = client.post(PATHS["chat"], json={"model": id, "messages": [USER], "max_tokens": 1, "a": 1, "": 2})
    assert reply.headers["x-hart-ignored"] == 'a, ""'
    many = {f"field_{number}": 1 for number in range(500)}
    reply = client.post(PATHS["chat"], json={"model": id, "messages": [USER], "max_tokens": 1, **many, "stream": True})
    assert len(reply.headers["x-hart-ignored"].split(", ")) == 32
    ours = client.post("/v1/generate", json={"inputs": ["one 1"], "of_tomorrow": 1})
    assert said(ours, 422).startswith("of_tomorrow: ")
