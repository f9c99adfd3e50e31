"""Rank classification (§4.2) for applications: the most probable of the given choices, and all probabilities.

A choice's probability is the softmax, over the choices of its query, of the scores of `hart.model.scoring`. With sums
of log-probabilities it is the model's probability of the choice's whole text, renormalised over the choices. With
`calibrate` the scores of the same choices for a query without content are subtracted first (contextual calibration,
Zhao et al. 2021, with W = diag(p_cf)⁻¹ and b = 0), which removes preferences that do not depend on the query.
"""

import unicodedata
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from hart.data.input_format import InputFormat
from hart.data.prompts import Cuts
from hart.errors import HartError
from hart.model.adaptation import Adaptation
from hart.model.answering import limit, listed
from hart.model.classification import Classification
from hart.model.main_model import MainModel
from hart.model.scoring import Normalisation, score_choices

CONTENT_FREE = "N/A"
"""The query without content: the first content-free input of Zhao et al. (2021, §5)."""


def check_classes(choices: Sequence[str], where: str) -> list[str]:
    """The choices, stripped of surrounding white space.

    Raises:
        HartError: there are fewer than two, one is empty or not a text, or two are equal up to case, white space and
            Unicode compatibility (NFKC), which tokenizers normalise.
    """
    if isinstance(choices, str):
        raise HartError(f"{where}: the choices are one text; give a list of texts")
    seen: dict[str, str] = {}
    for choice in choices:
        if not isinstance(choice, str) or not choice.strip():
            raise HartError(f"{where}: {choice!r} cannot be a choice; give a text that is not empty")
        normal = " ".join(unicodedata.normalize("NFKC", choice).casefold().split())
        if normal in seen:
            raise HartError(f"{where}: the choices {seen[normal]!r} and {choice!r} read the same; leave one out")
        seen[normal] = choice
    if len(seen) < 2:
        raise HartError(f"{where}: {len(seen)} choices; at least two are needed to choose from")
    return [choice.strip() for choice in choices]


def check_tokens(
    tokenizer: PreTrainedTokenizerBase, choices: Sequence[str], max_target_length: int, where: str
) -> None:
    """Raise `HartError` if two choices have the same tokens, as two words in scripts that the vocabulary lacks."""
    form = InputFormat(max_target_length=max_target_length)
    tokens: dict[tuple[int, ...], str] = {}
    for text in choices:
        twin = tokens.setdefault(tuple(form.encode_target(tokenizer, text)), text)
        if twin != text:
            raise HartError(
                f"{where}: the choices {twin!r} and {text!r} have the same tokens in this model, which "
                f"reads the first {max_target_length}; choose other words"
            )


def classify(
    main: MainModel,
    queries: Sequence[str] | Sequence[list[int]],
    choices: Sequence[str] | Sequence[Sequence[str]],
    adaptation: Adaptation | None = None,
    *,
    calibrate: bool = False,
    content_free: str | list[int] = CONTENT_FREE,
    alike: Sequence[Hashable] | None = None,
    normalisation: Normalisation = "sum",
    max_target_length: int | None = None,
    **options: Any,
) -> list[Classification]:
    """The most probable choice for each query and the probabilities of all choices. Thread-safe.

    Args:
        main: the main model.
        queries: texts, or lists of tokens, as for `score_choices`.
        choices: one list for all queries, or one list per query.
        adaptation: as for `score_choices`.
        calibrate: subtract the scores for `content_free`; this costs one more query per distinct pair of adaptation
            entry and choices.
        content_free: a query without content, as a text or its tokens.
        alike: a key of each query's adaptation entry; entries with equal keys are calibrated once.
        normalisation: `sum`, the log-probability of the whole text, which is smaller for longer texts; or `mean`, the
            average per token, which does not prefer short texts but is not the log-probability of a text.
        max_target_length, options: as for `score_choices`.

    Raises:
        HartError: as in `score_choices` and `check_classes`, or two choices have the same tokens.
    """
    if isinstance(queries, str) or isinstance(choices, str):
        raise HartError("queries and choices must be lists of texts; one of them is a text")
    queries, choices = listed(queries), listed(choices, "choices")
    each = choices if choices and not isinstance(choices[0], str) else [choices] * len(queries)
    if len(each) != len(queries):
        raise HartError(f"there are {len(queries)} queries, and choices for {len(each)}; give choices for each query")
    own = _checked(main, each, adaptation, max_target_length)
    scored = {"normalisation": normalisation, "max_target_length": max_target_length, **options}
    scores = score_choices(main, queries, own, adaptation, **scored)
    if calibrate and queries:
        entries = 1 if adaptation is None else len(adaptation)
        each_entry = [i * entries // len(queries) for i in range(len(queries))]
        keys = list(zip(each_entry if alike is None else alike, map(tuple, own), strict=True))
        distinct: dict[Any, int] = {}
        for key, entry in zip(keys, each_entry, strict=True):
            distinct.setdefault(key, entry)
        part = adaptation
        if adaptation is not None and entries > 1:
            part = adaptation.select(list(distinct.values()))
        asked: Any = [content_free] * len(distinct)
        # Cut choices were reported above, and the content-free query needs no report.
        quietly = {**scored, "cuts": Cuts()}
        free = score_choices(main, asked, [texts for _, texts in distinct], part, **quietly)
        prior = dict(zip(distinct, free, strict=True))
        scores = [[a - b for a, b in zip(row, prior[key], strict=True)] for row, key in zip(scores, keys, strict=True)]
    found = []
    for texts, row in zip(own, scores, strict=True):
        probabilities = torch.tensor(row, dtype=torch.float64).softmax(0).tolist()
        best = max(range(len(row)), key=row.__getitem__)
        found.append(Classification(texts[best], dict(zip(texts, probabilities, strict=True))))
    return found


def _checked(
    main: MainModel, choices: Sequence[Sequence[str]], adaptation: Adaptation | None, max_target_length: int | None
) -> list[list[str]]:
    length = limit("max_target_length", max_target_length, main.format_of(adaptation).max_target_length)
    known: dict[tuple[str, ...], list[str]] = {}
    checked = []
    for number, texts in enumerate(choices, start=1):
        where = f"query {number} of {len(choices)}"
        if isinstance(texts, str):
            raise HartError(f"{where}: the choices are one text; give a list of texts")
        own = listed(texts, f"{where}: the choices")
        key = tuple(map(repr, own))
        if key not in known:
            known[key] = check_classes(own, where)
            check_tokens(main.tokenizer, known[key], length, where)
        checked.append(known[key])
    return checked
