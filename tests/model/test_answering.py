"""Decoding: effects of options, fields of an answer, and refused options."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, T5Config, T5ForConditionalGeneration

from hart.errors import HartError
from hart.model.adaptation import Adaptation
from hart.model.answering import Generating, decoding_options, limit
from hart.model.encoder_decoder import EncoderDecoder
from hart.model.main_model import MainModel

QUERIES = ["the cat sat", "one two three one two three on the mat", "in order"]


@pytest.fixture
def main(tiny_base_dir: Path) -> MainModel:
    return MainModel.from_pretrained(str(tiny_base_dir))


def stock_tokens(main: MainModel, query: str, **options: Any) -> list[int]:
    read = main.tokenizer(query, return_tensors="pt")
    made: Any = main.model.generate(
        input_ids=read["input_ids"], attention_mask=read["attention_mask"], do_sample=False, num_beams=1, **options
    )
    return made[0].tolist()


def test_answers_know_their_tokens(main: MainModel) -> None:
    """Against one query at a time, which has no padding; some answers end and some are cut."""
    with torch.no_grad():  # a model that says the end of sequence now and then
        main.model.lm_head.weight[main.tokenizer.eos_token_id] *= 2.0
    seen = set()
    for count in (1, 2, 5, 12):
        answers = main.answers(QUERIES, max_new_tokens=count)
        for query, answer in zip(QUERIES, answers, strict=True):
            tokens = stock_tokens(main, query, max_new_tokens=count)[1:]
            assert answer.tokens == len(tokens)
            assert answer.finished == (tokens[-1] == main.tokenizer.eos_token_id)
            assert answer.text == main.tokenizer.decode(tokens, skip_special_tokens=True)
            assert answer.query_tokens == len(main.tokenizer(query)["input_ids"])
            seen.add(answer.finished)
        assert main.generate(QUERIES, max_new_tokens=count) == [answer.text for answer in answers]
    assert seen == {True, False}


@pytest.mark.parametrize("pad_is_end", [False, True])
def test_what_fills_a_row_behind_a_stop_string_is_no_token_of_its_answer(main: MainModel, pad_is_end: bool) -> None:
    """Also where padding is the token of an end, as in decoder-only models without one of their own."""
    if pad_is_end:
        main.model.generation_config.pad_token_id = main.tokenizer.eos_token_id
    alone = [main.answers([query], max_new_tokens=12)[0] for query in QUERIES]
    tokenizer = main.tokenizer
    texts = [str(tokenizer.decode([token])).strip() for each in alone for token in each.ids[1:6]]
    stop = next(text for text in texts if text and 0 < sum(text in each.text for each in alone) < len(alone))
    stopped = main.answers(QUERIES, max_new_tokens=12, stop_strings=stop)
    assert len({each.tokens for each in stopped}) > 1, "some rows go on behind the stop of others"
    for answer, query in zip(stopped, QUERIES, strict=True):
        assert answer == main.answers([query], max_new_tokens=12, stop_strings=stop)[0]
        assert answer.finished == (answer.ids[-1] == tokenizer.eos_token_id)
        assert answer.text == tokenizer.decode(answer.ids, skip_special_tokens=True)


@pytest.mark.parametrize("padding", [None, "the end"])
def test_beams_end_at_a_stop_string(main: MainModel, padding: str | None) -> None:
    if padding is not None:
        main.model.generation_config.pad_token_id = main.tokenizer.eos_token_id
    alone = main.answers(QUERIES, max_new_tokens=12, num_beams=3)
    words = [word for each in alone for word in each.text.split()[:2]]
    stop = next(word for word in words if 0 < sum(word in each.text for each in alone) < len(alone))
    stopped = main.answers(QUERIES, max_new_tokens=12, num_beams=3, stop_strings=[stop])
    assert any(stop in each.text for each in stopped) and len({each.tokens for each in stopped}) > 1
    for each in stopped:
        text = main.tokenizer.decode(each.ids, skip_special_tokens=True)
        assert (text, each.tokens) == (each.text, len(each.ids)) and main.tokenizer.pad_token_id not in each.ids
        if stop in each.text:
            assert not each.finished and stop not in main.tokenizer.decode(each.ids[:-1], skip_special_tokens=True)


def test_an_answer_without_a_token_is_empty(main: MainModel) -> None:
    tokens = torch.tensor([[main.tokenizer.eos_token_id, 5]])
    (answer,) = Generating(main.tokenizer, [main.tokenizer.eos_token_id], {}).answers(
        tokens, torch.ones(1, 4, dtype=torch.long)
    )
    assert answer.text == "" and answer.finished and answer.tokens == 1


def test_every_end_that_a_checkpoint_names_ends_an_answer(main: MainModel, tiny_base_dir: Path, tmp_path: Path) -> None:
    """As instruct models have two: of a turn and of a text."""
    greedy = main.answers(QUERIES, max_new_tokens=8)
    turn = next(each.ids[2] for each in greedy if each.tokens > 3)
    base = T5ForConditionalGeneration.from_pretrained(tiny_base_dir)
    base.generation_config.eos_token_id = [1, turn]
    base.save_pretrained(tmp_path)
    main.tokenizer.save_pretrained(tmp_path)
    answers = MainModel.from_pretrained(str(tmp_path)).answers(QUERIES, max_new_tokens=8)
    assert any(answer.ids[-1] == turn and answer.finished for answer in answers)
    for answer, whole in zip(answers, greedy, strict=True):
        expected = whole.ids[: whole.ids.index(turn) + 1] if turn in whole.ids else whole.ids
        assert answer.ids == expected
        said = expected[:-1] if answer.finished else expected
        assert answer.text == main.tokenizer.decode(said, skip_special_tokens=True)
    # One that a call names counts for this call alone.
    assert main.answers(QUERIES, max_new_tokens=8, eos_token_id=[1, turn]) == answers
    assert main.answers(QUERIES, max_new_tokens=8) == greedy


def test_a_bases_own_generation_config_does_not_decide(main: MainModel, tiny_base_dir: Path, tmp_path: Path) -> None:
    base = T5ForConditionalGeneration.from_pretrained(tiny_base_dir)
    base.generation_config = GenerationConfig(
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=1, do_sample=True, temperature=9.0, num_beams=3,
        num_return_sequences=3, min_length=9, max_length=11, repetition_penalty=1.5, no_repeat_ngram_size=1,
        forced_eos_token_id=5,
    )  # fmt: skip
    base.save_pretrained(tmp_path)
    main.tokenizer.save_pretrained(tmp_path)
    other = MainModel.from_pretrained(str(tmp_path))
    expected = main.answers(QUERIES, max_new_tokens=4)
    for _ in range(3):
        assert other.answers(QUERIES, max_new_tokens=4) == expected
    assert other.stock_generation_config.num_beams == 3, "kept for exports"


def test_temperature_alone_samples(main: MainModel) -> None:
    greedy = main.generate(QUERIES, max_new_tokens=8)
    drawn = {tuple(main.generate(QUERIES, max_new_tokens=8, temperature=3.0)) for _ in range(4)}
    assert len(drawn) > 1 and tuple(greedy) not in drawn
    assert main.generate(QUERIES, max_new_tokens=8, temperature=3.0, top_p=1e-9) == greedy
    assert main.generate(QUERIES, max_new_tokens=8, temperature=0) == greedy


def test_no_limit_of_the_libraries_own_on_sampling() -> None:
    """transformers looks at the 50 likeliest tokens unless it is told otherwise."""
    assert decoding_options(1, 0.7, 1.0, {}) == {
        "num_beams": 1, "do_sample": True, "temperature": 0.7, "top_p": 1.0, "top_k": 0,
    }  # fmt: skip
    assert decoding_options(1, 0.0, 1.0, {"do_sample": True, "top_k": 3})["temperature"] == 1.0
    assert decoding_options(4, 0.0, 1.0, {}) == {"num_beams": 4, "do_sample": False}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number of at least 1, not 0"),
        ({"max_new_tokens": -3}, "max_new_tokens must be .* not -3"),
        ({"max_new_tokens": 2.5}, "max_new_tokens must be .* not 2.5"),
        ({"max_new_tokens": "8"}, "max_new_tokens must be .* not '8'"),
        ({"max_query_length": 0}, "max_query_length must be a whole number of at least 2, not 0"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, not 0"),
        ({"batch_size": -1}, "batch_size must be .* not -1"),
        ({"num_beams": 0}, "num_beams must be a whole number of at least 1, not 0"),
        ({"num_beams": True}, "num_beams must be"),
        ({"temperature": -0.1}, "temperature must be a number of at least 0, not -0.1"),
        ({"temperature": float("nan")}, "temperature must be"),
        ({"temperature": "hot"}, "temperature must be"),
        ({"top_p": 0}, "top_p must be a number above 0 and at most 1, not 0"),
        ({"top_p": 1.5, "temperature": 1}, "top_p must be"),
        ({"top_p": 0.5}, "top_p has no effect at temperature 0"),
        ({"num_beams": 2, "temperature": 0.5}, "num_beams: beam search uses no temperature"),
        ({"num_return_sequences": 2}, "num_return_sequences must be 1"),
        ({"temperature": 5.0, "do_sample": False}, "do_sample is False and temperature is 5.0"),
        ({"top_k": 4}, "top_k has no effect at temperature 0"),
        ({"min_p": 0.1}, "min_p has no effect"),
        ({"max_length": 4}, "max_length has no effect beside max_new_tokens, .* set max_new_tokens"),
        ({"length_penalty": 2.0}, "length_penalty has no effect with one beam; set num_beams above 1"),
        ({"early_stopping": True}, "early_stopping has no effect with one beam"),
        ({"early_stopping": "never"}, "early_stopping has no effect with one beam"),
        ({"return_dict_in_generate": True}, "return_dict_in_generate: answers are texts and tokens"),
        ({"max_new_tokns": 3}, "unknown options of generate: 'max_new_tokns'; check their spelling"),
        ({"generation_config": None}, "generation_config: give its fields as options"),
        ({"logprobs": 1, "forced_eos_token_id": 0}, "logprobs: .*leave forced_eos_token_id out"),
        ({"logprobs": 1, "repetition_penalty": 1.5}, "logprobs: are the model's own, .*repetition_penalty"),
        ({"logprobs": 1, "prompt_lookup_num_tokens": 2}, "logprobs: .*leave prompt_lookup_num_tokens out"),
    ],
)
def test_options_out_of_range(main: MainModel, options: dict[str, Any], message: str) -> None:
    with pytest.raises(HartError, match=message):
        main.generate(QUERIES, **options)


def test_one_token_and_the_defaults(main: MainModel) -> None:
    assert {answer.tokens for answer in main.answers(QUERIES, max_new_tokens=1)} == {1}
    assert limit("max_new_tokens", None, 7) == 7 and limit("max_new_tokens", 3, 7) == 3


def test_queries_that_are_one_text(main: MainModel) -> None:
    with pytest.raises(HartError, match="queries must be a list of texts, not one text"):
        main.generate("the cat")  # type: ignore[arg-type]


@pytest.mark.parametrize("layers", [(2, 4), (4, 2), (1, 3)])
@pytest.mark.parametrize("num_beams", [1, 2])
def test_stacks_of_different_depth_answer(layers: tuple[int, int], num_beams: int, main: MainModel) -> None:
    """With and without the cache; deeper decoders than encoders exist (google/t5-efficient-tiny-dl6)."""
    encoder, decoder = layers
    fields = main.model.config.to_dict() | {"num_layers": encoder, "num_decoder_layers": decoder}
    model = T5ForConditionalGeneration(T5Config(**fields)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    deep = EncoderDecoder(model, main.tokenizer, name="deep")
    options: dict[str, Any] = {"max_new_tokens": 6, "num_beams": num_beams}
    expected = deep.generate(QUERIES, **options, use_cache=False)
    assert deep.generate(QUERIES, **options) == expected
    memory = torch.randn(1, 5, model.config.d_model)
    fused = Adaptation(
        {}, memory, torch.ones(1, 5, dtype=torch.long), [], "deep", None, deep.fingerprint, [{"name": "t"}]
    )
    assert deep.generate(QUERIES, fused, **options) == deep.generate(QUERIES, fused, **options, use_cache=False)


def test_values_that_do_nothing_are_taken(main: MainModel) -> None:
    neutral = {"top_k": 0, "typical_p": 1.0, "repetition_penalty": 1.0, "bad_words_ids": None, "max_length": None}
    neutral |= {"length_penalty": 1.0, "early_stopping": False}
    assert main.answers(QUERIES, max_new_tokens=4, logprobs=1, **neutral) == main.answers(
        QUERIES, max_new_tokens=4, logprobs=1
    )
