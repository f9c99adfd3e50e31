"""Stop sequences: the cut of an answer, for any division into tokens and pieces."""

from random import Random

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from hart.model.answering import Answer
from hart.model.bundled import resolve_base
from hart.serving.running import PieceStreamer
from hart.serving.stopping import HoldBack, StopRows, cut_at_stop, find_stop

TEXT = "one, two; three\nfour"
STOPS = [(), ("\n",), (";", "two; th"), ("wo; three\nX", "re"), ("zzz",), ("o",), ("four",), ("four!", "fo", "ur")]


@pytest.mark.parametrize(
    ("text", "stop", "cut"),
    [
        ("abcd", ["abcd", "bc"], 1),  # "bc" is complete first
        ("abc", ["c", "bc", "xbc"], 1),  # complete at once: the longest
        ("aab", ["ab"], 1),
        ("abc", ["d"], None),
        ("abc", [], None),
        ("", ["a"], None),
        ("a", ["a"], 0),
    ],
)
def test_the_sequence_that_is_complete_first_cuts(text: str, stop: list[str], cut: int | None) -> None:
    assert find_stop(text, stop) == cut
    assert find_stop(text, stop[::-1]) == cut


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_pieces_are_the_text_before_the_cut_and_never_more(stop: tuple[str, ...], size: int) -> None:
    expected = TEXT[: find_stop(TEXT, stop)]
    told: list[str] = []
    hold = HoldBack(stop, told.append)
    pieces = [TEXT[begin : begin + size] for begin in range(0, len(TEXT), size)]
    for number, piece in enumerate(pieces, start=1):
        hold(piece)
        # What is held is what a stop sequence begins with, and no more.
        read, sent = "".join(pieces[:number]), "".join(told)
        assert expected.startswith(sent)
        if find_stop(read, stop) is None:
            assert read.startswith(sent) and any(each.startswith(read[len(sent) :]) for each in (*stop, ""))
    hold("", end=True)
    assert "".join(told) == expected and "" not in told


@pytest.mark.parametrize("name", ["mini-base", "mini-causal-base"])
def test_pieces_of_a_stream_are_the_text_of_its_tokens(name: str) -> None:
    """Of random tokens, rich in half letters and in line breaks, behind which transformers' streamer loses a space."""
    tokenizer = AutoTokenizer.from_pretrained(resolve_base(name))
    draw = Random(0)
    common = [each for text in ("a\n b", "naïve", "日本語 🙂", "a  b") for each in tokenizer(text)["input_ids"]]
    for _ in range(200):
        ids = [draw.choice(common) if draw.random() < 0.6 else draw.randrange(len(tokenizer)) for _ in range(20)]
        told: list[str] = []
        streamer = PieceStreamer(tokenizer, HoldBack((), told.append))
        streamer.put(torch.tensor([0]))  # the prompt
        for id in ids:
            streamer.put(torch.tensor([id]))
        streamer.end()
        assert "".join(told) == tokenizer.decode(ids, skip_special_tokens=True)


def test_what_ends_an_answer_is_no_piece_of_its_stream(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    ids, told = tiny_tokenizer("the cat sat mat", add_special_tokens=False)["input_ids"], []
    streamer = PieceStreamer(tiny_tokenizer, HoldBack((), told.append), ends=[1, ids[-1]])
    for value in (0, *ids):
        streamer.put(torch.tensor([value]))
    streamer.end()
    assert "".join(told) == tiny_tokenizer.decode(ids[:-1])


@pytest.mark.parametrize("stop", STOPS)
def test_tokens_of_a_cut_answer_are_those_up_to_the_end_of_the_sequence(
    stop: tuple[str, ...], tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    ids = tiny_tokenizer(TEXT)["input_ids"]  # the end of sequence is the last
    answer = Answer(tiny_tokenizer.decode(ids, skip_special_tokens=True), tuple(ids), True, 3)
    cut = cut_at_stop(answer, tiny_tokenizer, stop)
    counts = [n for n in range(len(ids)) if find_stop(tiny_tokenizer.decode(ids[:n]), stop) is not None]
    assert (cut.text, cut.tokens) == (TEXT[: find_stop(TEXT, stop)], min(counts, default=len(ids)))
    assert cut.finished and cut.query_tokens == 3


def test_a_row_ends_with_the_token_that_completes_a_sequence(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    """Long after the beginning, behind a prompt that has the sequence, too, and with characters of several bytes."""
    texts = ["the cat sat on the mat " * 5 + end for end in ("né€d; one two", "one; two", "one two")]
    rows = [tiny_tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    ids = torch.full((len(rows), max(map(len, rows)) + 5), tiny_tokenizer.pad_token_id)
    for row, tokens in zip(ids, rows, strict=True):
        row[: 5 + len(tokens)] = torch.tensor([*tiny_tokenizer("€d; ; €d;")["input_ids"][:5], *tokens])
    stop = ["€d;", "one;"]
    criterion = StopRows(tiny_tokenizer, stop)
    told = torch.stack([criterion(ids[:, :length], None) for length in range(6, ids.shape[1] + 1)], dim=1)
    for ended, tokens in zip(told, rows, strict=True):
        counts = [
            n for n in range(1, len(tokens) + 1) if find_stop(tiny_tokenizer.decode(tokens[:n]), stop) is not None
        ]
        assert ended.nonzero().flatten().tolist()[:1] == [min(counts) - 1] if counts else not ended.any()
