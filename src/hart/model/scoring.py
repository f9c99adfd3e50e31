"""Log-probabilities of given answers, for rank classification (§4.2, "multiple-choice scoring").

Each query is encoded once for all its choices, and one decoder pass scores all choices of a batch of queries, of any
number and length. A choice's score is the sum of the log-probabilities of its tokens, including the end of sequence,
without length normalisation (T0's protocol), or their mean. A plain decoder-only base continues texts, so it scores a
choice as a continuation: after a space, and without an end of sequence.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hart.data.prompts import Cuts
from hart.errors import HartError
from hart.model.adaptation import Adaptation
from hart.model.answering import check_batch_size, encode_queries, limit, listed, parts_of, query_limit
from hart.model.main_model import MainModel
from hart.model.modes import evaluating

logger = logging.getLogger(__name__)

Normalisation = Literal["sum", "mean"]


@torch.no_grad()
def score_choices(
    main: MainModel,
    queries: Sequence[str] | Sequence[list[int]],
    choices: Sequence[Sequence[str]],
    adaptation: Adaptation | None = None,
    *,
    normalisation: Normalisation = "sum",
    batch_size: int = 16,
    max_query_length: int | None = None,
    max_target_length: int | None = None,
    cuts: Cuts | None = None,
) -> list[list[float]]:
    """The score of every choice of every query, in nats. Thread-safe.

    Equal choices have equal scores. The caller decides ties between best choices.

    Args:
        main: the main model.
        queries: texts, of which the end is cut if they are longer than `max_query_length` tokens; or lists of tokens,
            which are used unchanged.
        choices: the choices of each query, at least one; their number may differ.
        adaptation: one entry for all queries, or n entries, each for an equal number of neighbouring queries; None: the
            bare base.
        normalisation: `sum` or `mean` of the log-probabilities of a choice's tokens.
        batch_size: number of queries encoded together.
        max_query_length, max_target_length: in tokens; None: the limits of `main.format_of(adaptation)`. A warning
            names longer queries and choices.
        cuts: records cut queries and choices instead of the warning.

    Raises:
        HartError: a query is empty or has no choices, its choices are a single text, the adaptation has another base or
            number of entries, or an option is out of range.
    """
    queries, choices = listed(queries), listed(choices, "choices")
    if normalisation not in get_args(Normalisation):
        raise HartError(f"normalisation must be one of {', '.join(get_args(Normalisation))}, not {normalisation!r}")
    if len(choices) != len(queries):
        raise HartError(
            f"there are {len(queries)} queries, and choices for {len(choices)}; give choices for each query"
        )
    for number, given in enumerate(choices, start=1):
        if isinstance(given, str):
            raise HartError(f"the choices of query {number} of {len(queries)} are one text; give a list of texts")
        choices[number - 1] = own = listed(given, f"the choices of query {number} of {len(queries)}")
        if not own:
            raise HartError(f"query {number} of {len(queries)} has no choices to score")
        if wrong := [choice for choice in own if not isinstance(choice, str)]:
            raise HartError(f"query {number} of {len(queries)}: the choice {wrong[0]!r} must be a text")
    check_batch_size(batch_size)
    adaptation = main.ready(adaptation, len(queries))
    form = main.format_of(adaptation)
    form = replace(
        form,
        max_query_length=query_limit(max_query_length, form),
        max_target_length=limit("max_target_length", max_target_length, form.max_target_length),
    )
    told = Cuts() if cuts is None else cuts
    if adaptation is not None and len(adaptation) == 1:
        adaptation = main.keep_memory(adaptation)
    encoded = encode_queries(main.tokenizer, queries, adaptation, form, told)
    continues = adaptation is None and not (main.shape.has_encoder or form.input_eos or form.chat_template)
    encode = form.encode_continuation if continues else form.encode_target
    targets = [[encode(main.tokenizer, text, told, name=f"choice {text[:40]!r}") for text in own] for own in choices]
    if cuts is None:
        told.tell(logger)
    scores: list[list[float]] = [[] for _ in queries]
    longest_first = sorted(range(len(queries)), key=lambda i: -len(encoded[i]))
    with evaluating(main):
        for start in range(0, len(queries), batch_size):
            chosen, part = parts_of(adaptation, longest_first[start : start + batch_size], len(queries))
            found = _score_batch(main, [encoded[i] for i in chosen], [targets[i] for i in chosen], part, normalisation)
            for i, values in zip(chosen, found, strict=True):
                # Choices with the same tokens after cutting get the same score, despite rounding in different rows.
                scores[i] = [values[targets[i].index(target)] for target in targets[i]]
    return scores


def _score_batch(
    main: MainModel,
    queries: list[list[int]],
    targets: list[list[list[int]]],
    part: Adaptation | None,
    normalisation: Normalisation,
) -> list[list[float]]:
    ids, mask = main.pad(queries)
    if part is not None:
        part = main.keep_memory(part)
    # Index of the query of each choice.
    owner = torch.tensor([row for row, own in enumerate(targets) for _ in own], device=ids.device)
    labels, label_mask = main.pad([target for own in targets for target in own])
    of_choices = part
    if part is not None and len(part) > 1 and len({len(own) for own in targets}) > 1:
        of_choices = part.select((owner * len(part) // len(queries)).tolist())
    logits = main.answer_logits(ids, mask, owner, labels, label_mask, part, of_choices)
    sums = _log_probabilities(logits, labels, label_mask)
    if normalisation == "mean":
        sums = sums / label_mask.sum(dim=1)
    return [part.tolist() for part in sums.split([len(own) for own in targets])]


def _log_probabilities(
    logits: Float[Tensor, "b u v"], labels: Int[Tensor, "b u"], mask: Int[Tensor, "b u"]
) -> Float[Tensor, " b"]:
    """The log-probability of each answer, summed over its tokens, in float32."""
    chosen = logits.float().log_softmax(dim=-1).gather(2, labels.unsqueeze(2)).squeeze(2)
    return (chosen * mask).sum(dim=1)
