"""Decoder-only main models, from GPT-2 to Qwen 3.5 (`hart.peft.architectures`).

A query and its answer are one sequence. Queries are padded on the left and answers on the right, so all answers of a
batch begin in the same column. The stock model then computes logits only from that column on, in training and in
generation, and a sliding window meets no padding between query and answer. Positions count tokens, not padding.

A decoder-only model has no cross-attention in which to fuse a memory (App. 8.1.3). Instead (not in the paper) the
hypernetwork's memory can stand in front of the tokens: the frozen norm and the key and value maps of each layer project
it, as a T5's cross-attention does. The keys and values are computed once per adaptation, without running any layer. A
memory has no position: its keys are not rotated (as at position 0), the queries' positions stay as they are, and no
sliding window hides it.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from transformers import DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from hart.data.input_format import InputFormat
from hart.errors import HartError
from hart.model.adaptation import Adaptation
from hart.model.main_model import MainModel
from hart.peft.architectures import architecture
from hart.peft.base import Blocks, PeftKind
from hart.peft.injection import Binding, ExtraKeyValues, Site, binding, learned_positions, mapped, sites
from hart.peft.modules import at, layers_with, norm_of
from hart.peft.prefix import prefix_length
from hart.runtime.third_party.transformers import CACHE


class DecoderOnly(MainModel):
    """A decoder-only language model that accepts generated parameters in any forward pass."""

    def forward(
        self,
        query_ids: Int[Tensor, "b t"],
        query_mask: Shaped[Tensor, "b t"],
        labels: Int[Tensor, "b u"],
        blocks: Blocks | None = None,
        peft: Sequence[PeftKind] = (),
        memory: Float[Tensor, "#b s d"] | None = None,
        memory_mask: Shaped[Tensor, "#b s"] | None = None,
    ) -> CausalLMOutputWithPast:
        """As `MainModel.forward`; query and answer are one sequence, and logits are those that predict the answer."""
        if (memory is None) != (memory_mask is None):
            raise HartError("memory and memory_mask must be given together")
        ids, mask = _to_the_left(query_ids, query_mask)
        # The last token of an answer predicts no label, so it is not read.
        answer, answered = labels[:, :-1], (labels[:, 1:] >= 0).to(mask.dtype)
        ids = torch.cat([ids, answer.masked_fill(answered == 0, self.tokenizer.pad_token_id)], dim=1)
        mask = torch.cat([mask, answered], dim=1)
        self._check_length(mask, peft)
        with self.binding(blocks, peft, batch=ids.shape[0]):
            front: dict[Site, Binding] = {}
            if memory is not None:
                # One memory per row, because each row has its own LoRA at k and v.
                memory = memory.expand(ids.shape[0], -1, -1)
                front = self._in_front(*self._memory_key_values(memory), memory_mask)
            with binding(front):
                made: CausalLMOutputWithPast = self.model(
                    input_ids=ids,
                    attention_mask=mask,
                    position_ids=_positions(mask),
                    use_cache=False,
                    logits_to_keep=labels.shape[1],
                )
            return made

    def _plain_format(self) -> InputFormat:
        """The input format without an end of sequence, after which a language model would begin another text."""
        return InputFormat(input_eos=False)

    def _memory_key_values(
        self, memory: Float[Tensor, "n s d"]
    ) -> tuple[Float[Tensor, "L n heads s d_kv"], Float[Tensor, "L n heads s d_kv"]]:
        """As `MainModel._memory_key_values`, after the norms of each layer's input, of keys and of values, if any.

        LoRA at k and v applies.
        """
        table, memory = architecture(self.model.config), memory.to(self.model.dtype)
        heads, width = self.shape.heads_in_front, self.shape.kv_inner
        made: list[tuple[Tensor, Tensor]] = []
        names: tuple[Literal["k", "v"], ...] = ("k", "v")
        maps = zip(*(sites(self.model, "decoder", part) for part in names), strict=True)
        for layer, key_value in zip(layers_with(self.model, "decoder", "self_attention"), maps, strict=True):
            read = memory if table.norm is None else at(layer, table.norm)(memory)
            parts: list[Tensor] = []
            for name, part in zip(names, mapped(key_value, read), strict=True):
                norm: Any = norm_of(name, self.model.config, layer)
                if norm is not None:
                    # Its gains are those of one head, or of all; without gains it is of one head.
                    alone = heads if getattr(norm, "weight", None) is None else width // norm.weight.shape[0]
                    part = norm(part.unflatten(-1, (alone, -1))).flatten(-2)
                parts.append(part.unflatten(-1, (heads, -1)).transpose(1, 2))
            made.append((parts[0], parts[1]))
        keys, values = (torch.stack(part) for part in zip(*made, strict=True))
        return keys, values

    def _in_front(
        self,
        keys: Float[Tensor, "L n heads s d_kv"],
        values: Float[Tensor, "L n heads s d_kv"],
        mask: Shaped[Tensor, "n s"] | None,
    ) -> dict[Site, Binding]:
        """As `MainModel._in_front`: before the keys and values of self-attention, after a prefix."""
        return {
            site: ExtraKeyValues(keys[layer], values[layer], mask, placeless=keys.shape[3])
            for layer, site in enumerate(sites(self.model, "decoder", "self_attention"))
        }

    @torch.no_grad()
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
        """As `MainModel.answer_logits`; the keys and values of a query are computed once for all its answers."""
        ids, mask = _to_the_left(query_ids, query_mask)
        whole = torch.cat([mask[owner], label_mask[:, 1:]], dim=1)
        self._check_length(whole, () if part is None else part.kinds)
        cache = DynamicCache(config=self.model.config)
        with self.adapted(part, batch=ids.shape[0]):
            first: Tensor = self.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=_positions(mask),
                **{CACHE: cache},
                use_cache=True,
                logits_to_keep=1,
            ).logits[owner]
        if labels.shape[1] == 1:
            return first
        cache.reorder_cache(owner)  # type: ignore[arg-type]
        with self.adapted(part_of_answers, batch=owner.shape[0]):
            rest: Tensor = self.model(
                input_ids=labels[:, :-1],
                attention_mask=whole,
                position_ids=_positions(whole)[:, ids.shape[1] :],
                **{CACHE: cache},
                use_cache=True,
            ).logits
        return torch.cat([first, rest], dim=1)

    def _generate(
        self,
        query_ids: Int[Tensor, "b t"],
        query_mask: Int[Tensor, "b t"],
        part: Adaptation | None,
        options: dict[str, Any],
    ) -> Int[Tensor, "b u"]:
        ids, mask = _to_the_left(query_ids, query_mask)
        self._check_length(mask, () if part is None else part.kinds, more=options["max_new_tokens"] - 1)
        tokens: Tensor = self.model.generate(input_ids=ids, attention_mask=mask, **options)
        return tokens[:, ids.shape[1] :]

    def room(self, kinds: Sequence[PeftKind]) -> int | None:
        """As `MainModel.room`: the learned positions (GPT-2) minus the length of a prefix."""
        most = learned_positions(self.model)
        return None if most is None else most - prefix_length(kinds)

    def _check_length(self, mask: Shaped[Tensor, "b t"], kinds: Sequence[PeftKind], *, more: int = 0) -> None:
        """Raise `HartError` if prefix, tokens and `more` further tokens of a row exceed the learned positions."""
        room, most = self.room(kinds), self.room(())
        if room is None or most is None:
            return
        # Padding takes no position.
        tokens = int(mask.long().sum(dim=1).max()) + more
        if tokens > room:
            raise HartError(
                f"{self.name}: has {most} positions, and query and answer have {tokens} tokens behind a prefix of "
                f"{most - room}; lower max_query_length or the length of answers"
            )


def _to_the_left(
    ids: Int[Tensor, "b t"], mask: Shaped[Tensor, "b t"]
) -> tuple[Int[Tensor, "b t"], Shaped[Tensor, "b t"]]:
    """The same rows with their padding moved from the right to the left."""
    length = ids.shape[1]
    padding = length - mask.sum(dim=1, keepdim=True)
    source = (torch.arange(length, device=ids.device) - padding) % length
    return ids.gather(1, source), mask.gather(1, source)


def _positions(mask: Shaped[Tensor, "b t"]) -> Int[Tensor, "b t"]:
    """Position of each token: the number of tokens before it; 0 on padding before the first."""
    return (mask.long().cumsum(dim=1) - 1).clamp(min=0)
