"""The work of the model's thread: from one batch of jobs to their results."""

import dataclasses
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedTokenizerBase, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from hart.data.prompts import Cuts
from hart.data.tasks import Task
from hart.model.adaptation import Adaptation
from hart.model.classifying import classify
from hart.model.hart_model import HartModel
from hart.model.scoring import score_choices
from hart.serving.batching import Job
from hart.serving.stopping import HoldBack, StopRows, cut_at_stop


class Options(NamedTuple):
    """Options of generation; rows with equal options share a batch.

    Attributes:
        stop: stop sequences (`hart.serving.stopping`).
        seed: seed of the sampling of a row with its own batch; None: no seed.
        logprobs: number of likeliest tokens recorded with log-probabilities; None: no log-probabilities.
    """

    max_new_tokens: int
    num_beams: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    logprobs: int | None = None

    def of_sample(self, number: int) -> "Options":
        """The options of sample `number` of several: its seed is the given seed plus the number."""
        if self.seed is None:
            return self
        return self._replace(seed=(self.seed + number + 2**63) % 2**64 - 2**63)


@dataclass
class Query:
    """One row to answer, or to score if it has `choices`; a conversation is given as tokens."""

    text: str | list[int]
    adaptation: Adaptation | None
    choices: list[str] = dataclasses.field(default_factory=list)
    emit: Callable[[str], None] | None = None


class Runner:
    """Answers batches with a model, in the calling thread."""

    def __init__(self, model: HartModel) -> None:
        self._model = model

    def run(self, batch: Sequence[Job]) -> list[Any]:
        """The results of the jobs of one batch, which have the same kind and key."""
        kind, key = batch[0].kind, batch[0].key
        if kind == "adapt":
            return self._adapt([job.payload for job in batch])
        queries: list[Query] = [job.payload for job in batch]
        # By the key, either all rows are adapted or none.
        first = queries[0].adaptation
        adaptation = first
        if first is not None and any(query.adaptation is not first for query in queries):
            adaptation = Adaptation.stack([query.adaptation for query in queries if query.adaptation is not None])
        main, choices = self._model.main, [query.choices for query in queries]
        read: Any = [query.text for query in queries]
        size: dict[str, Any] = {"batch_size": len(batch), "cuts": Cuts()}
        if kind == "classify":
            how: dict[str, Any] = {"normalisation": key[1], "calibrate": key[2], **size}  # type: ignore[index]
            # Rows that share an adaptation are calibrated once.
            how["alike"] = [id(query.adaptation) for query in queries]
            return classify(main, read, choices, adaptation, **how)
        if kind == "score":
            return score_choices(main, read, choices, adaptation, normalisation=key[1], **size)  # type: ignore[index]
        options: Options = key[1]  # type: ignore[index]
        more: dict[str, Any] = options._asdict()
        stop, seed = more.pop("stop"), more.pop("seed")
        more |= {"stopping_criteria": [_Abandoned(batch)], "batch_size": len(batch)}
        # Beam search does not end at a stop sequence; the text of its answer is cut.
        if stop and options.num_beams == 1:
            more["stopping_criteria"].append(StopRows(main.tokenizer, stop))
        if queries[0].emit is not None:
            more["streamer"] = PieceStreamer(main.tokenizer, HoldBack(stop, queries[0].emit), main.ends)
        with _seeded(seed, main.device):
            answers = main.answers(read, adaptation, cuts=Cuts(), **more)
        return [cut_at_stop(answer, main.tokenizer, stop) for answer in answers]

    def _adapt(self, tasks: list[Task]) -> list[tuple[Adaptation, float]]:
        start = time.perf_counter()
        # Without a warning: the reply has `demonstrations_read`.
        adaptation = self._model.adapt(tasks, cuts=Cuts())
        seconds = time.perf_counter() - start
        return [(adaptation[entry], seconds) for entry in range(len(tasks))]


class _Abandoned(StoppingCriteria):
    """Stopping criterion that ends an abandoned generation."""

    def __init__(self, batch: Sequence[Job]) -> None:
        self._batch = batch

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        gone = all(job.abandoned for job in self._batch)
        return torch.full((input_ids.shape[0],), gone, device=input_ids.device, dtype=torch.bool)


class PieceStreamer(BaseStreamer):
    """Passes on the text during generation, word by word; the concatenated pieces are the text of all tokens.

    transformers' own streamer restarts after a line break and then loses the space before the next word. Here the whole
    text is decoded each time, and white space is held back, because following tokens may remove it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, emit: HoldBack, ends: Collection[int] = ()) -> None:
        self._tokenizer, self._emit, self._ends = tokenizer, emit, frozenset(ends)
        self._ids: list[int] | None = None
        self._sent = 0

    def put(self, value: torch.Tensor) -> None:
        if self._ids is None:  # the prompt
            self._ids = []
            return
        self._ids += value.flatten().tolist()
        text = self._text()
        last = text[-1:]
        # Scripts without spaces are passed on character by character, except incomplete characters.
        spaceless = "\u2e80" <= last < "\ufffd"
        cut = len(text) if spaceless else max(text.rfind(" "), text.rfind("\n"))
        if cut > self._sent:
            self._emit(text[self._sent : cut])
            self._sent = cut

    def end(self) -> None:
        self._emit(self._text()[self._sent :], True)

    def _text(self) -> str:
        ids = self._ids or []
        # The end-of-answer token is not part of the text, even if it is not a special token.
        said = ids[:-1] if ids and ids[-1] in self._ends else ids
        return str(self._tokenizer.decode(said, skip_special_tokens=True))


@contextmanager
def _seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """A context with random numbers of a seed; afterwards the random state is restored."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
