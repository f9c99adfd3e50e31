"""Decoder-only models behind the server: replies equal the local model's in any batch."""

import itertools
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient
from transformers import AutoTokenizer

from hart import Client, HartModel
from hart.serving.app import create_app
from hart.serving.checks import Checks
from hart.serving.engine import model_fingerprint
from hart.serving.settings import Settings
from hart.serving.store import Store

from .conftest import LENGTHS, adapt, running, said, saved, task, to_json

PREFIX = {"kind": "prefix", "length": 4, "init_scale": 3.0}
LORA = {"kind": "lora", "rank": 2, "alpha": 64, "targets": ["q", "v", "wi"]}
SERVED: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "llama with prefixes": ("llama", [PREFIX]),
    "llama with LoRA": ("llama", [LORA]),
    "qwen3 with (IA)3": ("qwen3", [{"kind": "ia3"}]),
    "gemma2 with prefixes and LoRA": ("gemma2", [PREFIX, LORA]),
    "gpt2 with prefixes": ("gpt2", [PREFIX]),
}
QUERIES = ["one 1", "the cat sat on the mat and one two", "two 3"]


def batches_and_tasks(client: TestClient) -> tuple[float, float]:
    """Of generation: how many batches there were, and the sum of their tasks."""
    counted = dict(line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines())
    count, tasks = (float(counted[f'hart_batch_tasks_{name}{{kind="generate"}}']) for name in ("count", "sum"))
    return count, tasks


@pytest.fixture(scope="module", params=SERVED)
def folder(request: pytest.FixtureRequest, tiny_base_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("served"), *SERVED[request.param], tiny_base_dir)


@pytest.fixture(scope="module")
def model(folder: Path) -> HartModel:
    return HartModel.from_pretrained(folder, device="cpu")


@pytest.fixture(scope="module")
def client(model: HartModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    # Rows wait for one another, so that tasks and lengths really are mixed.
    app = create_app(model, Store(tmp_path_factory.mktemp("store")), Settings(max_wait=0.05, max_batch=8))
    with TestClient(app, base_url="http://localhost") as started:
        yield started


def test_replies_of_mixed_batches_are_those_of_the_local_model(client: TestClient, model: HartModel) -> None:
    """Many clients at once, tasks and lengths of queries mixed, some of them the bare base."""
    local = {n: model.adapt(task(n)) for n in range(3)}
    expected = {(n, q): model.generate(q, local[n])[0] for n in local for q in QUERIES}
    assert len({expected[n, QUERIES[0]] for n in local}) > 1, "tasks do not change what is answered"
    bare = model.generate(QUERIES, max_new_tokens=LENGTHS["max_target_length"])
    wrong: list[Any] = []

    def ask(offset: int) -> None:
        for n, query in itertools.islice(itertools.cycle(itertools.product(local, QUERIES)), offset, offset + 5):
            got = client.post("/v1/generate", json={"inputs": [query], "adaptation": to_json(task(n))}).json()
            if got.get("outputs") != [expected[n, query]]:
                wrong.append((n, query, got))
        got = client.post("/v1/generate", json={"inputs": QUERIES}).json()
        if got.get("outputs") != bare:
            wrong.append((None, QUERIES, got))

    threads = [threading.Thread(target=ask, args=(offset,)) for offset in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    before = batches_and_tasks(client)
    body = {"inputs": [QUERIES[n % 3] for n in local], "adaptation": [adapt(client, n) for n in local]}
    assert client.post("/v1/generate", json=body).json()["outputs"] == [expected[n, QUERIES[n % 3]] for n in local]
    assert batches_and_tasks(client) == (before[0] + 1, before[1] + 3), "one batch of three tasks"
    beams = client.post("/v1/generate", json={**body, "num_beams": 3}).json()["outputs"]
    assert beams == [model.generate(QUERIES[n % 3], local[n], num_beams=3)[0] for n in local]


def test_a_stream_a_completion_and_scores(client: TestClient, model: HartModel) -> None:
    id, local = adapt(client, 1), model.adapt(task(1))
    answers = model.answers(QUERIES, local, max_new_tokens=7)
    reply = client.post("/v1/completions", json={"model": id, "prompt": QUERIES, "max_tokens": 7}).json()
    assert [each["text"] for each in reply["choices"]] == [answer.text for answer in answers]
    assert reply["usage"]["prompt_tokens"] == sum(answer.query_tokens for answer in answers)
    for query, answer in zip(QUERIES, answers, strict=True):
        fields = {"inputs": [query], "adaptation": id, "stream": True, "max_new_tokens": 7}
        *pieces, last, end, _ = client.post("/v1/generate", json=fields).text.split("\n\n")
        told = [json.loads(piece.removeprefix("data: ")) for piece in [*pieces, last]]
        assert end == "data: [DONE]" and told[-1] == {"output": answer.text}
        assert "".join(piece["text"] for piece in told[:-1]) == answer.text
    choices = ["one", "the mat two", "3"]
    scored = client.post("/v1/score", json={"input": QUERIES[1], "choices": choices, "adaptation": id}).json()
    assert scored["scores"] == pytest.approx(model.score(QUERIES[1], choices, local), rel=1e-4)


def test_what_a_model_reads_is_counted_by_the_tokenizer_that_reads_it(client: TestClient, model: HartModel) -> None:
    """A query in the main model's tokens, a definition in those of the hypernetwork, which needs more of them."""
    form = model.input_format
    query = "cat " * 40
    count = len(form.encode_query(model.main.tokenizer, "cat")) + 39
    told = said(client.post("/v1/generate", json={"inputs": [query]}), 422)
    assert told == f"inputs.0: has {count} tokens, the model reads {form.max_query_length}"
    definition = to_json(task(1)) | {"definition": "Swap " * 200}
    read = len(model.reader("Swap " * 200, add_special_tokens=False)["input_ids"])
    told = said(client.post("/v1/adaptations", json=definition), 422)
    assert told.startswith("definition: has ") and int(told.split()[2]) > read


@pytest.mark.parametrize("folder", ["llama with LoRA"], indirect=True)
def test_the_command_and_the_client(folder: Path, model: HartModel, tmp_path: Path) -> None:
    with running(folder, "--store", tmp_path / "store") as (_, address), Client(address) as remote:
        local, adapted = [model.adapt(task(n)) for n in range(3)], [remote.adapt(task(n)) for n in range(3)]
        mixed = remote.generate(QUERIES, adapted)
        assert mixed == [model.generate(query, own)[0] for query, own in zip(QUERIES, local, strict=True)]
        assert "".join(remote.stream(QUERIES[0], adapted[0])) == mixed[0]
        found = remote.download(adapted[0])
        assert all(torch.equal(rows, local[0].blocks[name]) for name, rows in found.blocks.items())


@pytest.mark.parametrize("folder", ["gpt2 with prefixes"], indirect=True)
def test_answers_beyond_learned_positions_are_refused_before_they_reach_a_batch(client: TestClient) -> None:
    body = {"inputs": ["one", QUERIES[1]], "adaptation": adapt(client, 1), "max_new_tokens": 505}
    told = said(client.post("/v1/generate", json=body), 422)
    assert told.startswith("inputs.1: has ") and "an answer of 505 goes beyond the 508 positions of the model" in told


def test_a_chat_template_counts(tiny_base_dir: Path, tmp_path: Path) -> None:
    folder = saved(tmp_path, "llama", [LORA], tiny_base_dir)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    model = HartModel.from_pretrained(folder)
    tokenizer.chat_template = "{% for m in messages %}the {{ m.content }} cat{% endfor %} mat"
    form = type(model.input_format)(**LENGTHS, chat_template=True)
    checks = Checks(tokenizer, model.reader, form)
    for count in range(20, 40):
        query = "one " * count
        length = len(type(form)(chat_template=True).encode_query(tokenizer, query))
        if length <= form.max_query_length:
            checks.query(query, "input", 8)
        else:
            with pytest.raises(Exception, match=f"input: has {length} tokens, the model reads 32"):
                checks.query(query, "input", 8)
    checks.close()


def test_another_tokenizer_of_the_hypernetwork_makes_another_id(tiny_base_dir: Path, tmp_path: Path) -> None:
    model = HartModel.from_pretrained(saved(tmp_path, "llama", [LORA], tiny_base_dir))
    before = model_fingerprint(model)
    model.reader.add_tokens(["<another>"])
    assert model_fingerprint(model) != before
