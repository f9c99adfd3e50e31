"""Queries as tokens, answers of a main model to one batch, and the options that they are decoded with."""

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hart.data.input_format import InputFormat
from hart.data.prompts import Cuts
from hart.errors import HartError
from hart.model.adaptation import Adaptation
from hart.model.familiarity import note_unfamiliar
from hart.model.token_scores import TokenScore, TokenScores

logger = logging.getLogger(__name__)

_DEFAULTS = {
    "max_new_tokens": InputFormat.max_target_length,
    "max_query_length": InputFormat.max_query_length,
    "max_target_length": InputFormat.max_target_length,
}
_LEAST = {"max_new_tokens": 1, "max_query_length": 2, "max_target_length": 2}
"""An input or a target has room for a token beside the end of sequence; an answer may be one token."""


@dataclass(frozen=True)
class Answer:
    """What was generated for one query.

    Attributes:
        text: without special tokens.
        ids: the tokens that were generated, the end-of-sequence token among them.
        finished: whether it ended by that token, and not at `max_new_tokens`.
        query_tokens: how many the model read, demonstrations in its own input among them.
        scores: of each generated token, where log-probabilities were asked for.
    """

    text: str
    ids: tuple[int, ...]
    finished: bool
    query_tokens: int
    scores: tuple[TokenScore, ...] | None = None

    @property
    def tokens(self) -> int:
        """How many were generated."""
        return len(self.ids)


def encode_queries(
    tokenizer: PreTrainedTokenizerBase,
    queries: Sequence[str] | Sequence[list[int]],
    adaptation: Adaptation | None,
    max_length: int,
    cuts: Cuts | None = None,
) -> list[list[int]]:
    """Tokens of each query, behind its task's demonstrations where the adaptation says so.

    A warning says which queries are longer than `max_length`, or far from what a bundled model was trained on, or
    `cuts` takes note of them.

    Raises:
        HartError: an empty query.
    """
    told = Cuts() if cuts is None else cuts
    form = replace(InputFormat() if adaptation is None else adaptation.input_format, max_query_length=max_length)
    tasks = adaptation.read_tasks() if adaptation is not None and form.in_context else []
    encoded: list[list[int]] = []
    for number, query in enumerate(queries):
        name = f"query {number + 1} of {len(queries)}"
        if not (query.strip() if isinstance(query, str) else query):
            raise HartError(f"{name} is empty; give it a text")
        if not isinstance(query, str):
            encoded.append(query)  # type: ignore[arg-type]
        elif form.in_context:
            task = tasks[number * len(tasks) // len(queries)]
            encoded.append(form.encode_in_context(tokenizer, task, query, told))
        else:
            encoded.append(form.encode_query(tokenizer, query, told, name=name))
            if adaptation is not None:
                note_unfamiliar(adaptation.model, encoded[-1], told, name)
    if cuts is None:
        told.tell(logger)
    return encoded


def read_answers(
    tokenizer: PreTrainedTokenizerBase,
    tokens: Int[Tensor, "b u"],
    mask: Int[Tensor, "b t"],
    noted: TokenScores | None = None,
) -> list[Answer]:
    """What was generated for each query, whose tokens are where `mask` is 1, with the scores that were noted."""
    texts = tokenizer.batch_decode(tokens, skip_special_tokens=True)
    scores = [None] * len(texts) if noted is None else noted.read(tokens)
    answers = []
    for text, row, read, own in zip(texts, tokens.tolist(), mask.sum(dim=1).tolist(), scores, strict=True):
        finished = tokenizer.eos_token_id in row
        count = row.index(tokenizer.eos_token_id) + 1 if finished else len(row)
        while not finished and count and row[count - 1] == tokenizer.pad_token_id:
            count -= 1  # others of the batch went on, where this one met a stop string
        answers.append(Answer(text, tuple(row[:count]), finished, read, None if own is None else tuple(own[:count])))
    return answers


def parts_of(adaptation: Adaptation | None, queries: Sequence[int], total: int) -> tuple[list[int], Adaptation | None]:
    """Some of `total` queries, ordered so that those of one entry of the adaptation lie together, and their part.

    The part has an entry for each of the queries, or, where its entries serve equally many of them, each once.
    """
    if adaptation is None or len(adaptation) == 1:
        return list(queries), adaptation
    each = total // len(adaptation)
    ordered = sorted(queries, key=lambda i: i // each)
    entries = [i // each for i in ordered]
    counts = Counter(entries)
    if len(set(counts.values())) == 1:
        entries = list(counts)
    return ordered, adaptation if entries == list(range(len(adaptation))) else adaptation.select(entries)


def decoding_options(num_beams: int, temperature: float, top_p: float, more: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of `transformers`' `generate`.

    Raises:
        HartError: a value out of range, or values that contradict each other.
    """
    if more.get("num_return_sequences", 1) != 1:
        raise HartError("num_return_sequences must be 1: generate returns one answer per query")
    if type(num_beams) is not int or num_beams < 1:
        raise HartError(f"num_beams must be a whole number of at least 1, not {num_beams!r}")
    if isinstance(temperature, bool) or not isinstance(temperature, int | float) or not 0 <= temperature < math.inf:
        raise HartError(f"temperature must be a number of at least 0, not {temperature!r}")
    if isinstance(top_p, bool) or not isinstance(top_p, int | float) or not 0 < top_p <= 1:
        raise HartError(f"top_p must be a number above 0 and at most 1, not {top_p!r}")
    sampled = temperature > 0 or bool(more.get("do_sample"))
    if top_p < 1 and not sampled:
        raise HartError("top_p acts on sampling, and temperature is 0; set a temperature, or leave top_p out")
    if num_beams > 1 and sampled:
        raise HartError("num_beams: beams are searched without a temperature; set one of the two")
    options = {"num_beams": num_beams, "do_sample": sampled, **more}
    if sampled:
        options |= {"temperature": float(temperature) or 1.0, "top_p": float(top_p), "top_k": more.get("top_k", 0)}
    return options


def noting(logprobs: int | None, options: Mapping[str, Any]) -> TokenScores | None:
    """What takes note of log-probabilities for one call of `generate` with these options, if they are asked for.

    Raises:
        HartError: not a whole number of at least 0, or beams, whose answers are put together of several.
    """
    if logprobs is None:
        return None
    if type(logprobs) is not int or logprobs < 0:
        raise HartError(f"logprobs must be a whole number of at least 0, not {logprobs!r}")
    if options["num_beams"] > 1:
        raise HartError("logprobs: are those of one token after the other, and not of beams; set num_beams to 1")
    return TokenScores(logprobs)


def limit(name: str, value: int | None, default: int | None) -> int:
    """A number of tokens: `value`, or the default of the adaptation, or that of the paper (App. 8.1.3).

    Raises:
        HartError: it is no whole number, or too small.
    """
    if value is None:
        return _DEFAULTS[name] if default is None else default
    if type(value) is not int or value < _LEAST[name]:
        raise HartError(f"{name} must be a whole number of at least {_LEAST[name]}, not {value!r}")
    return value


def query_limit(value: int | None, adaptation: Adaptation | None) -> int:
    """The limit of a query's tokens; refused where demonstrations and query are read together, which have their own.

    Raises:
        HartError: as `limit`, or an adaptation whose main model reads the demonstrations.
    """
    if value is not None and adaptation is not None and adaptation.input_format.in_context:
        raise HartError(
            "max_query_length: this model reads demonstrations and query together, at most "
            f"{adaptation.input_format.max_demonstrations_length} tokens; leave it out"
        )
    return limit("max_query_length", value, adaptation.input_format.max_query_length if adaptation else None)


def check_batch_size(batch_size: int) -> None:
    """Raise `HartError` unless it is a whole number of at least 1."""
    if type(batch_size) is not int or batch_size < 1:
        raise HartError(f"batch_size must be a whole number of at least 1, not {batch_size!r}")
