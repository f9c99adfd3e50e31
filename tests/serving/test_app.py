"""The interface: answers equal the local model's, and refused requests."""

import json
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient
from tokenizers import Regex, normalizers

from hart import HartModel, Task
from hart.serving import engine as engine_module
from hart.serving import running as running_module
from hart.serving.app import create_app
from hart.serving.checks import Checks
from hart.serving.download import unbundle
from hart.serving.engine import model_fingerprint
from hart.serving.store import Store, adaptation_id
from hart.training.config import DataConfig, ModelConfig

from .conftest import adapt, said, task, to_json

QUERIES = ["one 1", "two 3 one", "the cat sat on the mat"]


def events(reply: Any) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in reply.text.split("\n\n") if line]
    assert reply.headers["content-type"].startswith("text/event-stream") and lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_an_adaptation_and_its_life(client: TestClient, model: HartModel, store: Store) -> None:
    first = client.post("/v1/adaptations", json=to_json(task(1)))
    assert first.status_code == 201
    body = first.json()
    assert body["new"] and body["demonstrations_read"] == 2 and body["seconds"] > 0 and body["model"] == model.name
    again = client.post("/v1/adaptations", json=to_json(task(1)))
    assert again.status_code == 200 and not again.json()["new"]
    assert {key: again.json()[key] for key in ("id", "seconds")} == {key: body[key] for key in ("id", "seconds")}
    url = f"/v1/adaptations/{body['id']}"
    assert client.get(url).json()["task"]["Definition"] == [task(1).definition]
    assert [each["id"] for each in client.get("/v1/adaptations").json()["adaptations"]] == [body["id"]]
    assert client.get("/v1/adaptations", params={"offset": 1}).json() == {"adaptations": []}
    assert client.delete(url).status_code == 204
    for method in ("GET", "DELETE"):
        assert body["id"] in said(client.request(method, url), 404)
    assert store.totals() == (0, 0)


@pytest.mark.parametrize(
    ("body", "lacks"),
    [({"definition": "Swap."}, "demonstrations"), ({"demonstrations": [{"input": "a", "output": "b"}]}, "definition")],
)
def test_one_part_of_a_task_will_do(body: dict[str, Any], lacks: str, client: TestClient, model: HartModel) -> None:
    reply = client.post("/v1/adaptations", json=body).json()
    assert [each.partition(",")[0] for each in reply["never_seen"]] == [f"has no {lacks}"]
    assert reply["demonstrations_read"] == len(body.get("demonstrations", ()))
    whole = Task("Swap.", [("a", "b")])
    own = Task("Swap.") if lacks == "demonstrations" else Task("", [("a", "b")])
    assert reply["id"] == adaptation_id(model.main.fingerprint, model_fingerprint(model), own)
    assert reply["id"] != adaptation_id(model.main.fingerprint, model_fingerprint(model), whole)
    asked = client.post("/v1/generate", json={"inputs": QUERIES, "adaptation": body}).json()["outputs"]
    assert asked == model.generate(QUERIES, model.adapt(own))


def test_the_download_is_the_adaptation(client: TestClient, model: HartModel) -> None:
    reply = client.get(f"/v1/adaptations/{adapt(client, 1)}/download")
    assert reply.headers["content-disposition"].startswith("attachment")
    got, expected = unbundle(reply.content), model.adapt(task(1))
    assert got.tasks == expected.tasks
    for name, rows in expected.blocks.items():
        assert torch.equal(got.blocks[name], rows)


def test_answers_are_those_of_the_model(client: TestClient, model: HartModel) -> None:
    adaptations = [model.adapt(task(number)) for number in range(3)]
    expected = [model.generate(QUERIES, each) for each in adaptations]
    assert len({tuple(each) for each in expected}) == 3, "the tasks of this test must differ in their answers"
    ids = [adapt(client, number) for number in range(3)]
    for id, answers in zip(ids, expected, strict=True):
        reply = client.post("/v1/generate", json={"inputs": QUERIES, "adaptation": id})
        assert reply.json()["outputs"] == answers
    mixed = client.post("/v1/generate", json={"inputs": QUERIES, "adaptation": ids})
    assert mixed.json()["outputs"] == [expected[n][n] for n in range(3)]
    inline = client.post(
        "/v1/generate", json={"inputs": QUERIES, "adaptation": [to_json(task(2)), ids[0], to_json(task(7))]}
    )
    last = model.generate(QUERIES[2], model.adapt(task(7)))
    assert inline.json()["outputs"] == [expected[2][0], expected[0][1], *last]
    bare = client.post("/v1/generate", json={"inputs": QUERIES, "max_new_tokens": 5})
    assert bare.json()["outputs"] == model.main.generate(QUERIES, max_new_tokens=5)
    beams = client.post("/v1/generate", json={"inputs": QUERIES, "adaptation": ids[1], "num_beams": 3})
    assert beams.json()["outputs"] == model.generate(QUERIES, adaptations[1], num_beams=3)


def test_sampling(client: TestClient) -> None:
    body = {"inputs": ["one 1"] * 8, "adaptation": adapt(client, 1), "temperature": 2.0, "top_p": 0.99}
    assert len(set(client.post("/v1/generate", json=body).json()["outputs"])) > 1


def test_scores(client: TestClient, model: HartModel) -> None:
    choices = ["one", "two two", "the cat"]
    body = {"input": "one 1", "choices": choices, "adaptation": adapt(client, 1)}
    reply = client.post("/v1/score", json=body).json()
    expected = model.score("one 1", choices, model.adapt(task(1)))
    assert reply["scores"] == pytest.approx(expected, abs=1e-4)
    assert reply["best"] == expected.index(max(expected))
    means = client.post("/v1/score", json=body | {"normalisation": "mean"}).json()["scores"]
    assert means != reply["scores"]


@pytest.mark.parametrize("query", QUERIES)
def test_a_stream_is_the_answer_in_pieces(query: str, client: TestClient, model: HartModel) -> None:
    id = adapt(client, 1)
    (expected,) = model.generate(query, model.adapt(task(1)))
    *pieces, last = events(client.post("/v1/generate", json={"inputs": [query], "adaptation": id, "stream": True}))
    assert "".join(each["text"] for each in pieces) == expected == last["output"]
    *chunks, end = events(client.post("/v1/completions", json={"model": id, "prompt": query, "stream": True}))
    assert "".join(each["choices"][0]["text"] for each in chunks) == expected
    assert end["choices"][0]["finish_reason"] in ("stop", "length")
    assert {each["id"] for each in [*chunks, end]} == {end["id"]}


GOOD: dict[str, Any] = {"inputs": ["one 1"], "adaptation": to_json(task(1))}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"inputs": []}, "inputs"),
        ({"inputs": ["one"] * 65}, "inputs"),
        ({"inputs": [" "]}, "inputs.0"),
        ({"inputs": ["one"], "adaptation": ["0" * 64] * 2}, "2 for 1 inputs"),
        ({"inputs": ["long " * 300]}, "inputs.0: has"),
        ({"inputs": ["\ud800"]}, "inputs.0"),
        ({"max_new_tokens": 100_000}, "max_new_tokens"),
        ({"max_new_tokens": True}, "max_new_tokens"),
        ({"num_beams": 2, "temperature": 1.0}, "num_beams"),
        ({"temperature": 0.001}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"stream": True, "inputs": ["a", "b"]}, "stream"),
        ({"adaptation": "../../etc/passwd"}, "adaptation"),
        ({"adaptation": {"definition": "", "demonstrations": []}}, "definition: is empty, and there are no demonstr"),
        ({"adaptation": {}}, "definition: is empty, and there are no demonstrations"),
        ({"adaptation": {"demonstrations": [{"input": "a " * 400, "output": "b"}]}}, "demonstrations.0: has"),
        ({"adaptation": {"definition": "Swap. " * 200, "demonstrations": [{"input": "a", "output": "b"}]}}, "the m"),
        ({"adaptation": {"definition": "Swap.", "demonstrations": [{"input": "a", "output": "b"}] * 65}}, "at most 64"),
        ({"attention": "please"}, "attention"),
    ],
)  # fmt: skip
def test_mistakes_are_named(change: dict[str, Any], told: str, client: TestClient) -> None:
    text = json.dumps(GOOD | change)
    reply = client.post("/v1/generate", content=text, headers={"Content-Type": "application/json"})
    assert told in said(reply, 422)


def test_bodies_that_are_no_request(client: TestClient) -> None:
    def post(content: bytes, kind: str | None = "application/json") -> str:
        headers = {} if kind is None else {"Content-Type": kind}
        return said(client.post("/v1/generate", content=content, headers=headers), 422)

    assert "not JSON" in post(b"{")
    assert "object" in post(b"[1]")
    assert "missing" in post(b"") and "missing" in post(b"", None)
    assert "can be read" in post(b"\xff\xfe\xff") and "can be read" in post(b'{"inputs": ["\xff"]}')
    good = json.dumps(GOOD).encode()
    assert post(good, "text/plain") == "the Content-Type header is 'text/plain'; send Content-Type: application/json"
    assert post(good, "application/x-www-form-urlencoded").startswith("the Content-Type header is")
    assert post(good, None).startswith("the Content-Type header is missing; send")
    marked = client.post("/v1/generate", content=b"\xef\xbb\xbf" + good, headers={"Content-Type": "application/json"})
    assert marked.status_code == 200


CHAT = "/v1/chat/completions"
DEEP = b"[" * 100_000 + b"]" * 100_000
ODD = [
    DEEP,
    b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    b"1" * 5_000,
    b'"\\ud800"',
    b"1e999",
    b"-1e999",
    b"NaN",
    b"[" * 400 + b"]" * 400,
    b'{"\\ud800": "\\udfff"}',
    b"true",
    b"[]",
    b'[["\\ud800"]]',
]


@pytest.mark.parametrize(
    "path", ["/v1/adaptations", "/v1/generate", "/v1/classify", "/v1/score", "/v1/completions", CHAT]
)
@pytest.mark.parametrize("value", ODD, ids=range(len(ODD)))
def test_odd_values_in_every_field(path: str, value: bytes, client: TestClient) -> None:
    """In each field of each request, and as one that nobody knows: refused in a line, or taken, and never a 500."""
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    names = {"adaptations": "TaskIn", "generate": "GenerateIn", "score": "ScoreIn", "completions": "CompletionIn"}
    names |= {"chat/completions": "ChatIn", "classify": "ClassifyIn"}
    shown = to_json(task(1))
    good: dict[str, Any] = {
        "/v1/adaptations": shown,
        "/v1/generate": GOOD,
        "/v1/classify": {"inputs": ["one"], "choices": ["one", "two"], "adaptation": shown},
        "/v1/score": {"input": "one", "choices": ["one", "two"], "adaptation": shown},
        "/v1/completions": {"model": "0" * 64, "prompt": "one"},
        CHAT: {"model": "0" * 64, "messages": [{"role": "user", "content": "one"}]},
    }[path]
    lines = json.dumps(good)[:-1].encode()
    fields = [*schemas[names[path.removeprefix("/v1/")]]["properties"], "nobody knows", "\ud800"]
    bodies = [lines + b", " + json.dumps(field).encode() + b": " + value + b"}" for field in fields]
    demonstration = (
        b'{"definition": "a", "demonstrations": [{"input": "a", "output": "b", "explanation": ' + value + b"}]}"
    )
    bodies += [
        value,
        demonstration if path == "/v1/adaptations" else b'{"inputs": ["a"], "adaptation": ' + demonstration + b"}",
    ]
    for body in bodies:
        reply = client.post(path, content=body, headers={"Content-Type": "application/json"})
        assert reply.status_code in (200, 201, 404, 400 if "completions" in path else 422), (body[:200], reply.text)
        if reply.status_code >= 400:
            said(reply, reply.status_code)


def test_unknown_ids_and_paths(client: TestClient) -> None:
    assert "post its task" in said(client.post("/v1/generate", json=GOOD | {"adaptation": "0" * 64}), 404)
    assert said(client.post("/v1/completions", json={"model": "0" * 64, "prompt": "a"}), 404)
    for name in ("..", "%2e%2e", "..%2f..%2findex.sqlite", "A" * 64, "0" * 63, "0" * 64 + "%0a", "0" * 64 + "%00"):
        assert client.get(f"/v1/adaptations/{name}/download").status_code in (404, 422)
    assert said(client.get("/nothing"), 404) == "Not Found"
    assert said(client.get("/v1/generate"), 405)


def test_metrics(client: TestClient) -> None:
    ids = [adapt(client, number) for number in range(2)]
    client.post("/v1/generate", json={"inputs": ["one", "two"], "adaptation": ids})
    text = client.get("/metrics").text
    for line in (
        'hart_requests_total{route="/v1/generate",status="200"} 1.0',
        'hart_batch_rows_sum{kind="generate"} 2.0',
        'hart_batch_tasks_sum{kind="generate"} 2.0',
        "hart_adapted_total 2.0",
        "hart_store_adaptations 2.0",
    ):
        assert line in text.splitlines()


def test_a_full_queue(serve: Callable[..., TestClient], model: HartModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the model works and the queue is full, more is refused at once, with a time to come back."""
    client = serve(max_queue=4, max_batch=1)
    id = adapt(client, 1)
    answers = model.main.answers

    def slowly(*args: Any, **kwargs: Any) -> Any:
        time.sleep(0.3)
        return answers(*args, **kwargs)

    monkeypatch.setattr(model.main, "answers", slowly)

    def ask(_: int) -> Any:
        return client.post("/v1/generate", json={"inputs": ["one", "two"], "adaptation": id})

    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(ask, range(8)))
    refused = [reply for reply in replies if reply.status_code == 429]
    answered = [reply for reply in replies if reply.status_code == 200]
    assert refused and answered and len(refused) + len(answered) == 8
    for reply in refused:
        assert "too many" in said(reply, 429) and int(reply.headers["retry-after"]) >= 1


def test_the_time_limit_ends_the_work(
    serve: Callable[..., TestClient], model: HartModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = serve(time_limit=4.0)
    id = adapt(client, 1)
    steps = []
    call = running_module._Abandoned.__call__

    def slow(self: Any, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        time.sleep(0.1)
        steps.append(1)
        return call(self, input_ids, scores, **kwargs)

    monkeypatch.setattr(running_module._Abandoned, "__call__", slow)
    monkeypatch.setattr(model.main.model.generation_config, "eos_token_id", None)
    reply = client.post("/v1/generate", json={"inputs": ["one"], "adaptation": id, "max_new_tokens": 500})
    assert "within 4 s" in said(reply, 504)
    monkeypatch.undo()
    assert client.post("/v1/generate", json={"inputs": ["one"], "adaptation": id}).status_code == 200
    assert len(steps) < 100, "the model went on for nobody"


@pytest.mark.parametrize("path", ["/v1/generate", "/v1/completions"])
def test_the_time_limit_of_a_stream_counts_what_was_before_it(
    path: str, serve: Callable[..., TestClient], model: HartModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = serve(time_limit=3.0)
    id = adapt(client, 1)
    call = running_module._Abandoned.__call__
    check = Checks.query

    def slow(self: Any, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        time.sleep(0.1)
        return call(self, input_ids, scores, **kwargs)

    def slow_check(self: Any, *args: Any) -> None:
        time.sleep(2.0)
        check(self, *args)

    monkeypatch.setattr(running_module._Abandoned, "__call__", slow)
    monkeypatch.setattr(Checks, "query", slow_check)
    monkeypatch.setattr(model.main.model.generation_config, "eos_token_id", None)
    own = {"inputs": ["one"], "adaptation": id, "max_new_tokens": 500}
    body = own if path == "/v1/generate" else {"prompt": "one", "model": id, "max_tokens": 500}
    began = time.monotonic()
    reply = client.post(path, json={**body, "stream": True})
    assert "no answer within 3 s" in reply.text and "[DONE]" not in reply.text
    assert time.monotonic() - began < 4.5, "the limit was counted anew for the stream"


def test_a_defect_is_told_without_its_inside(
    client: TestClient, model: HartModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = adapt(client, 1)

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(model.main, "answers", broken)
    reply = client.post("/v1/generate", json={"inputs": ["one"], "adaptation": id})
    assert "secret" not in said(reply, 500)
    monkeypatch.undo()
    assert client.post("/v1/generate", json={"inputs": ["one"], "adaptation": id}).status_code == 200


def test_lost_files_are_made_again(serve: Callable[..., TestClient], store: Store) -> None:
    id = adapt(serve(), 1)
    (store.folder / "adaptations" / id / "adaptation.safetensors").write_bytes(b"damaged")
    client = serve()  # another process, which has nothing in memory
    assert "post its task" in said(client.post("/v1/generate", json={"inputs": ["one"], "adaptation": id}), 404)
    reply = client.post("/v1/adaptations", json=to_json(task(1)))
    assert reply.status_code == 201 and reply.json()["id"] == id
    assert client.post("/v1/generate", json={"inputs": ["one"], "adaptation": id}).status_code == 200
    # Gone while the server has it in memory: posted again, it is on the disk again.
    store.delete(id)
    assert client.post("/v1/adaptations", json=to_json(task(1))).status_code == 200
    assert store.get(id) is not None


def test_a_store_that_cannot_be_written(
    client: TestClient, store: Store, monkeypatch: pytest.MonkeyPatch, model: HartModel
) -> None:
    """Keeping fails with a reason; tasks given in full are answered from memory."""
    monkeypatch.setattr(store, "max_bytes", 10)
    message = said(client.post("/v1/adaptations", json=to_json(task(1))), 507)
    assert "store" in message and str(store.folder) not in message
    reply = client.post("/v1/generate", json={"inputs": ["one 1"], "adaptation": to_json(task(1))})
    assert reply.json()["outputs"] == model.generate("one 1", model.adapt(task(1)))


def test_health_tells_of_the_store(client: TestClient, store: Store, tmp_path: Path) -> None:
    """A store that was taken away is made again; one that cannot be is told of, and tasks are answered all the same."""
    id = adapt(client, 1)
    assert client.get("/health").json()["status"] == "ok"
    shutil.rmtree(store.folder)
    assert client.post("/v1/adaptations", json=to_json(task(1))).status_code == 200
    assert client.post("/v1/adaptations", json=to_json(task(2))).status_code == 201
    assert store.get(id) is not None and store.totals()[0] == 2
    shutil.rmtree(store.folder)
    store.folder.write_text("a file, where the folder was", encoding="utf-8")
    time.sleep(engine_module._HEALTH_SECONDS)
    reply = client.get("/health")
    assert reply.json()["status"] == "degraded" and "store" in said_beside(reply, 503)
    assert "store" in said(client.post("/v1/adaptations", json=to_json(task(3))), 507)
    inline = {"inputs": ["one"], "adaptation": to_json(task(4))}
    assert client.post("/v1/generate", json=inline).status_code == 200
    for known in (id, id[:12]):  # in memory, whole or by its beginning
        assert client.post("/v1/generate", json={"inputs": ["one"], "adaptation": known}).status_code == 200
    told = client.get("/metrics")
    assert told.status_code == 200 and "NaN" in told.text  # of the store nothing, all others as ever
    store.folder.unlink()
    time.sleep(engine_module._HEALTH_SECONDS)
    assert client.get("/health").json()["status"] == "ok"
    # It was read before, and was in memory only.
    assert client.post("/v1/adaptations", json=to_json(task(3))).status_code == 200
    assert store.totals()[0] == 1


def said_beside(reply: Any, status: int) -> str:
    assert reply.status_code == status
    return reply.json()["error"]["message"]


def test_another_models_adaptations_are_not_served(client: TestClient, store: Store, model: HartModel) -> None:
    other = store.put(model.adapt(task(5)), model_fingerprint="another model")
    said(client.get(f"/v1/adaptations/{other.id}"), 404)
    said(client.delete(f"/v1/adaptations/{other.id}"), 404)
    said(client.post("/v1/generate", json={"inputs": ["one"], "adaptation": other.id}), 404)
    assert store.get(other.id) is not None


def test_one_pass_for_many_requests_of_one_task(client: TestClient) -> None:
    with ThreadPoolExecutor(12) as pool:
        replies = list(pool.map(lambda _: client.post("/v1/adaptations", json=to_json(task(9))), range(12)))
    assert len({reply.json()["id"] for reply in replies}) == 1
    assert "hart_adapted_total 1.0" in client.get("/metrics").text.splitlines()


def test_a_model_of_prompts_needs_no_definition(tiny_base_dir: Path, store: Store) -> None:
    data = DataConfig(
        collection="p3", demonstrations="sampled", num_demonstrations=4, max_query_length=64, max_target_length=8
    )
    model = HartModel.from_config(ModelConfig(base=str(tiny_base_dir), decoder_layers=1), data).eval()
    backend = model.main.tokenizer.backend_tokenizer
    # As T5's own does with characters that have no width.
    backend.normalizer = normalizers.Replace(Regex("[\u200b ]+(?=\u200b)|\u200b"), "")
    body = {"demonstrations": [{"input": f"a cat {n}?", "output": "yes"} for n in range(5)]}
    with TestClient(create_app(model, store), base_url="http://localhost") as client:
        assert client.get("/health").json()["reads_definition"] is False
        for text in ("\u200b", "\u200b \u200b\u200b"):  # nothing that the tokenizer sees
            id = "0" * 64
            asked = {"generate": {"inputs": [text]}, "score": {"input": text, "choices": ["yes", "no"]}}
            for route, ask in {**asked, "completions": {"model": id, "prompt": text}}.items():
                reply = client.post(f"/v1/{route}", json=ask)
                assert "no token" in said(reply, 400 if route == "completions" else 422)
            unseen = {"demonstrations": [{"input": text, "output": text}]}
            assert client.post("/v1/generate", json={"inputs": ["a"], "adaptation": unseen}).status_code == 200
        reply = client.post("/v1/adaptations", json=body)
        assert reply.json()["demonstrations_read"] == 4
        asked = {"inputs": ["a mat?"], "adaptation": [reply.json()["id"]]}
        expected = model.generate("a mat?", model.adapt(Task("", [(f"a cat {n}?", "yes") for n in range(5)])))
        assert client.post("/v1/generate", json=asked).json()["outputs"] == expected
        (bare,) = model.main.generate(
            [model.input_format.encode_query(model.main.tokenizer, "a mat?")], max_new_tokens=8
        )
        assert client.post("/v1/generate", json={"inputs": ["a mat?"]}).json()["outputs"] == [bare]
