"""Tasks with only a definition or only demonstrations: the text that is read, and the models that read none."""

from dataclasses import replace

import pytest
from encoded import TASK as THREE
from encoded import encode_in_context, encode_task, tokens_of, told

from hart.data.input_format import InputFormat
from hart.data.prompts import Cuts, render_in_context, render_task
from hart.data.tasks import Task
from hart.errors import HartError

TASK = replace(THREE, demonstrations=THREE.demonstrations[:2])
DEFINED = replace(TASK, demonstrations=())
SHOWN = replace(TASK, definition=" \n")
TEXT = {"defined": "Definition: Reverse the words.\n\n"}
TEXT["shown"] = (
    " Positive Example 1 -\nInput: a b c.\n Output: c b a.\n\n"
    " Positive Example 2 -\nInput: Is it so?\n Output: so? it Is.\n\n"
)


@pytest.mark.parametrize(("name", "task"), [("defined", DEFINED), ("shown", SHOWN)])
@pytest.mark.parametrize("groups", [1, 3])
def test_the_part_that_is_missing_is_left_out_of_the_text(name: str, task: Task, groups: int, tiny_tokenizer):
    """As Tk-Instruct's code writes it; both parts together are the whole text."""
    assert render_task(task) == TEXT[name]
    assert TEXT["defined"] + TEXT["shown"] == render_task(TASK)
    eos = tiny_tokenizer.eos_token_id
    form = InputFormat(demonstration_groups=groups)
    assert form.encode_groups(tiny_tokenizer, task) == [[*tokens_of(tiny_tokenizer, TEXT[name]), eos]]
    asked = TEXT[name] + "Now complete the following example -\nInput: one two.\nOutput: "
    assert render_in_context(task, "one two") == asked
    assert encode_in_context(tiny_tokenizer, task, "one two", 500) == [*tokens_of(tiny_tokenizer, asked), eos]


def test_a_first_demonstration_without_a_definition_is_cut_as_a_definition_is(tiny_tokenizer, caplog):
    eos = tiny_tokenizer.eos_token_id
    whole = encode_task(tiny_tokenizer, SHOWN)
    one = encode_task(tiny_tokenizer, replace(SHOWN, demonstrations=SHOWN.demonstrations[:1]))
    cuts = Cuts()
    assert encode_task(tiny_tokenizer, SHOWN, len(one) + 1, cuts=cuts) == one
    assert told(cuts, caplog) == [f"task reverse: left out demonstration 2 of 2 to stay within {len(one) + 1} tokens"]
    assert encode_task(tiny_tokenizer, SHOWN, 7, cuts=cuts) == [*whole[:6], eos]
    said = "left out demonstration 2 of 2 and cut the end of the first demonstration to stay within 7 tokens"
    assert told(cuts, caplog) == [f"task reverse: {said}"]
    # In context it gives way to the query, as all demonstrations do.
    bare = [*tokens_of(tiny_tokenizer, "Now complete the following example -\nInput: one two.\nOutput: "), eos]
    assert encode_in_context(tiny_tokenizer, SHOWN, "one two", len(bare)) == bare


NO_DEFINITION, NO_DEMONSTRATIONS = "the definition is empty", "has no demonstrations"
NOTHING_ELSE = "and the model reads nothing else"


@pytest.mark.parametrize(
    ("form", "task", "unread", "untrainable", "never_seen"),
    [
        ({}, TASK, None, None, ""),
        ({}, DEFINED, None, f"{NO_DEMONSTRATIONS}, and data.num_demonstrations is 2", "demonstrations"),
        ({}, SHOWN, None, f"{NO_DEFINITION}, and the model reads it", "definition"),
        ({"demonstrations_to": "main"}, SHOWN, None, f"{NO_DEFINITION}, and the model reads it", "definition"),
        ({"num_demonstrations": 0}, DEFINED, None, None, ""),
        ({"omit_demonstrations": 0.1}, DEFINED, None, f"{NO_DEMONSTRATIONS}, and data.num_demonstrations is 2", ""),
        ({"definition_first": 0.5}, DEFINED, None, f"{NO_DEMONSTRATIONS}, and data.num_demonstrations is 2", ""),
        ({"omit_definition": 0.1}, SHOWN, None, f"{NO_DEFINITION}, and the model reads it", ""),
        ({"num_demonstrations": 0}, SHOWN, *[f"{NO_DEFINITION}, {NOTHING_ELSE}"] * 2, "definition"),
        ({"prompt_format": "prompts"}, SHOWN, None, None, ""),
        ({"prompt_format": "prompts"}, DEFINED, *[f"{NO_DEMONSTRATIONS}, {NOTHING_ELSE}"] * 2, "demonstrations"),
        ({"prompt_format": "prompts", "num_demonstrations": 0}, DEFINED, None, None, ""),
        ({"demonstrations_to": "nowhere"}, DEFINED, None, None, ""),
        ({"demonstrations_to": "nowhere"}, SHOWN, None, None, ""),
    ],
    ids=str,
)
def test_what_is_read_of_a_task_and_what_is_trained_on(
    form: dict, task: Task, unread: str | None, untrainable: str | None, never_seen: str, caplog
):
    read = InputFormat(**form)
    for check, said in ((read.check_readable, unread), (read.check_whole, untrainable)):
        if said is None:
            check(task)
        else:
            with pytest.raises(HartError, match=f"task reverse: {said}"):
                check(task)
    wanted = [f"has no {never_seen}, which every training task of the model had"] if never_seen else []
    assert read.never_seen(task) == wanted
    cuts = Cuts()
    read.note_unread(task, cuts)
    assert [each for each in told(cuts, caplog) if "training" in each] == [f"task reverse: {each}" for each in wanted]


def test_sampled_demonstrations_need_none_of_the_task() -> None:
    InputFormat().check_whole(DEFINED, sampled=True)
    InputFormat(prompt_format="instructions", num_demonstrations=0).check_whole(DEFINED)
