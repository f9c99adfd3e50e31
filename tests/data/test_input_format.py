"""Prompts in P3's format, and the tokens at both ends of a text."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
from encoded import P3_TASK, TASK, encode_in_context, encode_task, tokens_of, told
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from hart.data.input_format import InputFormat
from hart.data.prompts import Cuts
from hart.data.tasks import Task
from hart.errors import HartError


def test_prompts_are_inputs_and_targets_as_t0_reads_and_writes_them(tiny_tokenizer):
    eos = tiny_tokenizer.eos_token_id
    one, two, three = (
        [*tokens_of(tiny_tokenizer, demo.input.strip(), demo.output.strip()), eos] for demo in P3_TASK.demonstrations
    )
    form = {"prompt_format": "prompts", "num_demonstrations": 2}
    assert encode_task(tiny_tokenizer, P3_TASK, **form) == one + two
    assert encode_task(tiny_tokenizer, P3_TASK, **{**form, "num_demonstrations": 16}) == one + two + three
    query = tokens_of(tiny_tokenizer, "on the cat")
    in_context = encode_in_context(tiny_tokenizer, P3_TASK, " on the cat\n", 1024, **form)
    assert in_context == [*one, *two, *query, eos]
    assert encode_in_context(tiny_tokenizer, P3_TASK, "on the cat", 1024, input_eos=False, **form) == one + two + query
    # A definition is not read, and none of the format's is.
    assert encode_task(tiny_tokenizer, replace(P3_TASK, definition="Do it."), **form) == one + two


def test_prompts_show_as_many_demonstrations_as_fit(tiny_tokenizer, caplog):
    form = {"prompt_format": "prompts", "num_demonstrations": 3}
    whole = encode_task(tiny_tokenizer, P3_TASK, **form)
    two = encode_task(tiny_tokenizer, P3_TASK, **{**form, "num_demonstrations": 2})
    cuts = Cuts()
    assert encode_task(tiny_tokenizer, P3_TASK, len(whole), cuts=cuts, **form) == whole
    assert not cuts
    for task in (P3_TASK, replace(P3_TASK, name="other")):
        assert encode_task(tiny_tokenizer, task, len(whole) - 1, cuts=cuts, **form) == two
    said = f"task p3: shows 2 of 3 demonstrations to stay within {len(whole) - 1} tokens; the same for task other"
    assert told(cuts, caplog) == [said]
    # In context the query has the room it needs, and is itself cut where it has to be.
    query = tokens_of(tiny_tokenizer, "on the cat")
    fitting = len(two) + len(query)
    assert encode_in_context(tiny_tokenizer, P3_TASK, "on the cat", fitting, input_eos=False, **form) == two + query
    assert encode_in_context(tiny_tokenizer, P3_TASK, "on the cat", 3, input_eos=False, **form) == query[:3]
    read = encode_in_context(tiny_tokenizer, P3_TASK, "on the cat", 3, cuts=cuts, **form)
    assert read == [*query[:2], tiny_tokenizer.eos_token_id]
    assert told(cuts, caplog) == [
        "task p3: cut the end of the query to stay within 3 tokens",
        "task p3: shows 0 of 3 demonstrations to stay within 3 tokens",
    ]


def test_a_first_demonstration_that_is_too_long_keeps_its_target(tiny_tokenizer, caplog):
    task = Task("", [("the cat sat on the mat " * 20, "two three"), ("a", "b")], name="long")
    answer = [*tokens_of(tiny_tokenizer, "two three"), tiny_tokenizer.eos_token_id]
    cuts = Cuts()
    encoded = encode_task(tiny_tokenizer, task, 20, prompt_format="prompts", cuts=cuts)
    assert len(encoded) == 20 and encoded[-len(answer) :] == answer
    assert encoded[: 20 - len(answer)] == tokens_of(tiny_tokenizer, task.demonstrations[0].input)[: 20 - len(answer)]
    said = "task long: cut the input of the only demonstration that it shows to stay within 20 tokens"
    assert told(cuts, caplog) == [said]
    short = encode_task(tiny_tokenizer, task, 2, prompt_format="prompts", cuts=cuts)
    assert short == [answer[0], tiny_tokenizer.eos_token_id]
    said = "task long: cut the input and target of the only demonstration that it shows to stay within 2 tokens"
    assert told(cuts, caplog) == [said]


def test_a_query_may_go_without_its_end(tiny_tokenizer):
    query = tokens_of(tiny_tokenizer, "on the cat")
    assert InputFormat(input_eos=False).encode_query(tiny_tokenizer, " on the cat ") == query
    assert InputFormat(max_query_length=2, input_eos=False).encode_query(tiny_tokenizer, "on the cat") == query[:2]


@pytest.mark.parametrize("form", [{}, {"prompt_format": "prompts"}], ids=str)
def test_a_beginning_of_sequence_comes_first_and_counts(tiny_base_dir: Path, form: dict) -> None:
    """As of Llama's tokenizer, which puts it before every text."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny_base_dir, bos_token="<unk>")
    plain = InputFormat().encode_query(tokenizer, "one two")
    begin = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<unk> $A", special_tokens=[("<unk>", begin)]
    )
    assert InputFormat().encode_query(tokenizer, "one two") == [begin, *plain]
    assert begin not in InputFormat().encode_target(tokenizer, "one two")
    # Of a task too, which the main model may encode itself.
    whole = encode_task(tokenizer, TASK, **form)
    assert whole[0] == begin and begin not in whole[1:]
    assert len(encode_task(tokenizer, TASK, 20, **form)) <= 20
    cuts, limit = Cuts(), 20
    cut = encode_in_context(tokenizer, TASK, "one two " * 30, limit, cuts, **form)
    assert len(cut) == limit and cut[0] == begin and cut[-1] == tokenizer.eos_token_id
    cut = InputFormat(max_query_length=limit).encode_query(tokenizer, "one two " * 30, cuts, name="query 1")
    assert len(cut) == limit and cut[0] == begin
    assert all(f"within {limit} tokens" in message for message, _ in cuts._noted.values())


def test_groups_are_tasks_of_their_own(tiny_tokenizer, caplog):
    task = Task("Count.", [(f"word {n}", f"{n}") for n in range(5)], name="five")
    form = InputFormat(demonstration_groups=2)
    assert form.encode_groups(tiny_tokenizer, task) == [
        encode_task(tiny_tokenizer, replace(task, demonstrations=task.demonstrations[at : at + 2])) for at in (0, 2)
    ]
    assert form.shown(task).demonstrations == task.demonstrations[:4]
    cuts = Cuts()
    form.note_unread(task, cuts)
    assert told(cuts, caplog) == ["task five: reads 4 of 5 demonstrations"]
    with pytest.raises(HartError, match="demonstration_groups: must be a whole number of at least 1, not 0"):
        InputFormat(demonstration_groups=0)


def test_a_group_has_the_whole_limit(tiny_tokenizer):
    task = Task("Count.", [("one two three four", "4"), ("a b", "2")])
    limit = len(encode_task(tiny_tokenizer, replace(task, demonstrations=task.demonstrations[:1])))
    form = InputFormat(num_demonstrations=1, demonstration_groups=2, max_demonstrations_length=limit)
    cuts = Cuts()
    assert len(form.encode_groups(tiny_tokenizer, task, cuts)) == 2 and not cuts


def test_a_conversation_is_what_the_chat_template_makes_of_it(tiny_tokenizer):
    """One message of a user is read as a query is; nothing is cut, and what the template refuses is told in a line."""
    form, template = (
        InputFormat(chat_template=True, max_query_length=20),
        "{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}",
    )
    tokenizer = copy.deepcopy(tiny_tokenizer)
    messages = [{"role": "system", "content": "the cat"}, {"role": "user", "content": "one two"}]
    with pytest.raises(HartError, match="data.chat_template: the base's tokenizer has no chat template"):
        form.encode_conversation(tokenizer, messages)
    tokenizer.chat_template = template
    assert form.encode_conversation(tokenizer, messages) == tokens_of(tokenizer, "system: the cat user: one two ")
    assert form.encode_conversation(tokenizer, messages[1:]) == form.encode_query(tokenizer, "one two")
    assert len(form.encode_conversation(tokenizer, messages * 20)) > form.max_query_length
    with pytest.raises(HartError, match=r"messages: this model has no chat template \(data.chat_template\)"):
        InputFormat().encode_conversation(tokenizer, messages)
    tokenizer.chat_template = "{{ raise_exception('no system message') if messages[0].role == 'system' }}"
    with pytest.raises(HartError) as told_of:
        form.encode_conversation(tokenizer, messages)
    assert str(told_of.value) == "messages: the chat template of the base's tokenizer refuses them (no system message)"


def test_without_the_end_of_sequence_a_text_ends_where_its_answer_begins(tiny_tokenizer) -> None:
    read = encode_in_context(tiny_tokenizer, TASK, "x y", 1024, input_eos=False)
    whole = encode_in_context(tiny_tokenizer, TASK, "x y", 1024)
    assert whole[-1] == tiny_tokenizer.eos_token_id not in read
    assert tiny_tokenizer.decode(read).endswith("Output:") and read == whole[: len(read)]
    assert len(encode_in_context(tiny_tokenizer, TASK, "x y " * 30, 20, input_eos=False)) == 20
