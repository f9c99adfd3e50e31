"""Detection of queries that a bundled model has never seen the words of, as it knows only a few hundred words.

The list of all tokens in a bundled model's training queries is stored beside its weights (made by
`recipes/mini/seen_tokens.py`). A query is far from the training data if more than `MOST` of its tokens are not in the
list. This holds for 99.6 % of queries in ordinary English and for none of the unseen tasks (docs/results.md).
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from hart.data.prompts import Cuts, Tokenizer
from hart.model.bundled import MODELS, resolve_model
from hart.runtime.files import read_json

SEEN_FILE = "seen_tokens.json"
MOST = 0.3
"""Share of tokens absent from all training queries, above which a query is reported."""


def unseen_share(model: str, tokens: Sequence[int]) -> float | None:
    """Share of a query's tokens that are in no training query of a model; None if there is no list for the model.

    Args:
        model: name of the model that made the adaptation.
        tokens: the query's tokens in the main model's input.
    """
    seen = _seen(model)
    return None if seen is None or not tokens else sum(token not in seen for token in tokens) / len(tokens)


def is_far(model: str, tokens: Sequence[int]) -> bool:
    """Whether a query is known to be far from a model's training data; arguments as in `unseen_share`."""
    share = unseen_share(model, tokens)
    return share is not None and share > MOST


def note_unfamiliar(model: str, tokens: Sequence[int], cuts: Cuts, name: str) -> None:
    """Record in `cuts` a query that is far from a model's training data."""
    if is_far(model, tokens):
        told = f"{unseen_share(model, tokens):.0%} of its tokens never occur in the training of {model}"
        cuts.note(
            f"is far from the training data of {model}, so its answer is unreliable",
            name,
            f"{told}, so its answer is unreliable",
        )


def note_unfamiliar_task(model: str, shown: Sequence[str], tokenizer: Tokenizer, cuts: Cuts, name: str) -> None:
    """Record in `cuts` a task whose demonstrations have inputs (`shown`) far from a model's training data."""
    if _seen(model) is None:
        return  # without a list nothing is compared, so nothing is tokenised
    tokens = tokenizer(" ".join(shown), add_special_tokens=False, verbose=False)["input_ids"]
    if is_far(model, tokens):
        told = f"{unseen_share(model, tokens):.0%} of the tokens of its demonstrations never occur in the training of"
        cuts.note(
            f"is far from the training data of {model}, so its adaptation is unreliable",
            name,
            f"{told} {model}, so its adaptation is unreliable",
        )


@cache
def _seen(model: str) -> frozenset[int] | None:
    if model not in MODELS:
        return None
    path = Path(resolve_model(model)) / SEEN_FILE
    return frozenset(read_json(path, "the tokens that a model has seen")) if path.is_file() else None
