"""Whether a query is of the words that a bundled model was trained on; a model of a few hundred words cannot tell.

Beside the weights of a bundled model lies the list of the tokens that its training queries have (made by
`recipes/mini/seen_tokens.py`). A query of which more than `MOST` are others is far from all of them: of ordinary
English 99.6 % of the queries are, of the unseen tasks' none (docs/results.md).
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from hart.data.prompts import Cuts, Tokenizer
from hart.model.bundled import MODELS, resolve_model
from hart.runtime.files import read_json

SEEN_FILE = "seen_tokens.json"
MOST = 0.3
"""Share of tokens that no training query has, above which a query is told of."""


def unseen_share(model: str, tokens: Sequence[int]) -> float | None:
    """Share of the tokens of a query that the training queries of a model lack; None where they are not known.

    Args:
        model: name of the model that made the adaptation.
        tokens: as the main model reads the query.
    """
    seen = _seen(model)
    return None if seen is None or not tokens else sum(token not in seen for token in tokens) / len(tokens)


def is_far(model: str, tokens: Sequence[int]) -> bool:
    """Whether a query is known to be far from what a model was trained on; arguments as of `unseen_share`."""
    share = unseen_share(model, tokens)
    return share is not None and share > MOST


def note_unfamiliar(model: str, tokens: Sequence[int], cuts: Cuts, name: str) -> None:
    """Take note of a query that is far from what a model was trained on."""
    if is_far(model, tokens):
        told = f"{unseen_share(model, tokens):.0%} of its tokens never occur in the training of {model}"
        cuts.note(
            f"is far from what {model} was trained on, its answer says little", name, f"{told}; its answer says little"
        )


def note_unfamiliar_task(model: str, shown: Sequence[str], tokenizer: Tokenizer, cuts: Cuts, name: str) -> None:
    """The same of a task, by the inputs of the demonstrations that are shown."""
    if _seen(model) is None:
        return  # what nobody asks for is not tokenised
    tokens = tokenizer(" ".join(shown), add_special_tokens=False, verbose=False)["input_ids"]
    if is_far(model, tokens):
        told = f"{unseen_share(model, tokens):.0%} of the tokens of its demonstrations never occur in the training of"
        cuts.note(
            f"is far from what {model} was trained on, its adaptation says little",
            name,
            f"{told} {model}; its adaptation says little",
        )


@cache
def _seen(model: str) -> frozenset[int] | None:
    if model not in MODELS:
        return None
    path = Path(resolve_model(model)) / SEEN_FILE
    return frozenset(read_json(path, "the tokens that a model has seen")) if path.is_file() else None
