"""The text that models read, character by character, and cuts at the limits."""

import json
import logging
import random
import string
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from encoded import P3_TASK, TASK, encode_in_context, encode_task, tokens_of, told
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hart.data import prompts
from hart.data.input_format import InputFormat
from hart.data.prompts import Cuts, render_in_context, render_task
from hart.data.tasks import Task
from hart.errors import HartError
from hart.model.bundled import resolve_base

# White space matters: two blanks are leading ones, the text ends in a blank line or in "Output: ".
DEF_2POS = (
    "Definition: Reverse the words.\n\n"
    " Positive Example 1 -\nInput: a b c.\n Output: c b a.\n\n"
    " Positive Example 2 -\nInput: Is it so?\n Output: so? it Is.\n\n"
)
DEF_1POS_EXPLAINED = (
    "Definition: Reverse the words.\n\n"
    " Positive Example 1 -\nInput: a b c.\n Output: c b a.\n"
    " Explanation: The words are reversed.\n\n"
)
UNANSWERED = "Now complete the following example -\nInput: one two.\nOutput: "


def test_text_of_a_task_is_the_published_one() -> None:
    assert render_task(TASK) == DEF_2POS
    assert render_task(TASK, num_demonstrations=1, explanations=True) == DEF_1POS_EXPLAINED
    assert render_task(TASK, num_demonstrations=0) == "Definition: Reverse the words.\n\n"


def test_in_context_text_is_the_published_one() -> None:
    assert render_in_context(TASK, " one two\n") == DEF_2POS + UNANSWERED


def test_missing_explanation_leaves_no_line() -> None:
    with_explanations = render_task(TASK, explanations=True)
    assert with_explanations.count("Explanation: ") == 1
    assert with_explanations.endswith("\n Output: so? it Is.\n\n")


def test_more_demonstrations_than_there_are_takes_all() -> None:
    assert render_task(TASK, num_demonstrations=16) == render_task(TASK, num_demonstrations=3)


@pytest.mark.parametrize("mark", string.punctuation)
def test_no_full_stop_after_punctuation(mark: str) -> None:
    assert render_task(replace(TASK, definition=f"Do it{mark}")).startswith(f"Definition: Do it{mark}\n\n")


def test_empty_texts_are_closed_like_the_published_format() -> None:
    # There the last character of the line counts, which is then the blank of "Input: ".
    text = render_task(Task("Do.", [("", " ")]))
    assert text == "Definition: Do.\n\n Positive Example 1 -\nInput: .\n Output: .\n\n"


def grown(tokenizer, task: Task, max_length: int, tail: str = "", **shown) -> list[int]:
    """The definition of `encode_task`: one demonstration after the other, as long as the whole text still fits."""

    def tokens(count: int) -> list[int]:
        return tokens_of(tokenizer, render_task(task, num_demonstrations=count, **shown) + tail)

    kept = 0
    while kept < len(task.demonstrations) and len(tokens(kept + 1)) < max_length:
        kept += 1
    return [*tokens(kept)[: max_length - 1], tokenizer.eos_token_id]


def test_as_many_demonstrations_as_fit_one_after_the_other(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    rng = random.Random(0)
    alphabet = ["the ", "mat", " Input: ", "\n", "zq", ".", "é", "漢字", " ", "\u200b", "0"]

    def text(most: int) -> str:
        return "".join(rng.choices(alphabet, k=rng.randrange(most))) + "x"

    kept = Counter()
    for number in range(150):
        demonstrations = [(text(rng.choice([3, 40])), text(5), text(9)) for _ in range(rng.randrange(1, 17))]
        task, limit = Task(text(20), demonstrations, name=str(number)), rng.choice([2, 30, 100, 300, 1000])
        for explained in (False, True):
            shown = {"num_demonstrations": 16, "explanations": explained}
            ids = encode_task(tiny_tokenizer, task, limit, **shown)
            assert ids == grown(tiny_tokenizer, task, limit, explanations=explained)
            query = text(12)
            tail = render_in_context(task, query).removeprefix(render_task(task))
            ids = encode_in_context(tiny_tokenizer, task, query, limit, **shown)
            assert ids == grown(tiny_tokenizer, task, limit, tail, explanations=explained)
            kept[tiny_tokenizer.decode(ids).count("Positive Example")] += 1
    assert len(kept) > 10 and max(kept) > 12, "from none to nearly all"


def test_few_tokenisations_find_how_many_fit(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    asked = []

    class Counting:
        eos_token_id = tiny_tokenizer.eos_token_id

        def __call__(self, text: str, **options):
            asked.append(text)
            return {"input_ids": list(range(len(text) // 3))}

    task = Task("Do it.", [("word " * 20, "answer")] * 16)
    for limit in (400, 700, 100_000):
        asked.clear()
        encode_task(Counting(), task, limit, num_demonstrations=16)
        assert len(asked) <= (1 if limit == 100_000 else 3)


def ids_of(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """The tokenizer's own encoding, end of sequence included."""
    ids = tokenizer(text)["input_ids"]
    assert ids[-1] == tokenizer.eos_token_id
    return ids


def test_within_the_limits_tokens_are_the_tokenizers_own(
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    form = InputFormat()
    assert encode_task(tiny_tokenizer, TASK) == ids_of(tiny_tokenizer, DEF_2POS)
    assert encode_in_context(tiny_tokenizer, TASK, "one two", 1024) == ids_of(tiny_tokenizer, DEF_2POS + UNANSWERED)
    assert form.encode_query(tiny_tokenizer, " one two\n") == ids_of(tiny_tokenizer, "one two")
    assert form.encode_target(tiny_tokenizer, "two one") == ids_of(tiny_tokenizer, "two one")
    assert form.encode_target(tiny_tokenizer, "") == [tiny_tokenizer.eos_token_id]


def test_limit_counts_the_end_of_sequence(
    tiny_tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    task = replace(TASK, name="exact limit")
    whole, cuts = ids_of(tiny_tokenizer, DEF_2POS), Cuts()
    assert encode_task(tiny_tokenizer, task, len(whole), cuts=cuts) == whole
    assert not cuts
    shorter = encode_task(tiny_tokenizer, task, len(whole) - 1, cuts=cuts)
    assert cuts and not caplog.records
    assert shorter == ids_of(tiny_tokenizer, render_task(TASK, num_demonstrations=1))


def test_demonstration_left_out_is_named_once(
    tiny_tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    task = Task("Do it.", [("a", "b"), ("long " * 200, "c"), ("d", "e")], name="left out")
    cuts = Cuts()
    for _ in range(2):
        ids = encode_task(tiny_tokenizer, task, 100, num_demonstrations=3, cuts=cuts)
        assert ids == ids_of(tiny_tokenizer, render_task(task, num_demonstrations=1))
    assert not caplog.records, "nothing is said before it is told"
    assert told(cuts, caplog) == ["task left out: left out demonstration 2, 3 of 3 to stay within 100 tokens"]


@pytest.mark.parametrize(
    ("count", "rest"),
    [
        (1, ""),
        (2, "; the same for task 1"),
        (3, "; the same for task 1, task 2"),
        (840, "; the same for task 1, task 2 and 837 more"),
    ],
)
def test_one_condition_is_one_warning_however_many_tasks_it_meets(
    count: int, rest: str, tiny_tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    cuts = Cuts()
    for number in range(count):
        task = Task("Do it.", [("long " * 20, "c")] * (1 + number % 2), name=str(number))
        encode_task(tiny_tokenizer, task, 16, cuts=cuts)
    assert told(cuts, caplog) == [f"task 0: left out demonstration 1 of 1 to stay within 16 tokens{rest}"]


def test_queries_and_targets_that_are_cut_are_told(
    tiny_tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    form, cuts, text = InputFormat(max_query_length=6, max_target_length=5), Cuts(), "one two three four five six seven"
    for number, query in enumerate(["one", text, text, "two"], start=1):
        form.encode_query(tiny_tokenizer, query, cuts=cuts, name=f"query {number}")
    for target in ("one", text, text, text):
        form.encode_target(tiny_tokenizer, target, cuts=cuts)
    assert told(cuts, caplog) == [
        "query 2: cut the end of the query to stay within 6 tokens; the same for query 3",
        "cut the end of the target to stay within 5 tokens; the same for 2 more",
    ]
    # Without an end-of-sequence token there is room for one more.
    fitting = tokens_of(tiny_tokenizer, text)
    for eos in (True, False):
        form = InputFormat(max_query_length=len(fitting), input_eos=eos)
        form.encode_query(tiny_tokenizer, text, cuts, name=f"{eos}")
    assert told(cuts, caplog) == [f"True: cut the end of the query to stay within {len(fitting)} tokens"]


def test_definition_longer_than_the_limit_is_cut_from_the_end(
    tiny_tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    task, cuts = Task("Do it again, " * 30, [("a", "b")], name="cut definition"), Cuts()
    ids = encode_task(tiny_tokenizer, task, 20, cuts=cuts)
    assert ids[:-1] == ids_of(tiny_tokenizer, render_task(task, num_demonstrations=0))[:19]
    assert len(ids) == 20 and ids[-1] == tiny_tokenizer.eos_token_id
    assert told(cuts, caplog) == [
        "task cut definition: left out demonstration 1 of 1 and cut the end of the definition to stay within 20 tokens"
    ]


def test_query_and_target_are_cut_from_the_end(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    text = "one two three four five six seven"
    form = InputFormat(max_query_length=6, max_target_length=5)
    whole, eos = ids_of(tiny_tokenizer, text), tiny_tokenizer.eos_token_id
    assert len(whole) > 6
    assert form.encode_query(tiny_tokenizer, text) == [*whole[:5], eos]
    assert form.encode_target(tiny_tokenizer, text) == [*whole[:4], eos]


def test_demonstrations_give_way_to_a_long_query(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    query = "seven words " * 8
    wanted = ids_of(tiny_tokenizer, render_in_context(TASK, query, num_demonstrations=1))
    ids = encode_in_context(tiny_tokenizer, TASK, query, len(wanted))
    assert ids == wanted
    alone = ids_of(tiny_tokenizer, render_in_context(TASK, query, num_demonstrations=0))
    cuts = Cuts()
    cut = encode_in_context(tiny_tokenizer, TASK, query, len(alone) - 10, cuts=cuts)
    assert cuts
    assert cut == [*alone[: len(alone) - 11], tiny_tokenizer.eos_token_id]


@pytest.mark.parametrize("query", ["", " \n\t"])
def test_empty_query_is_refused(tiny_tokenizer: PreTrainedTokenizerFast, query: str) -> None:
    with pytest.raises(HartError, match="the query is empty"):
        InputFormat().encode_query(tiny_tokenizer, query)
    with pytest.raises(HartError, match="the query is empty"):
        encode_in_context(tiny_tokenizer, TASK, query, 100)
    with pytest.raises(HartError, match="the query is empty"):
        render_in_context(TASK, query)


def test_bad_limits_are_refused() -> None:
    for name in ("demonstrations", "query", "target"):
        with pytest.raises(HartError, match=f"max_{name}_length: must be at least 2"):
            InputFormat(**{f"max_{name}_length": 1})
    with pytest.raises(HartError, match="num_demonstrations: must be at least 0"):
        InputFormat(num_demonstrations=-1)


@pytest.mark.parametrize("eos", [True, False])
def test_no_sequence_is_empty(tiny_tokenizer: PreTrainedTokenizerFast, eos: bool) -> None:
    """Some tokenizers drop zero-width characters."""

    class Deaf:
        eos_token_id = tiny_tokenizer.eos_token_id

        def __call__(self, text: str, **options):
            return {"input_ids": []}

    end, query = [Deaf.eos_token_id], "\u200b\u200d"
    assert InputFormat(input_eos=eos).encode_query(Deaf(), query) == end
    assert InputFormat().encode_target(Deaf(), query) == end
    form = {"prompt_format": "prompts", "input_eos": eos}
    assert encode_in_context(Deaf(), P3_TASK, query, 20, num_demonstrations=0, **form) == end
    assert encode_task(Deaf(), P3_TASK, num_demonstrations=0, prompt_format="prompts") == end


def test_half_of_a_surrogate_pair_is_no_text(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    message = "contains an invalid character (a lone surrogate, U+D83D, at position 2); replace it"
    for encode, what in (
        (lambda: InputFormat().encode_query(tiny_tokenizer, "a \ud83d"), "the query"),
        (lambda: InputFormat().encode_query(tiny_tokenizer, "a \ud83d", name="query 7"), "query 7"),
        (lambda: encode_in_context(tiny_tokenizer, TASK, "a \ud83d", 100), "the query"),
        (lambda: encode_in_context(tiny_tokenizer, P3_TASK, "a \ud83d", 100, prompt_format="prompts"), "the query"),
        (lambda: InputFormat().encode_target(tiny_tokenizer, "a \ud83d"), "the answer"),
    ):
        with pytest.raises(HartError) as caught:
            encode()
        assert str(caught.value) == f"{what} {message}"


def test_real_tasks_against_a_plain_reading_of_their_json(
    shared_data: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    def closed(text: str) -> str:
        return text.strip() + ("" if text.strip()[-1:] in tuple(string.punctuation) else ".")

    bundled = AutoTokenizer.from_pretrained(resolve_base("mini-base"))
    for file in sorted((shared_data / "sni" / "tasks").glob("*.json")):
        raw = json.loads(file.read_text(encoding="utf-8"))
        blocks = [f"Definition: {closed(raw['Definition'][0])}"]
        for number, example in enumerate(raw["Positive Examples"][:2], start=1):
            lines = [f" Positive Example {number} -", f"Input: {closed(example['input'])}"]
            blocks.append("\n".join([*lines, f" Output: {closed(example['output'])}"]))
        task = Task.from_file(file)
        assert render_task(task) == "\n\n".join(blocks) + "\n\n"
        for tokenizer in (tiny_tokenizer, bundled):
            for limit in (128, 512, 1024):
                ids = encode_task(tokenizer, task, limit, num_demonstrations=16)
                assert ids == grown(tokenizer, task, limit)


def test_cuts_keep_a_bounded_number_of_names(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setattr(prompts, "NAMES", 3)
    cuts = Cuts()
    for number in (1, 1, 2, 3, 4, 5, 2):
        cuts.note("cut", f"query {number}")
    cuts.tell(logging.getLogger("hart.test"))
    assert caplog.messages == ["query 1: cut; the same for query 2, query 3 and 2 more"]
