"""Conversations in a model's chat template, and refused ones."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from starlette.testclient import TestClient

from hart import HartModel
from hart.model.answering import Answer

from ..conftest import LENGTHS, said, task
from ..test_openai import events
from .test_chat import CHAT, QUERIES, USER, chat, content

SYSTEM, ASSISTANT = {"role": "system", "content": "Swap."}, {"role": "assistant", "content": "1 one"}
CONVERSATIONS: list[list[dict[str, Any]]] = [
    [SYSTEM, USER],
    [USER, ASSISTANT, USER | {"content": "two 3"}],
    [SYSTEM, USER | {"content": [{"type": "text", "text": "the"}, {"type": "text", "text": "cat"}]}],
    [SYSTEM | {"content": ""}, USER],
]


@pytest.mark.parametrize("folder", ["T5"], indirect=True)
def test_a_model_without_a_chat_template_reads_one_message(client: TestClient, id: str) -> None:
    tools = {"role": "assistant", "content": None, "tool_calls": []}
    for messages in (*CONVERSATIONS, [USER, tools, USER], [{"role": "system", "content": "one"}]):
        reply = chat(client, id, messages=messages)
        assert said(reply, 400).startswith("messages: give one message of role user: ")
        assert reply.json()["error"]["param"] == "messages"


@pytest.mark.parametrize("folder", ["decoder-only with a chat template"], indirect=True)
def test_a_conversation_is_what_the_chat_template_makes_of_it(client: TestClient, model: HartModel, id: str) -> None:
    """With others in its batch and in a stream, of the adapted and of the bare base."""
    local = model.adapt(task(1))

    def expected(messages: list[dict[str, Any]], adapted: bool = True) -> Answer:
        flat = [
            each
            if isinstance(each["content"], str)
            else each | {"content": "\n".join(t["text"] for t in each["content"])}
            for each in messages
        ]
        read = model.main.tokenizer.apply_chat_template(flat, add_generation_prompt=True, return_dict=False)
        (answer,) = model.main.answers([read], local if adapted else None, max_new_tokens=LENGTHS["max_target_length"])
        return answer

    with ThreadPoolExecutor(8) as pool:
        asked = [(name, messages) for messages in CONVERSATIONS for name in (id, "base")]
        others = [pool.submit(chat, client, id, query) for query in QUERIES]
        replies = list(pool.map(lambda each: chat(client, each[0], messages=each[1]), asked))
    for (name, messages), reply in zip(asked, replies, strict=True):
        answer = expected(messages, name == id)
        assert content(reply) == answer.text
        assert reply.json()["usage"]["prompt_tokens"] == answer.query_tokens
    assert len({content(reply) for reply in replies}) > 2
    assert [content(each.result()) for each in others] == model.generate(QUERIES, local)
    *_, messages = CONVERSATIONS
    _, *pieces, _ = events(chat(client, id, messages=messages, stream=True))
    assert "".join(each["choices"][0]["delta"]["content"] for each in pieces) == expected(messages).text
    developer = [SYSTEM | {"role": "developer"}, USER]
    assert content(chat(client, id, messages=developer)) == expected([SYSTEM, USER]).text
    # What a client has of an earlier reply.
    returned = ASSISTANT | dict.fromkeys(["refusal", "annotations", "audio", "function_call", "tool_calls"])
    reply = chat(client, id, messages=[USER, returned, USER])
    assert content(reply) == expected([USER, ASSISTANT, USER]).text and "x-hart-ignored" not in reply.headers


@pytest.mark.parametrize("folder", ["decoder-only with a chat template"], indirect=True)
def test_conversations_that_are_refused(
    client: TestClient, model: HartModel, id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(messages: list[dict[str, Any]], param: str = "messages") -> str:
        reply = chat(client, id, messages=messages)
        told = said(reply, 400)
        assert reply.json()["error"]["param"] == param and told.startswith(f"{param}: ")
        return told.removeprefix(f"{param}: ")

    assert refused([USER, ASSISTANT]).startswith("the last message must be of role user")
    assert refused([USER, {"role": "tool", "content": "x"}, USER], "messages.1.role").startswith("Input should be")
    calls = ASSISTANT | {"tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}
    assert refused([USER, calls, USER], "messages.1.tool_calls").startswith("only [] or null is supported")
    long = refused([USER | {"content": "one " * 12}, ASSISTANT, USER | {"content": "one " * 12}])
    assert long.startswith("has ") and long.endswith("the model reads 32")
    template = "{{ raise_exception('roles must\\nalternate') if messages|length > 1 }}the {{ messages[0].content }}"
    tokenizer = client.app.state.engine.checks.tokenizer  # type: ignore[attr-defined]
    monkeypatch.setattr(tokenizer, "chat_template", template)
    told = refused([USER, ASSISTANT, USER])
    assert told == "the chat template of the base's tokenizer refuses them (roles must)"
    assert chat(client, id).status_code == 200


@pytest.mark.parametrize("folder", ["T5", "decoder-only with a chat template"], indirect=True)
def test_what_is_described_is_what_the_model_takes(client: TestClient, model: HartModel) -> None:
    body = client.get("/openapi.json").json()["paths"][CHAT]["post"]["requestBody"]["content"]["application/json"]
    conversing = model.input_format.chat_template
    assert body["schema"]["$ref"].endswith("ConversationIn" if conversing else "ChatIn")
