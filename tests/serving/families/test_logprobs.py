"""Samples and log-probabilities: equal to teacher forcing, with sampling, cuts and shared batches."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient

from hart import HartError, HartModel
from hart.model.answering import Answer
from hart.serving.logprobs import of_completion, spelled

from ..conftest import task
from .test_chat import CHAT

PROMPTS = ["one 1", "two 3 one", "the cat sat on the mat"]


def forced(model: HartModel, query: str, answer: Answer) -> torch.Tensor:
    """Log-probabilities `[u, v]` where each token of an answer was generated."""
    main, adaptation = model.main, model.adapt(task(1))
    ids, mask = main.pad([model.input_format.encode_query(main.tokenizer, query)])
    labels = torch.tensor([answer.ids])
    with torch.no_grad():
        logits = main.answer_logits(
            ids, mask, torch.tensor([0]), labels, torch.ones_like(labels), adaptation, adaptation
        )
    return logits[0].float().log_softmax(dim=-1)


@pytest.mark.parametrize("how", [{}, {"temperature": 1.5, "top_p": 0.8}])
def test_they_are_those_of_teacher_forcing(model: HartModel, how: dict[str, Any]) -> None:
    """Of greedy and of sampled tokens: temperature and top_p have no part in them."""
    torch.manual_seed(3)
    answers = model.answers(PROMPTS, model.adapt(task(1)), logprobs=3, max_new_tokens=12, **how)
    for query, answer in zip(PROMPTS, answers, strict=True):
        expected = forced(model, query, answer)
        assert answer.scores is not None and len(answer.scores) == answer.tokens
        given = torch.tensor([each.logprob for each in answer.scores])
        torch.testing.assert_close(given, expected.gather(1, torch.tensor([answer.ids]).T)[:, 0], atol=1e-4, rtol=1e-4)
        top = expected.topk(3, dim=1)
        said = torch.tensor([[logprob for _, logprob in each.top] for each in answer.scores])
        torch.testing.assert_close(said, top.values, atol=1e-4, rtol=1e-4)
        if not how:
            assert [each.top[0][0] for each in answer.scores] == list(answer.ids)
    plain = model.answers(PROMPTS, model.adapt(task(1)), max_new_tokens=12)
    assert all(each.scores is None for each in plain)
    if not how:
        assert [each.text for each in plain] == [each.text for each in answers]


def test_they_add_up_to_the_score(model: HartModel) -> None:
    """Of the beginnings of answers that are tokenised as they were generated, with the end of sequence behind them."""
    adaptation, tokenizer, compared = model.adapt(task(1)), model.main.tokenizer, 0
    torch.manual_seed(3)
    drawn = {"temperature": 2.0, "max_new_tokens": 4, "logprobs": len(tokenizer)}
    for query, answer in zip(PROMPTS * 8, model.answers(PROMPTS * 8, adaptation, **drawn), strict=True):
        assert answer.scores is not None
        for count in range(1, answer.tokens):
            text = tokenizer.decode(answer.ids[:count])
            if model.input_format.encode_target(tokenizer, text) == [*answer.ids[:count], tokenizer.eos_token_id]:
                end = dict(answer.scores[count].top)[tokenizer.eos_token_id]
                (score,) = model.score(query, [text], adaptation)
                assert sum(each.logprob for each in answer.scores[:count]) + end == pytest.approx(score, abs=1e-3)
                compared += 1
    assert compared


def test_wrong_options(model: HartModel) -> None:
    for wrong in (-1, True, 1.5):
        with pytest.raises(HartError, match="logprobs must be"):
            model.answers("one", logprobs=wrong)  # type: ignore[arg-type]
    with pytest.raises(HartError, match="logprobs: "):
        model.answers("one", logprobs=1, num_beams=2)


def ask(client: TestClient, **fields: Any) -> Any:
    where = CHAT if "messages" in fields else "/v1/completions"
    reply = client.post(where, json=fields)
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_in_both_forms_of_the_interface(client: TestClient, model: HartModel, id: str) -> None:
    """In batches, of answers that are cut by a stop sequence and of ones that are not."""
    adaptation, tokenizer = model.adapt(task(1)), model.main.tokenizer
    answers = model.answers(PROMPTS, adaptation, logprobs=3, max_new_tokens=12)
    stop = answers[0].text[3:5]
    body = {"model": id, "max_tokens": 12}
    with ThreadPoolExecutor(4) as pool:
        whole = pool.submit(ask, client, **body, prompt=PROMPTS, logprobs=3)
        cut = pool.submit(ask, client, **body, prompt=PROMPTS[0], logprobs=3, stop=stop)
        plain = pool.submit(ask, client, **body, prompt=PROMPTS)
    assert [each["text"] for each in whole.result()["choices"]] == [each.text for each in answers]
    assert all(each["logprobs"] is None for each in plain.result()["choices"])
    for choice, answer in zip(whole.result()["choices"], answers, strict=True):
        found, expected = choice["logprobs"], of_completion(spelled(tokenizer, answer))
        assert found["tokens"] == expected.tokens and found["text_offset"] == expected.text_offset
        assert found["token_logprobs"] == pytest.approx(expected.token_logprobs, abs=1e-4)
        for told, likeliest in zip(found["top_logprobs"], expected.top_logprobs, strict=True):
            assert told == pytest.approx(likeliest, abs=1e-4)
        message = {"role": "user", "content": PROMPTS[answers.index(answer)]}
        chat = ask(client, **body, messages=[message], logprobs=True, top_logprobs=3)["choices"][0]["logprobs"]
        assert chat["refusal"] is None and [each["token"] for each in chat["content"]] == found["tokens"]
        for token, score in zip(chat["content"], answer.scores or (), strict=True):
            assert token["logprob"] == pytest.approx(score.logprob, abs=1e-4)
            assert [each["logprob"] for each in token["top_logprobs"]] == pytest.approx(
                [logprob for _, logprob in score.top], abs=1e-4
            )
            assert token["bytes"] is None or bytes(token["bytes"]).decode() == token["token"]
    (choice,), usage = cut.result()["choices"], cut.result()["usage"]
    tokens = choice["logprobs"]["tokens"]
    assert len(tokens) == usage["completion_tokens"] < answers[0].tokens and stop in "".join(tokens)
    (zero,) = ask(client, **body, prompt=PROMPTS[0], logprobs=0)["choices"]
    assert [len(each) for each in zero["logprobs"]["top_logprobs"]] == [1] * len(zero["logprobs"]["tokens"])


def test_tokens_together_are_the_text(model: HartModel) -> None:
    """As the tokenizer reads them back, wherever its spaces are; special tokens have names."""
    tokenizer = model.main.tokenizer
    for text in ("one two three", "the cat, sat on 3 mats.", "é 🙂 one"):
        ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        (answer,) = model.answers("one", model.adapt(task(1)), logprobs=1, max_new_tokens=1)
        assert answer.scores is not None
        made = Answer(tokenizer.decode(ids, skip_special_tokens=True), tuple(ids), True, 1, answer.scores * len(ids))
        *tokens, end = spelled(tokenizer, made)
        assert end.text == tokenizer.eos_token
        assert "".join(each.text for each in tokens) == made.text


def test_more_numbers_than_can_be_written_meanwhile_are_refused(client: TestClient, id: str) -> None:
    asked = {"model": id, "prompt": "one", "max_tokens": 8, "temperature": 1.0, "n": 64, "logprobs": 20}
    many = {**asked, "max_tokens": 32}
    reply = client.post("/v1/completions", json=many)
    assert reply.status_code == 400 and reply.json()["error"]["param"] == "logprobs"
    assert "64 answers of 32 tokens with 20 likeliest ones each are 43008 numbers" in reply.json()["error"]["message"]
    assert client.post("/v1/completions", json=asked).status_code == 200


def test_several_samples(client: TestClient, model: HartModel, id: str) -> None:
    how = {"temperature": 1.5, "max_tokens": 6}

    def drawn(**fields: Any) -> list[str]:
        reply = ask(client, model=id, prompt=PROMPTS[:2], n=3, **how, **fields)
        assert [each["index"] for each in reply["choices"]] == list(range(6))
        read = [each.query_tokens for each in model.answers(PROMPTS[:2], adaptation, max_new_tokens=1)]
        assert reply["usage"]["prompt_tokens"] == sum(read), "a prompt counts once"
        return [each["text"] for each in reply["choices"]]

    adaptation, expected = model.adapt(task(1)), []
    for prompt in PROMPTS[:2]:
        for seed in (2**63 - 2, 2**63 - 1, -(2**63)):
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                expected += model.generate(prompt, adaptation, temperature=1.5, max_new_tokens=6)
    assert drawn(seed=2**63 - 2, best_of=3) == expected
    assert len(set(drawn())) > 2, "samples that are all the same"
    messages = [{"role": "user", "content": PROMPTS[0]}]
    chat = ask(client, model=id, messages=messages, n=3, seed=2**63 - 2, logprobs=True, **how)
    assert [each["message"]["content"] for each in chat["choices"]] == expected[:3]
    assert all(each["logprobs"]["content"] for each in chat["choices"])
