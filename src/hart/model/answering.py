"""Answering a batch of queries: queries to tokens, checks of the decoding options, generated tokens to answers."""

import logging
import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList, StopStringCriteria

from hart.data.input_format import InputFormat
from hart.data.prompts import Cuts
from hart.errors import HartError
from hart.model.adaptation import Adaptation
from hart.model.familiarity import note_unfamiliar
from hart.model.token_scores import TokenScore, TokenScores

logger = logging.getLogger(__name__)

_LEAST = {"max_new_tokens": 1, "max_query_length": 2, "max_target_length": 2}
"""Smallest limits: a query or target has a token and the end of sequence; an answer may be one token."""

_OF_SAMPLING = ("top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
_OF_BEAMS = ("length_penalty", "early_stopping")
_NEUTRAL: dict[str, float] = {
    "top_k": 0, "min_p": 0, "typical_p": 1, "epsilon_cutoff": 0, "eta_cutoff": 0, "repetition_penalty": 1,
    "no_repeat_ngram_size": 0, "min_length": 0, "min_new_tokens": 0, "guidance_scale": 1, "length_penalty": 1,
    "early_stopping": False,
}  # fmt: skip
"""Option → the value with which it has no effect."""
_RULES = (
    "repetition_penalty", "no_repeat_ngram_size", "bad_words_ids", "min_length", "min_new_tokens", "sequence_bias",
    "forced_bos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens", "guidance_scale",
    "exponential_decay_length_penalty", "prefix_allowed_tokens_fn", "logits_processor",
)  # fmt: skip
"""Options that change the model's own distribution of the next token."""
_SEVERAL_AT_ONCE = ("assistant_model", "prompt_lookup_num_tokens")
"""Options with which one step of `generate` produces several tokens."""
_OTHER_OUTPUT = (
    "return_dict_in_generate", "output_scores", "output_logits", "output_attentions", "output_hidden_states",
)  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """The generated answer to one query.

    Attributes:
        text: the answer without special tokens.
        ids: the generated tokens, including the one that ends the answer.
        finished: whether the answer ends with an end-of-answer token; False if `max_new_tokens` or a stopping criterion
            cut it.
        query_tokens: number of tokens in the main model's input, including demonstrations in it.
        scores: log-probabilities of each generated token, if requested.
    """

    text: str
    ids: tuple[int, ...]
    finished: bool
    query_tokens: int
    scores: tuple[TokenScore, ...] | None = None

    @property
    def tokens(self) -> int:
        """Number of generated tokens."""
        return len(self.ids)


def encode_queries(
    tokenizer: PreTrainedTokenizerBase,
    queries: Sequence[str] | Sequence[list[int]],
    adaptation: Adaptation | None,
    form: InputFormat,
    cuts: Cuts | None = None,
) -> list[list[int]]:
    """The tokens of each query in an input format, after its task's demonstrations if the main model reads them.

    Queries that are longer than the format's limit, or far from a bundled model's training data, are recorded in
    `cuts`; without `cuts` a warning names them.

    Raises:
        HartError: a query is empty, or neither a text nor a list of tokens.
    """
    told = Cuts() if cuts is None else cuts
    tasks = adaptation.read_tasks() if adaptation is not None and form.in_context else []
    encoded: list[list[int]] = []
    for number, query in enumerate(queries):
        name = f"query {number + 1} of {len(queries)}"
        if not isinstance(query, str | list):
            raise HartError(f"{name} must be a text or a list of token ids, not {type(query).__name__}")
        wrong = (
            [] if isinstance(query, str) else [each for each in query if isinstance(each, str | float | bool | list)]
        )
        if wrong:
            raise HartError(f"{name} must be a text or a list of token ids, not a list with {wrong[0]!r}")
        if not (query.strip() if isinstance(query, str) else query):
            raise HartError(f"{name} is empty; give it a text")
        if not isinstance(query, str):
            encoded.append(query)
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


class Generating:
    """One call of `generate`: its options with recorders of log-probabilities and row ends, and tokens to answers.

    Args:
        tokenizer: the main model's tokenizer.
        ends: tokens that end an answer.
        options: options from `decoding_options`.
        logprobs: as in `MainModel.answers`, already checked (`check_logprobs`).

    Attributes:
        options: the options of the call, including the recorders.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        ends: Collection[int],
        options: Mapping[str, Any],
        logprobs: int | None = None,
    ) -> None:
        self._tokenizer, self._ends = tokenizer, frozenset(ends)
        self.options = dict(options)
        self._scores: TokenScores | None = None
        self._stops: RowEnds | None = None
        if logprobs is not None:
            self._scores = TokenScores(logprobs)
            self.options["logits_processor"] = [self._scores]
        criteria = [*(self.options.get("stopping_criteria") or ())]
        if strings := self.options.pop("stop_strings", None):
            self.options.pop("tokenizer", None)
            criteria.append(StopStringCriteria(tokenizer, strings))
        self._strings: Sequence[str] = ()
        if criteria and self.options.get("num_beams", 1) == 1:
            self._stops = RowEnds(criteria)
            criteria = [self._stops]
        elif strings:  # beams change rows, so the end of an answer is searched in its text
            self._strings = [strings] if isinstance(strings, str) else list(strings)
        if criteria:
            self.options["stopping_criteria"] = criteria

    def answers(self, tokens: Int[Tensor, "b u"], mask: Int[Tensor, "b t"]) -> list[Answer]:
        """The answer to each query, from the generated tokens; `mask` is that of the queries' tokens."""
        rows, width = tokens.tolist(), tokens.shape[1]
        stops = [self._stop(row) for row in rows] if self._stops is None else self._stops.lengths(width)
        scores = [None] * len(rows) if self._scores is None else self._scores.read(tokens)
        answers = []
        for row, stop, read, own in zip(rows, stops, mask.sum(dim=1).tolist(), scores, strict=True):
            # After its end a row is padded while other rows continue, and the padding token may be an end token.
            count = next((at for at, token in enumerate(row[:stop], start=1) if token in self._ends), stop)
            finished = count > 0 and row[count - 1] in self._ends
            while self._stops is None and not finished and count and row[count - 1] == self._tokenizer.pad_token_id:
                count -= 1
            text = self._tokenizer.decode(row[: count - 1] if finished else row[:count], skip_special_tokens=True)
            said = None if own is None else tuple(own[:count])
            answers.append(Answer(str(text), tuple(row[:count]), finished, read, said))
        return answers

    def _stop(self, row: list[int]) -> int:
        """Number of tokens up to the first stop string, in an answer found by beam search."""

        def stopped(count: int) -> bool:
            text = str(self._tokenizer.decode(row[:count], skip_special_tokens=True))
            return any(string in text for string in self._strings)

        return bisect_left(range(len(row)), True, key=stopped) if self._strings else len(row)


class RowEnds(StoppingCriteria):
    """Stopping criteria that record where they end each row, as `generate` continues until all rows have ended."""

    def __init__(self, criteria: Sequence[StoppingCriteria]) -> None:
        self._criteria = StoppingCriteriaList(criteria)
        self._ended: Tensor | None = None
        self._length = 0

    def __call__(self, input_ids: Int[Tensor, "b t"], scores: Any, **kwargs: Any) -> Bool[Tensor, " b"]:
        now: Tensor = self._criteria(input_ids, scores, **kwargs)
        self._length = input_ids.shape[1]
        if self._ended is None:
            self._ended = torch.zeros(input_ids.shape[0], dtype=torch.int64, device=input_ids.device)
        self._ended = torch.where(now & (self._ended == 0), self._length, self._ended)
        return now

    def lengths(self, width: int) -> list[int]:
        """For each row, how many of the `width` generated tokens precede its end."""
        assert self._ended is not None
        return [width - (self._length - end) if end else width for end in self._ended.tolist()]


@contextmanager
def naming_unknown_options() -> Iterator[None]:
    """A context in which unknown options of `generate` raise a `HartError` that names them in one line."""
    try:
        yield
    except ValueError as error:
        if "`model_kwargs` are not used" not in str(error):
            raise
        names = str(error).split("[", 1)[-1].split("]", 1)[0]
        raise HartError(f"unknown options of generate: {names}; check their spelling") from None


def listed(given: Any, name: str = "queries") -> list[Any]:
    """Queries or choices as a list, from any iterable of them, such as a column of a table.

    Raises:
        HartError: `given` is one text, or not iterable; the message calls it `name`.
    """
    if isinstance(given, str):
        raise HartError(f"{name} must be a list of texts, not one text")
    if isinstance(given, Mapping | bytes) or not isinstance(given, Iterable):
        raise HartError(f"{name} must be a list of texts, not {type(given).__name__}")
    return list(given)


def parts_of(adaptation: Adaptation | None, queries: Sequence[int], total: int) -> tuple[list[int], Adaptation | None]:
    """Some of `total` queries, sorted by adaptation entry, and the part of the adaptation for them.

    The part has one entry per query, or each entry once if all entries serve equally many of the queries.
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
    """Keyword arguments for `transformers`' `generate`.

    Raises:
        HartError: a value is out of range, two values contradict each other, or an option is unsupported.
    """
    if more.get("num_return_sequences", 1) != 1:
        raise HartError("num_return_sequences must be 1: generate returns one answer per query")
    if other := next((name for name in _OTHER_OUTPUT if more.get(name)), None):
        raise HartError(f"{other}: answers are texts and tokens; for other outputs call model.main.model.generate")
    if type(num_beams) is not int or num_beams < 1:
        raise HartError(f"num_beams must be a whole number of at least 1, not {num_beams!r}")
    if isinstance(temperature, bool) or not isinstance(temperature, int | float) or not 0 <= temperature < math.inf:
        raise HartError(f"temperature must be a number of at least 0, not {temperature!r}")
    if isinstance(top_p, bool) or not isinstance(top_p, int | float) or not 0 < top_p <= 1:
        raise HartError(f"top_p must be a number above 0 and at most 1, not {top_p!r}")
    if temperature > 0 and more.get("do_sample") is False:
        raise HartError(f"do_sample is False and temperature is {temperature}; leave one of the two out")
    sampled = temperature > 0 or bool(more.get("do_sample"))
    if "generation_config" in more:
        raise HartError("generation_config: give its fields as options, such as temperature=0.7")
    idle = ["top_p"] * (top_p < 1) + [name for name in _OF_SAMPLING if _acts(name, more.get(name))]
    if idle and not sampled:
        raise HartError(f"{idle[0]} has no effect at temperature 0; set a temperature, or leave {idle[0]} out")
    idle = [name for name in _OF_BEAMS if _acts(name, more.get(name))]
    if idle and num_beams == 1:
        raise HartError(f"{idle[0]} has no effect with one beam; set num_beams above 1, or leave {idle[0]} out")
    if more.get("max_length") is not None:
        raise HartError("max_length has no effect beside max_new_tokens, which is always set; set max_new_tokens")
    if num_beams > 1 and sampled:
        raise HartError("num_beams: beam search uses no temperature; set only one of the two")
    options = {"num_beams": num_beams, "do_sample": sampled, **more}
    if sampled:
        options |= {"temperature": float(temperature) or 1.0, "top_p": float(top_p), "top_k": more.get("top_k", 0)}
    return options


def check_logprobs(logprobs: Any, options: Mapping[str, Any]) -> None:
    """Raise `HartError` unless the model's own log-probabilities can be recorded with these options.

    `logprobs` must be a whole number of at least 0. Beam search, rules that change the model's probabilities, and steps
    that produce several tokens at once are refused.
    """
    if type(logprobs) is not int or logprobs < 0:
        raise HartError(f"logprobs must be a whole number of at least 0, not {logprobs!r}")
    if options["num_beams"] > 1:
        raise HartError("logprobs: beam search has none; set num_beams to 1")
    if wrong := next((name for name in (*_RULES, *_SEVERAL_AT_ONCE) if _acts(name, options.get(name))), None):
        raise HartError(f"logprobs: are the model's own, one token at a time, which {wrong} changes; leave {wrong} out")


def _acts(name: str, value: Any) -> bool:
    """Whether an option of `generate` has an effect with this value."""
    return value is not None and not (isinstance(value, int | float) and value == _NEUTRAL.get(name))


def limit(name: str, value: int | None, default: int) -> int:
    """A checked limit in tokens: `value`, or `default` if it is None.

    Raises:
        HartError: `value` is not a whole number, or too small.
    """
    if value is None:
        return default
    if type(value) is not int or value < _LEAST[name]:
        raise HartError(f"{name} must be a whole number of at least {_LEAST[name]}, not {value!r}")
    return value


def query_limit(value: int | None, form: InputFormat) -> int:
    """The checked limit of a query's tokens.

    Raises:
        HartError: as `limit`; or `value` is given and the main model reads demonstrations and query together, for which
            the format has a common limit.
    """
    if value is not None and form.in_context:
        raise HartError(
            "max_query_length: this model reads demonstrations and query together, at most "
            f"{form.max_demonstrations_length} tokens; leave it out"
        )
    return limit("max_query_length", value, form.max_query_length)


def check_batch_size(batch_size: int) -> None:
    """Raise `HartError` unless it is a whole number of at least 1."""
    if type(batch_size) is not int or batch_size < 1:
        raise HartError(f"batch_size must be a whole number of at least 1, not {batch_size!r}")
