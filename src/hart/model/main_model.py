"""The main model M(x; θ, φ): a stock transformers model that accepts generated parameters (Eq. 5).

All families share this module: loading, identity, freezing, binding parameters for a thread, answers. Each family has
its own training pass, generation, and scores of given answers (`encoder_decoder`, `decoder_only`). Weights, tokenizer
and generation are those of the checkpoint; model code is neither copied nor subclassed.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Self

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import ModelOutput

from hart.data.collate import pad
from hart.data.input_format import InputFormat
from hart.data.prompts import Cuts
from hart.errors import HartError
from hart.model.adaptation import Adaptation
from hart.model.answering import (
    Answer,
    Generating,
    check_batch_size,
    check_logprobs,
    decoding_options,
    encode_queries,
    limit,
    listed,
    naming_unknown_options,
    parts_of,
    query_limit,
)
from hart.model.base_checkpoint import load_base
from hart.model.modes import evaluating
from hart.peft.architectures import architecture
from hart.peft.base import Blocks, MainShape, PeftKind, check_blocks
from hart.peft.injection import Binding, Site, attach, binding, checkpoint_contexts
from hart.peft.modules import dropouts
from hart.runtime.fingerprints import difference
from hart.runtime.identity import fingerprint, trace

logger = logging.getLogger(__name__)


class MainModel(nn.Module, ABC):
    """A stock model that accepts generated parameters in any forward pass; `from_pretrained` chooses the family.

    Several threads and asyncio tasks may use one model at the same time, each with its own adaptation, because
    parameters are bound per thread. Training and moving it to another device need a single thread.

    Attributes:
        model: the stock model, switched to attention functions that accept prefixes.
        tokenizer: its tokenizer.
        shape: the sizes that determine the shapes of generated parameters.
        name, revision: where it was loaded from; the revision is the commit on the hub.
        is_part: whether the model is the text part of a checkpoint that also reads images.
        frozen: whether `freeze` was called.
        plain_format: input format of queries without an adaptation (the bare base).
        stock_generation_config: generation configuration of the checkpoint. Only its end-of-answer tokens are used:
            `generate` decodes greedily unless it is given options.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str,
        revision: str | None = None,
        is_part: bool = False,
        attention: str = "sdpa",
    ) -> None:
        super().__init__()
        self.model: Any = model
        self.tokenizer = tokenizer
        self.shape = MainShape.of(model)
        self.name = name
        self.revision = revision
        self.is_part = is_part
        self.frozen = False
        self.plain_format = self._plain_format()
        self._identified: tuple[Any, str] | None = None
        self._kept: str | None = None
        self.stock_generation_config = model.generation_config
        model.generation_config = self._generation_config()
        self._dropout = {(name, what): getattr(module, what) for name, module, what in dropouts(model)}
        attach(model, attention)
        self.train(model.training)

    @staticmethod
    def from_pretrained(
        name_or_path: str,
        *,
        revision: str | None = None,
        dtype: torch.dtype | str | None = None,
        attention: str = "sdpa",
        device: torch.device | str | None = None,
    ) -> "MainModel":
        """Load a checkpoint of any family: a folder, a name on the hub, or a bundled base (`mini-base`).

        Args:
            revision: branch, tag or commit on the hub; None: the default branch. The attribute `revision` is the
                resolved commit.
            dtype: type of the weights in memory: bfloat16 or float32, as T5 overflows in float16; None: as stored.
            attention: `sdpa` or `eager`.

        Raises:
            HartError: there is no such checkpoint, its architecture has no table of sites, its files are incomplete or
                damaged, or the tokenizer is not the model's.
        """
        # Imported here, because the families import this module.
        from hart.model.decoder_only import DecoderOnly
        from hart.model.encoder_decoder import EncoderDecoder

        base = load_base(name_or_path, revision=revision, dtype=dtype)
        family = EncoderDecoder if architecture(base.model.config).has_encoder else DecoderOnly
        names: dict[str, Any] = {"name": name_or_path, "revision": base.commit, "is_part": base.is_part}
        return family(base.model, base.tokenizer, **names, attention=attention).to(device)

    @abstractmethod
    def forward(
        self,
        query_ids: Int[Tensor, "b t"],
        query_mask: Shaped[Tensor, "b t"],
        labels: Int[Tensor, "b u"],
        blocks: Blocks | None = None,
        peft: Sequence[PeftKind] = (),
        memory: Float[Tensor, "#b s d"] | None = None,
        memory_mask: Shaped[Tensor, "#b s"] | None = None,
    ) -> ModelOutput:
        """Logits `[b, u, vocabulary]` under teacher forcing (Eq. 5), without a loss.

        Args:
            query_ids, query_mask: padded on the right, where the mask is 0.
            labels: target tokens, -100 on padding.
            blocks: generated parameters for each query, or one set for all.
            peft: the kinds to which `blocks` belong.
            memory, memory_mask: an encoding in the main model's width. A T5's decoder attends to it before the query's
                encoding (fusion); in a decoder-only model it stands in front of the tokens.

        Raises:
            HartError: `blocks` do not fit `peft`, this model or the batch, or `memory` has no mask.
        """

    @abstractmethod
    def answer_logits(
        self,
        query_ids: Int[Tensor, "b t"],
        query_mask: Int[Tensor, "b t"],
        owner: Int[Tensor, " c"],
        labels: Int[Tensor, "c u"],
        label_mask: Int[Tensor, "c u"],
        part: Adaptation | None,
        part_of_answers: Adaptation | None,
    ) -> Float[Tensor, "c u vocabulary"]:
        """Logits of c given answers to b queries under teacher forcing; each query is encoded once.

        Args:
            query_ids, query_mask: padded on the right.
            owner: index of each answer's query; the answers to one query are adjacent.
            labels, label_mask: tokens of the answers, padded on the right.
            part, part_of_answers: adaptations for the queries and for the answers.
        """

    @abstractmethod
    def _generate(
        self,
        query_ids: Int[Tensor, "b t"],
        query_mask: Int[Tensor, "b t"],
        part: Adaptation | None,
        options: dict[str, Any],
    ) -> Int[Tensor, "b u"]:
        """Generate the tokens of the answers, without those of the queries, within the context of `adapted`.

        Args:
            query_ids, query_mask: padded on the right.
            part: the adaptation that is bound.
            options: options of `transformers`' `generate`, including `max_new_tokens`.
        """

    def room(self, kinds: Sequence[PeftKind]) -> int | None:
        """The most tokens of a query with its answer that the model's positions allow; None: no limit."""
        return None

    def _plain_format(self) -> InputFormat:
        """Default of `plain_format`, for a base outside a `HartModel`: the lengths of App. 8.1.3."""
        return InputFormat()

    def _generation_config(self) -> GenerationConfig:
        # Instruct models end turns and texts with different tokens, and list both.
        own = self.stock_generation_config.eos_token_id
        more = [] if own is None else own if isinstance(own, list) else [own]
        ends = list(dict.fromkeys([self.tokenizer.eos_token_id, *more]))
        return GenerationConfig(pad_token_id=self.tokenizer.pad_token_id, eos_token_id=ends)

    @property
    def ends(self) -> list[int]:
        """Tokens that end an answer, from the model's current generation configuration."""
        said = self.model.generation_config.eos_token_id
        return [] if said is None else [said] if isinstance(said, int) else list(said)

    def format_of(self, adaptation: Adaptation | None) -> InputFormat:
        """The input format of queries: the adaptation's, or `plain_format` without one."""
        return self.plain_format if adaptation is None else adaptation.input_format

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def fingerprint(self) -> str:
        """`hart.runtime.identity.fingerprint` of the current weights and the tokenizer."""
        if self._kept is not None:
            return self._kept
        now = (trace(self.model.parameters()), len(self.tokenizer))
        known = self._identified
        if known is None or known[0] != now:
            known = self._identified = (now, fingerprint(self.model, self.tokenizer))
        return known[1]

    def keep_fingerprint(self) -> None:
        """Fix the current fingerprint, before the weights are sharded and no process can compute it."""
        self._kept = self.fingerprint

    @property
    def identity(self) -> dict[str, Any]:
        """Name, revision and fingerprint of the base, as fields of saved models and adaptations."""
        return {"base": self.name, "base_revision": self.revision, "base_fingerprint": self.fingerprint}

    def freeze(self) -> None:
        """Freeze the weights permanently (§4.1, "We freeze the main model"); gradients still flow to the adaptation.

        Dropout is disabled permanently, even when gradient checkpointing needs training mode.
        """
        self.frozen = True
        self.model.requires_grad_(False)
        for _, module, what in dropouts(self.model):
            setattr(module, what, 0.0)
        self.train(self.training)

    def restore_dropout(self, copied: PreTrainedModel) -> None:
        """Set the dropout of a copy of the model to that of the checkpoint."""
        for name, module, what in dropouts(copied):
            setattr(module, what, self._dropout[name, what])

    def train(self, mode: bool = True) -> Self:
        """As `nn.Module.train`, but a frozen model stays in eval mode.

        With gradient checkpointing a frozen model enters training mode, without which transformers checkpoints nothing;
        its dropout is disabled.
        """
        super().train(mode)
        if self.frozen:
            self.model.train(mode and self.model.is_activation_checkpointing)
        return self

    def enable_gradient_checkpointing(self) -> None:
        """Recompute each layer in the backward pass, with the blocks that were bound in its forward pass.

        Use this method instead of that of `model`: without the blocks, the backward pass fails with an error of
        `torch.utils.checkpoint`.
        """
        self.model.activation_checkpointing_enable({"use_reentrant": False, "context_fn": checkpoint_contexts})
        self.train(self.training)

    def generate(
        self, queries: Sequence[str] | Sequence[list[int]], adaptation: Adaptation | None = None, **options: Any
    ) -> list[str]:
        """Generate answers to queries and return their texts; options as in `answers`."""
        return [answer.text for answer in self.answers(queries, adaptation, **options)]

    @torch.no_grad()
    def answers(
        self,
        queries: Sequence[str] | Sequence[list[int]],
        adaptation: Adaptation | None = None,
        *,
        max_new_tokens: int | None = None,
        num_beams: int = 1,
        temperature: float = 0.0,
        top_p: float = 1.0,
        batch_size: int = 32,
        max_query_length: int | None = None,
        logprobs: int | None = None,
        cuts: Cuts | None = None,
        **generate_kwargs: Any,
    ) -> list[Answer]:
        """The answer to each query, in the order of `queries`. Thread-safe.

        Args:
            queries: texts, of which the end is cut with a warning if they are longer than `max_query_length` tokens; or
                token ids, which are used unchanged.
            adaptation: one entry for all queries, or n entries, each for an equal number of neighbouring queries (one,
                in a batch that mixes tasks); None: the bare base. The keys and values of its memory are computed
                once per call, or taken from `keep_memory`.
            max_new_tokens, max_query_length: in tokens; None: the limits of `format_of` the adaptation, 128 and 384
                for a base outside any `HartModel` (App. 8.1.3).
            num_beams: number of beams; 1 is greedy decoding, or sampling.
            temperature: 0 takes the likeliest token; above 0 tokens are sampled.
            top_p: sample among the likeliest tokens whose probabilities add up to this share.
            batch_size: number of queries, of similar length, answered together.
            logprobs: add `scores` to the answers: log-probabilities of each token and of this many likeliest tokens.
            cuts: records cut queries instead of the warning.
            generate_kwargs: further arguments of `transformers`' `generate`, e.g. `streamer`.

        Raises:
            HartError: a query is empty, the adaptation has another base or number of entries, or an option is out of
                range, has no effect here, or is unknown to `generate`.
        """
        queries = listed(queries)
        options = decoding_options(num_beams, temperature, top_p, generate_kwargs)
        check_batch_size(batch_size)
        if logprobs is not None:
            check_logprobs(logprobs, options)
        adaptation = self.ready(adaptation, len(queries))
        form = self.format_of(adaptation)
        new_tokens = limit("max_new_tokens", max_new_tokens, form.max_target_length)
        form = replace(form, max_query_length=query_limit(max_query_length, form))
        encoded = encode_queries(self.tokenizer, queries, adaptation, form, cuts)
        said = generate_kwargs.get("eos_token_id", self.ends)
        ends = [said] if isinstance(said, int) else [int(each) for each in said or ()]
        answers: list[Any] = [None] * len(queries)
        longest_first = sorted(range(len(queries)), key=lambda i: -len(encoded[i]))
        with evaluating(self):
            # With several entries the memory is projected batch by batch, which bounds its size.
            if adaptation is not None and len(adaptation) == 1:
                adaptation = self.keep_memory(adaptation)
            for start in range(0, len(queries), batch_size):
                chosen, part = parts_of(adaptation, longest_first[start : start + batch_size], len(queries))
                ids, mask = self.pad([encoded[i] for i in chosen])
                with self.adapted(part, batch=len(chosen)):
                    # Not synchronised, because the processes of a run answer different queries.
                    given = {"max_new_tokens": new_tokens, "synced_gpus": False, **options}
                    call = Generating(self.tokenizer, ends, given, logprobs)
                    with naming_unknown_options():
                        made = call.answers(self._generate(ids, mask, part, call.options), mask)
                for i, answer in zip(chosen, made, strict=True):
                    answers[i] = answer
        return answers

    def check_adaptation(self, adaptation: Adaptation) -> None:
        """Raise `HartError` unless `adaptation` was generated for exactly these weights and this tokenizer."""
        if adaptation.base_fingerprint != self.fingerprint:
            raise HartError(
                f"this adaptation belongs to the base {adaptation.base} (revision {adaptation.base_revision}), whose "
                f"{difference(adaptation.base_fingerprint, self.fingerprint)} from {self.name}; "
                "load that base or adapt again"
            )

    def ready(self, adaptation: Adaptation | None, queries: int) -> Adaptation | None:
        """The adaptation on this device, after a check that its number of entries divides the number of queries."""
        if adaptation is None:
            return None
        if not isinstance(adaptation, Adaptation):
            raise HartError(
                "adaptation: give what model.adapt or Adaptation.from_pretrained returns, not a "
                f"{type(adaptation).__name__}; Adaptation.stack makes one of several"
            )
        self.check_adaptation(adaptation)
        if queries % len(adaptation):
            raise HartError(
                f"an adaptation of {len(adaptation)} tasks cannot serve {queries} queries; "
                "give one task, one per query, or one per group of equally many consecutive queries"
            )
        return adaptation.to(self.device)

    @torch.no_grad()
    def keep_memory(self, adaptation: Adaptation) -> Adaptation:
        """The adaptation with precomputed keys and values of its memory in every decoder layer.

        `generate` and `score_choices` then use them instead of computing them in each call. They take
        2 · layers · s · (width of keys) numbers per entry: 192 MiB for T5-Large, 1024 tokens and float32, where the
        memory itself takes 4 MiB. `save_pretrained` leaves them out. Without memory the adaptation is returned
        unchanged.

        Raises:
            HartError: the adaptation is for another base.
        """
        adaptation = self.ready(adaptation, len(adaptation))  # type: ignore[assignment]
        if adaptation.memory is None or adaptation.kept is not None:
            return adaptation
        with self.binding(adaptation.blocks, adaptation.kinds, batch=len(adaptation)):
            return replace(adaptation, kept=self._memory_key_values(adaptation.memory))

    @contextmanager
    def adapted(self, adaptation: Adaptation | None, batch: int) -> Iterator[None]:
        """A context in which blocks and memory act on all forward passes and on `generate` in this thread.

        The memory enters as keys and values in front of those of the attention that reads it, so it is projected once
        for all queries that share it. Only for use without gradients.
        """
        if adaptation is None:
            yield
            return
        with self.binding(adaptation.blocks, adaptation.kinds, batch):
            if adaptation.memory is None:
                yield
                return
            kept = adaptation.kept or self._memory_key_values(adaptation.memory)
            with binding(self._in_front(*kept, adaptation.memory_mask)):
                yield

    @abstractmethod
    def _memory_key_values(
        self, memory: Float[Tensor, "n s d"]
    ) -> tuple[Float[Tensor, "L n heads s d_kv"], Float[Tensor, "L n heads s d_kv"]]:
        """Keys and values of a memory in every layer that reads it, under the currently bound parameters."""

    @abstractmethod
    def _in_front(
        self,
        keys: Float[Tensor, "L n heads s d_kv"],
        values: Float[Tensor, "L n heads s d_kv"],
        mask: Shaped[Tensor, "n s"] | None,
    ) -> dict[Site, Binding]:
        """Bindings that put a memory's keys and values in front of those of the attention that reads it."""

    @contextmanager
    def binding(self, blocks: Blocks | None, peft: Sequence[PeftKind], batch: int) -> Iterator[None]:
        """A context in which blocks act in this thread: n sets, each for batch / n neighbouring rows.

        Raises:
            HartError: the blocks do not fit `peft`, this model or the batch.
        """
        if not blocks:
            yield
            return
        check_blocks(peft, self.shape, blocks)
        for name, values in blocks.items():
            if batch % values.shape[0]:
                raise HartError(f"block {name} has {values.shape[0]} rows for a batch of {batch}")
        with binding(*(kind.bindings(self.model, blocks) for kind in peft)):
            yield

    def pad(self, sequences: Sequence[Sequence[int]]) -> tuple[Int[Tensor, "b t"], Int[Tensor, "b t"]]:
        """Token ids, padded on the right, and their mask, on this model's device.

        Raises:
            HartError: the model has no embedding for a token, such as the non-text tokens of some tokenizers.
        """
        known = self.model.get_input_embeddings().num_embeddings
        wrong = [token for tokens in sequences for token in tokens if not 0 <= token < known]
        if wrong:
            raise HartError(
                f"{self.name}: has embeddings of {known} tokens, and token {wrong[0]} is not among them; leave it out"
            )
        return pad(sequences, self.tokenizer.pad_token_id, self.device)
