"""Metrics against the rouge-score package, a plain implementation, and values by hand."""

import re

import pytest
from nltk.stem.porter import PorterStemmer
from rouge_score.rouge_scorer import RougeScorer

from hart.evaluation.metrics import exact_match, has_words, normalize, rouge_l

HARD = [
    ("", ["a cat"]),
    ("a cat", [""]),
    ("", [""]),
    ("   \n", ["a cat", "x"]),
    ("The cat.", ["the CAT"]),
    ("mat the on sat cat the", ["the cat sat on the mat"]),
    ("the cat sat", ["a dog ran", "the cat sat down", "cat"]),
    ("running quickly", ["run quick", "runs quicker"]),
    ("naïve café", ["naive cafe", "naïve café"]),
    ("日本", ["日本"]),
    ("日本 won 3-1", ["3 1 日本", "Japan won 3:1"]),
    ("+", ["+", "-"]),
    ("İstanbul", ["istanbul"]),
    ("don't", ["dont", "don t"]),
    ("yes yes yes", ["yes", "yes yes"]),
    ("a_b c-d", ["a b c d"]),
    ("\u00a0tab\tand\r\nbreak", ["tab and break"]),
    ("x" * 200 + " y", ["y " * 50]),
    ("🙂 smile", ["smile 🙂"]),
]


def plain_rouge_l(prediction: str, reference: str) -> float:
    """F-measure over the longest common subsequence of stemmed words, from its definition."""
    stemmer = PorterStemmer()

    def words(text: str) -> list[str]:
        found = re.findall("[a-z0-9]+", text.lower())
        return [stemmer.stem(word) if len(word) > 3 else word for word in found]

    a, b = words(prediction), words(reference)
    lengths = [0] * (len(b) + 1)
    for word in a:
        row = [0]
        for j, other in enumerate(b):
            row.append(lengths[j] + 1 if word == other else max(lengths[j + 1], row[j]))
        lengths = row
    common = lengths[-1]
    return 2 * common / (len(a) + len(b)) if common else 0.0


@pytest.mark.parametrize("prediction, references", HARD)
def test_rouge_l_is_that_of_rouge_score(prediction: str, references: list[str]) -> None:
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    expected = scorer.score_multi(references, prediction)["rougeL"].fmeasure
    assert rouge_l(prediction, references) == expected


@pytest.mark.parametrize("prediction, references", HARD)
def test_rouge_l_follows_its_definition(prediction: str, references: list[str]) -> None:
    expected = max(plain_rouge_l(prediction, reference) for reference in references)
    assert rouge_l(prediction, references) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    "prediction, references, expected",
    [
        # 2 of 3 and 2 of 4 words in common: 2 * 2 / (3 + 4).
        ("the cat sat", ["the cat ran away"], 4 / 7),
        # Order counts: the longest common subsequence is one word.
        ("b a", ["a b"], 1 / 2),
        # The best reference counts, not the first.
        ("cat", ["dog", "cat"], 1.0),
        # Stemming: "cats" and "cat" have one stem, "cat" and "car" do not.
        ("cats", ["cat"], 1.0),
        ("car", ["cat"], 0.0),
        # Words of three letters are not stemmed.
        ("ran", ["run"], 0.0),
        # Nothing but ASCII letters and digits makes a word.
        ("", [""], 0.0),
        ("日本", ["日本"], 0.0),
        ("+", ["+"], 0.0),
        # "é" ends a word: caf | caf, xyz.
        ("café", ["caf éxyz"], 2 / 3),
    ],
)
def test_rouge_l_by_hand(prediction: str, references: list[str], expected: float) -> None:
    assert rouge_l(prediction, references) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    "prediction, references, expected",
    [
        ("Yes.", ["yes"], 1.0),
        ("yes", ["no", "YES!"], 1.0),
        ("  a \n b ", ["A b"], 1.0),
        # Articles are kept, unlike in SQuAD's metric.
        ("the cat", ["cat"], 0.0),
        # Punctuation is deleted, not turned into a space.
        ("don't", ["dont"], 1.0),
        ("a-b", ["a b"], 0.0),
        # Only ASCII punctuation is.
        ("¿qué?", ["¿qué"], 1.0),
        ("¿qué?", ["qué"], 0.0),
        ("日本", ["日本"], 1.0),
        ("日本", ["中国"], 0.0),
        # What is left of pure punctuation is the empty text.
        ("", ["..."], 1.0),
        ("+", ["-"], 1.0),
        ("", ["a"], 0.0),
    ],
)
def test_exact_match_by_hand(prediction: str, references: list[str], expected: float) -> None:
    assert exact_match(prediction, references) == expected


def test_normalized_text_stays_as_it_is() -> None:
    for prediction, references in HARD:
        for text in (prediction, *references):
            assert normalize(normalize(text)) == normalize(text)


@pytest.mark.parametrize("metric", [rouge_l, exact_match])
def test_references_must_be_a_list_with_something_in_it(metric) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="references is empty"):
        metric("a", [])
    with pytest.raises(TypeError, match="not one string"):
        metric("a", "a")


@pytest.mark.parametrize("text", ["日本", "مرحبا", "+", "", "…", "a", "no. 7", "naïve", "Größe"])
def test_words_are_those_that_give_a_text_a_score_against_itself(text: str) -> None:
    assert has_words([text]) == (rouge_l(text, [text]) > 0)


def test_one_reference_with_words_is_enough() -> None:
    assert has_words(["+", "plus"]) and not has_words(["+", "-"])
    with pytest.raises(TypeError, match="not one string"):
        has_words("plus")
