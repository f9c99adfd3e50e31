"""Classes and their probabilities, against one stock forward pass per choice, a softmax, and a prior."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from hart.data.tasks import Task
from hart.errors import HartError
from hart.model import classifying
from hart.model.adaptation import Adaptation
from hart.model.answering import encode_queries
from hart.model.classifying import check_classes
from hart.model.hart_model import HartModel

from .conftest import QUERIES, TASKS

CHOICES = ["the mat", "in order", "one"]
OWN = [["cat", "the cat"], ["one", "two", "three"], ["mat", "order"]]


def one_by_one(
    system: HartModel, query: str, choices: list[str], adaptation: Adaptation, mean: bool = False
) -> list[float]:
    """A forward of the main model for every choice alone."""
    main, found = system.main, []
    ids, mask = main.pad(encode_queries(main.tokenizer, [query], adaptation, system.input_format))
    for choice in choices:
        labels = torch.tensor([main.tokenizer(choice).input_ids])
        logits = main(
            ids,
            mask,
            labels,
            blocks=adaptation.blocks,
            peft=adaptation.kinds,
            memory=adaptation.memory,
            memory_mask=adaptation.memory_mask,
        ).logits
        found.append(-F.cross_entropy(logits[0], labels[0], reduction="mean" if mean else "sum").item())
    return found


def softmax(scores: list[float]) -> list[float]:
    powers = [math.exp(score - max(scores)) for score in scores]
    return [power / sum(powers) for power in powers]


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("batch_size", [1, 16])
def test_equals_one_forward_per_choice(system: HartModel, mean: bool, batch_size: int):
    adaptation = system.adapt(TASKS)
    normalisation = "mean" if mean else "sum"
    found = system.classify(QUERIES, CHOICES, adaptation, normalisation=normalisation, batch_size=batch_size)
    for i, (query, result) in enumerate(zip(QUERIES, found, strict=True)):
        expected = softmax(one_by_one(system, query, CHOICES, adaptation[i], mean))
        assert list(result.probabilities) == CHOICES
        assert list(result.probabilities.values()) == pytest.approx(expected, rel=1e-3)
        assert result.choice == CHOICES[expected.index(max(expected))]
        assert sum(result.probabilities.values()) == pytest.approx(1)


@pytest.mark.parametrize("one", [True, False])
def test_calibrated_by_what_a_query_without_content_gets(system: HartModel, one: bool):
    adaptation = system.adapt(TASKS[:1] if one else TASKS)
    for free in ("N/A", "order"):
        found = system.classify(QUERIES, OWN, adaptation, calibrate=True, content_free=free)
        for i, (query, own, result) in enumerate(zip(QUERIES, OWN, found, strict=True)):
            mine = adaptation if one else adaptation[i]
            # Zhao et al. (2021): the probabilities, each divided by that of the content-free input, normalised again.
            quotients = [
                a / b
                for a, b in zip(
                    softmax(one_by_one(system, query, own, mine)),
                    softmax(one_by_one(system, free, own, mine)),
                    strict=True,
                )
            ]
            expected = [quotient / sum(quotients) for quotient in quotients]
            assert list(result.probabilities.values()) == pytest.approx(expected, rel=1e-3)
    (even,) = system.classify("N/A", CHOICES, adaptation[0], calibrate=True)
    assert list(even.probabilities.values()) == pytest.approx([1 / 3] * 3)


def test_equal_entries_are_calibrated_by_one_query(system: HartModel, monkeypatch: pytest.MonkeyPatch):
    one, other = system.adapt(TASKS[0]), system.adapt(TASKS[1])
    mixed = Adaptation.stack([one, other, one])
    expected = system.classify(QUERIES, CHOICES, mixed, calibrate=True)
    rows: list[int] = []
    score = classifying.score_choices
    monkeypatch.setattr(classifying, "score_choices", lambda m, q, *a, **o: rows.append(len(q)) or score(m, q, *a, **o))
    found = system.classify(QUERIES, CHOICES, mixed, calibrate=True, alike=["a", "b", "a"])
    assert rows == [3, 2]
    for mine, theirs in zip(found, expected, strict=True):
        assert list(mine.probabilities.values()) == pytest.approx(list(theirs.probabilities.values()), rel=1e-4)


def test_the_base_alone_and_choices_of_each_query(system: HartModel):
    found = system.classify(QUERIES, OWN)
    for query, own, result in zip(QUERIES, OWN, found, strict=True):
        assert list(result.probabilities.values()) == pytest.approx(softmax(system.score(query, own)), rel=1e-4)
    assert system.classify([], CHOICES) == []


@pytest.mark.parametrize(
    ("choices", "told"),
    [
        (["a", " a "], "the choices 'a' and ' a ' read the same; leave one out"),
        (["Big  bug", "big bug"], "the choices 'Big  bug' and 'big bug' read the same"),
        (["ﬁne", "fine"], "read the same"),
        (["a"], "1 choices; at least two are needed"),
        ([], "0 choices; at least two are needed"),
        (["a", " "], "' ' cannot be a choice; give a text that is not empty"),
        (["a", 3], "3 cannot be a choice"),
        ("a,b", "the choices are one text; give a list of texts"),
    ],
)
def test_choices_that_cannot_be_told_apart(choices: list[str], told: str):
    with pytest.raises(HartError) as caught:
        check_classes(choices, "line 3")
    assert str(caught.value).startswith("line 3: ") and told in str(caught.value)


def test_columns_and_generators_are_lists(system: HartModel):
    queries, choices = ["the cat", "one two"], ["one", "the mat"]
    for options in ({}, {"calibrate": True}):
        expected = system.classify(queries, choices, **options)
        assert system.classify(np.array(queries), np.array(choices), **options) == expected
        assert system.classify((query for query in queries), (each for each in choices), **options) == expected
        assert system.classify(queries, (np.array(choices) for _ in queries), **options) == expected


def test_mistakes(system: HartModel):
    for wrong, told in (
        ((["x", "y"], None), "choices must be a list of texts, not NoneType"),
        ((["x", "y"], [["a", "b"], 3]), "query 2 of 2: the choices must be a list of texts, not int"),
        ((["x", "y"], ["a", ["b", "c"]]), r"query 1 of 2: \['b', 'c'\] cannot be a choice"),
    ):
        with pytest.raises(HartError, match=told):
            system.classify(*wrong)
    assert check_classes([" a", "b "], "x") == ["a", "b"]
    with pytest.raises(HartError, match="query 1 of 1: the choices 'a' and 'A' read the same"):
        system.classify("x", ["a", "A"])
    with pytest.raises(HartError, match="query 2 of 2: 1 choices"):
        system.classify(["x", "y"], [["a", "b"], ["a"]])
    with pytest.raises(HartError, match="there are 2 queries, and choices for 1"):
        system.classify(["x", "y"], [["a", "b"]])
    with pytest.raises(HartError, match="one of them is a text"):
        system.classify("x", "a,b")
    long = "one two three one two three one two three "
    with pytest.raises(HartError, match=r"have the same tokens in this model, which reads the first 6; choose other"):
        system.classify("x", [f"{long}a", f"{long}b"], system.adapt(Task("Do.", [("a", "b")])))
