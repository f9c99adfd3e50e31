"""Metrics: the two of Super-NaturalInstructions, as its authors publish them, and macro-F1 of P3's CB.

The first two compare one prediction with all references of an instance and keep the best match, and both are
fractions in [0, 1]; tables show them times 100. ROUGE-L is the `rouge-score` package with Porter
stemming, F-measure. What that package does on hard cases is kept, because published numbers
contain it:

* everything but ASCII letters and digits separates words, so a text without any ("+", "日本", "")
  has no words and scores 0, even against itself;
* accented letters split a word ("café" is "caf"), case is ignored, words of at most three letters
  are not stemmed.

For tasks whose answers are such texts, use exact match; `has_words` detects them.
"""

import functools
import string
from collections.abc import Sequence

from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer

_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


@functools.cache
def _tokenizer() -> DefaultTokenizer:
    return DefaultTokenizer(use_stemmer=True)


@functools.cache
def _rouge_scorer() -> RougeScorer:
    return RougeScorer(["rougeL"], tokenizer=_tokenizer())


def _checked(references: Sequence[str]) -> Sequence[str]:
    # A bare string is a sequence of strings too, and would be scored letter by letter.
    if isinstance(references, str):
        raise TypeError("references must be a sequence of strings, not one string")
    if not references:
        raise ValueError("references is empty; a prediction needs at least one to be compared with")
    return references


def rouge_l(prediction: str, references: Sequence[str]) -> float:
    """ROUGE-L F-measure with stemming, the largest over the references, in [0, 1].

    Raises:
        ValueError: there are no references.
        TypeError: ``references`` is a single string.
    """
    scorer = _rouge_scorer()
    scores = (scorer.score(reference, prediction) for reference in _checked(references))
    return float(max(score["rougeL"].fmeasure for score in scores))


def has_words(references: Sequence[str]) -> bool:
    """Whether any reference has a word that ROUGE-L counts; without one every prediction scores 0.

    Raises:
        ValueError: there are no references.
        TypeError: ``references`` is a single string.
    """
    return any(_tokenizer().tokenize(reference) for reference in _checked(references))


def normalize(text: str) -> str:
    """Lower case, ASCII punctuation deleted, white space collapsed; articles stay."""
    return " ".join(text.lower().translate(_WITHOUT_PUNCTUATION).split())


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """1.0 if the prediction equals a reference after :func:`normalize`, else 0.0.

    Raises:
        ValueError: there are no references.
        TypeError: ``references`` is a single string.
    """
    wanted = normalize(prediction)
    return float(any(normalize(reference) == wanted for reference in _checked(references)))


def macro_f1(targets: Sequence[int], predictions: Sequence[int]) -> float:
    """Mean F1 over all classes that occur in targets or predictions, in [0, 1].

    Raises:
        ValueError: there are no targets, or their number differs from that of predictions.
    """
    if not targets or len(targets) != len(predictions):
        raise ValueError("macro-F1 needs one prediction for each of at least one target")
    pairs = list(zip(targets, predictions, strict=True))
    scores = []
    for label in set(targets) | set(predictions):
        right = sum(target == label == prediction for target, prediction in pairs)
        named = sum((target == label) + (prediction == label) for target, prediction in pairs)
        scores.append(2 * right / named)
    return sum(scores) / len(scores)
