"""The needle collection: texts of facts, and queries for one of them."""

import re
from collections import Counter

import pytest
from transformers import AutoTokenizer

from hart.data.collections import load_tasks
from hart.data.config import DataConfig
from hart.data.input_format import InputFormat
from hart.data.needle import LENGTHS, TASKS, build_task
from hart.errors import HartError
from hart.model.bundled import resolve_base

DATA = DataConfig(collection="needle", num_demonstrations=0, max_train_instances=None, max_test_instances=None)


def test_each_query_is_answered_by_its_text_alone() -> None:
    for task in load_tasks(DATA, "test"):
        facts = re.findall(r"(\w+) has (\w+) \.", task.definition)
        assert len(dict(facts)) == len(facts), "a key has one value"
        assert [(each.input, *each.references) for each in task.instances] == facts


def test_texts_have_the_lengths_that_their_categories_say() -> None:
    tokenizer, form = AutoTokenizer.from_pretrained(resolve_base("mini-base")), InputFormat.from_config(DATA)
    tasks = load_tasks(DATA, "test")
    for task in tasks:
        assert task.categories == (f"{len(form.encode_task(tokenizer, task))} tokens",)
    assert Counter(task.categories[0] for task in tasks) == {f"{length} tokens": 10 for length in LENGTHS}


def test_no_split_has_a_text_of_another_and_no_value_belongs_to_a_key() -> None:
    texts = {split: {build_task(index, split).definition for index in range(40)} for split in TASKS}
    assert len(set().union(*texts.values())) == 120
    pairs = Counter((each.input, each.references) for task in load_tasks(DATA, "test") for each in task.instances)
    assert max(pairs.values()) <= 3, "of 1120 facts"


def test_splits_and_caps() -> None:
    assert {split: len(load_tasks(DATA, split)) for split in TASKS} == TASKS
    capped = DATA.changed(validation_tasks=6, max_train_instances=5)
    assert [len(task.instances) for task in load_tasks(capped, "validation")] == [5] * 6
    with pytest.raises(HartError, match="needle: split 'dev' is unknown; use one of train, validation, test"):
        DATA.source.load(DATA, "dev")
