"""Texts of an answer's tokens beside their log-probabilities."""

from types import SimpleNamespace
from typing import Any

from transformers import PreTrainedTokenizerBase

from hart.model.answering import Answer
from hart.serving.logprobs import of_completion, spelled


def test_a_special_token_within_an_answer_moves_no_other(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    ids = tiny_tokenizer("the cat sat on the mat", add_special_tokens=False)["input_ids"]
    ids[3:3] = [tiny_tokenizer.pad_token_id]
    text = tiny_tokenizer.decode(ids, skip_special_tokens=True)
    scores: Any = tuple(SimpleNamespace(logprob=-1.0, top=[]) for _ in ids)
    tokens = spelled(tiny_tokenizer, Answer(text, tuple(ids), False, 3, scores))
    assert "".join(token.text for token in tokens if not token.special) == text
    found = of_completion(tokens)
    for token, at in zip(tokens, found.text_offset, strict=True):
        assert token.special or text[at : at + len(token.text)] == token.text
