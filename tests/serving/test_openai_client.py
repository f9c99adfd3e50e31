"""OpenAI's own client, sync and async, against a live server: requests, replies, errors and retries."""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from hart import HartModel
from hart.serving.app import create_app
from hart.serving.settings import Settings
from hart.serving.store import Store

from .conftest import listening, task, to_json

openai = pytest.importorskip("openai", reason="needs the package openai")
httpx2 = pytest.importorskip("httpx2")

QUERY = "one 1"
MESSAGES = [{"role": "user", "content": QUERY}]


@contextmanager
def served(model: HartModel, folder: Path, **settings: Any) -> Iterator[tuple[Any, str]]:
    app = create_app(model, Store(folder), Settings(token="sesame", **settings))
    with listening(app) as address:
        yield app, address


@pytest.fixture(scope="module")
def address(model: HartModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(model, tmp_path_factory.mktemp("store")) as (_, url):
        yield url


@pytest.fixture(scope="module")
def id(address: str) -> str:
    headers = {"Authorization": "Bearer sesame"}
    return httpx2.post(f"{address}/v1/adaptations", json=to_json(task(1)), headers=headers).json()["id"]


@pytest.fixture
def client(address: str) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="sesame", max_retries=0) as made:
        yield made


def test_completions_and_chat(client: Any, model: HartModel, id: str) -> None:
    (answer,) = model.answers(QUERY, model.adapt(task(1)))
    ordinary = {"user": "me", "frequency_penalty": 0, "presence_penalty": 0, "seed": 7, "n": 1, "temperature": 0}
    completion = client.completions.create(model=id, prompt=QUERY, **ordinary)
    chat = client.chat.completions.create(model=id, messages=MESSAGES, **ordinary)
    assert completion.choices[0].text == chat.choices[0].message.content == answer.text
    assert completion.usage.completion_tokens == chat.usage.completion_tokens == answer.tokens
    stop = answer.text[2:4]
    cut = client.chat.completions.create(model=id, messages=MESSAGES, stop=stop)
    assert cut.choices[0].message.content == answer.text.split(stop)[0] and cut.choices[0].finish_reason == "stop"
    # What came back is what the next request sends, unless this model reads single queries.
    with pytest.raises(openai.BadRequestError, match="give one message"):
        client.chat.completions.create(model=id, messages=[*MESSAGES, chat.choices[0].message, *MESSAGES])


def test_streams(client: Any, model: HartModel, id: str) -> None:
    (answer,) = model.answers(QUERY, model.adapt(task(1)))
    with_usage = {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, last = client.completions.create(model=id, prompt=QUERY, **with_usage)
    assert "".join(each.choices[0].text for each in chunks) == answer.text
    assert last.choices == [] and last.usage.completion_tokens == answer.tokens
    *chunks, last = client.chat.completions.create(model=id, messages=MESSAGES, **with_usage)
    assert "".join(each.choices[0].delta.content or "" for each in chunks) == answer.text
    assert chunks[0].choices[0].delta.role == "assistant" and last.usage.completion_tokens == answer.tokens
    assert all(each.usage is None for each in client.chat.completions.create(model=id, messages=MESSAGES, stream=True))


def test_samples_and_log_probabilities(client: Any, model: HartModel, id: str) -> None:
    how = {"temperature": 1.5, "seed": 7, "n": 3}
    drawn = client.chat.completions.create(model=id, messages=MESSAGES, **how)
    expected = []
    for seed in (7, 8, 9):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            expected += model.generate(QUERY, model.adapt(task(1)), temperature=1.5)
    assert [each.message.content for each in drawn.choices] == expected and len(set(expected)) > 1
    scored = client.chat.completions.create(model=id, messages=MESSAGES, logprobs=True, top_logprobs=3)
    content = scored.choices[0].logprobs.content
    assert len(content) == scored.usage.completion_tokens
    assert all(each.logprob == each.top_logprobs[0].logprob and len(each.top_logprobs) == 3 for each in content)
    found = client.completions.create(model=id, prompt=QUERY, logprobs=3).choices[0].logprobs
    assert found.token_logprobs == [each.logprob for each in content]
    assert found.tokens == [each.token for each in content] and found.text_offset[0] == 0


def test_models(client: Any, id: str) -> None:
    assert {"base", id} <= {each.id for each in client.models.list()}
    assert client.models.retrieve(id).id == client.models.retrieve(id[:8]).id == id
    with pytest.raises(openai.NotFoundError, match="post its task") as told:
        client.models.retrieve("gpt-4o")
    assert (told.value.param, told.value.code) == ("model", "model_not_found")


def test_the_async_client(address: str, model: HartModel, id: str) -> None:
    async def ask() -> None:
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="sesame", max_retries=0) as client:
            (expected,) = model.generate(QUERY, model.adapt(task(1)))
            completion, chat = await asyncio.gather(
                client.completions.create(model=id, prompt=QUERY),
                client.chat.completions.create(model=id, messages=MESSAGES),
            )
            assert completion.choices[0].text == chat.choices[0].message.content == expected
            stream = await client.chat.completions.create(model=id, messages=MESSAGES, stream=True)
            assert "".join([each.choices[0].delta.content or "" async for each in stream]) == expected
            assert id in [each.id async for each in client.models.list()]
            with pytest.raises(openai.BadRequestError):
                await client.completions.create(model=id, prompt=QUERY, echo=True)

    asyncio.run(ask())


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"temperature": 9}, "temperature", "invalid_value"),
        ({"logit_bias": {"1": 5}}, "logit_bias", "invalid_value"),
        ({"messages": [{"role": "user"}]}, "messages.0.content", "missing_required_parameter"),
        ({"messages": [{"role": "user", "content": "one " * 99}]}, "messages.0.content", "context_length_exceeded"),
        ({"model": "gpt-4o"}, "model", "invalid_value"),
        ({"n": 2}, "n", "invalid_value"),
        ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
    ],
)
def test_what_is_wrong_is_a_bad_request(fields: dict[str, Any], param: str, code: str, client: Any, id: str) -> None:
    with pytest.raises(openai.BadRequestError) as told:
        client.chat.completions.create(**{"model": id, "messages": MESSAGES, **fields})
    assert (told.value.param, told.value.code) == (param, code) and f"{param}: " in str(told.value)
    assert told.value.request_id and told.value.response.headers["x-request-id"] == told.value.request_id


def test_other_errors(client: Any, address: str, id: str) -> None:
    with pytest.raises(openai.NotFoundError, match="post its task") as missing:
        client.chat.completions.create(model="0" * 64, messages=MESSAGES)
    assert (missing.value.param, missing.value.code) == ("model", "model_not_found") and missing.value.request_id
    with pytest.raises(openai.AuthenticationError, match="give the server's token") as stranger:
        client.with_options(api_key="wrong").models.list()
    assert stranger.value.code == "invalid_api_key" and stranger.value.request_id


def test_headers_of_the_caller_and_ignored_fields(client: Any, id: str) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model=id,
        messages=[{**MESSAGES[0], "name": "me"}],
        reasoning_effort="low",
        verbosity="low",
        extra_body={"of_tomorrow": {"a": 1}},
        extra_headers={"X-Request-Id": "mine-7"},
    )
    assert raw.headers["x-request-id"] == "mine-7" == raw.parse()._request_id
    ignored = set(raw.headers["x-hart-ignored"].split(", "))
    assert ignored == {"reasoning_effort", "verbosity", "of_tomorrow", "messages.0.name"}
    unnamed = client.completions.with_raw_response.create(model=id, prompt=QUERY, extra_body={"a": 1, "": 2})
    assert unnamed.headers["x-hart-ignored"] == 'a, ""'


def test_a_busy_server_is_asked_again(model: HartModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """429 with Retry-After, until the model is free; a client that does not repeat raises, and so does one in haste."""
    free, entered, answers = threading.Event(), threading.Event(), model.main.answers

    def waiting(*args: Any, **options: Any) -> Any:
        entered.set()
        assert free.wait(60)
        return answers(*args, **options)

    with served(model, tmp_path, max_queue=1) as (_, url):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="sesame", max_retries=0)
        monkeypatch.setattr(model.main, "answers", waiting)

        def ask() -> str:
            return client.completions.create(model="base", prompt=QUERY).choices[0].text

        others = [threading.Thread(target=ask) for _ in range(2)]
        others[0].start()
        assert entered.wait(60)
        others[1].start()  # waits: the queue is full
        while httpx2.get(f"{url}/readyz").status_code == 200:
            pass
        with pytest.raises(openai.RateLimitError, match="too many requests are waiting") as told:
            ask()
        assert told.value.code == "rate_limit_exceeded" and told.value.response.headers["retry-after"] == "1"
        again = client.with_options(max_retries=5)
        threading.Timer(0.3, free.set).start()
        raw = again.completions.with_raw_response.create(model="base", prompt=QUERY)
        assert (
            raw.retries_taken >= 1 and raw.parse().choices[0].text == model.main.generate([QUERY], max_new_tokens=8)[0]
        )
        for other in others:
            other.join()
        free.clear()
        with pytest.raises(openai.APITimeoutError):
            client.with_options(timeout=0.3).completions.create(model="base", prompt=QUERY)
        free.set()
        client.close()


def test_what_took_too_long_is_not_asked_again(
    model: HartModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unlike other errors of a server: it would take as long again."""
    answers = model.main.answers

    def slowly(*args: Any, **options: Any) -> Any:
        time.sleep(1)
        return answers(*args, **options)

    monkeypatch.setattr(model.main, "answers", slowly)
    with served(model, tmp_path, time_limit=0.2) as (_, url):
        with openai.OpenAI(base_url=f"{url}/v1", api_key="sesame", max_retries=2) as client:
            with pytest.raises(openai.InternalServerError, match="no answer within") as told:
                client.completions.create(model="base", prompt=QUERY)
    assert told.value.status_code == 504 and told.value.request.headers["x-stainless-retry-count"] == "0"
