"""Encoder-decoder main models: a stock transformers T5.

Eq. 5 feeds it the query x and the generated φ; fusion-in-decoder (§4.1, App. 8.1.3) prepends the hypernetwork's
encoder output to its own, and the decoder attends to both.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, GenerationConfig
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput

from hart.errors import HartError
from hart.model.adaptation import Adaptation
from hart.model.main_model import MainModel
from hart.peft.base import Blocks, PeftKind
from hart.peft.injection import Binding, ExtraKeyValues, Site
from hart.peft.injection import sites as sites_of
from hart.runtime.third_party.transformers import CACHE


class EncoderDecoder(MainModel):
    """A T5 that accepts generated parameters and a fused memory in any forward pass."""

    def forward(
        self,
        query_ids: Int[Tensor, "b t"],
        query_mask: Shaped[Tensor, "b t"],
        labels: Int[Tensor, "b u"],
        blocks: Blocks | None = None,
        peft: Sequence[PeftKind] = (),
        memory: Float[Tensor, "#b s d"] | None = None,
        memory_mask: Shaped[Tensor, "#b s"] | None = None,
    ) -> Seq2SeqLMOutput:
        """As `MainModel.forward`; the decoder reads the labels, shifted right; memory precedes the encoder's output."""
        with self.binding(blocks, peft, batch=query_ids.shape[0]):
            states, mask = self.encode(query_ids, query_mask, memory, memory_mask)
            made: Seq2SeqLMOutput = self.model(
                encoder_outputs=BaseModelOutput(last_hidden_state=states),
                attention_mask=mask,
                decoder_input_ids=self.model.prepare_decoder_input_ids_from_labels(labels),
                use_cache=False,
            )
            return made

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
        """As `MainModel.answer_logits`: one encoder pass for the queries, one decoder pass for their answers."""
        with self.adapted(part, batch=query_ids.shape[0]):
            encoder = self.model.get_encoder()
            states = encoder(input_ids=query_ids, attention_mask=query_mask).last_hidden_state
        with self.adapted(part_of_answers, batch=owner.shape[0]):
            logits: Tensor = self.model(
                encoder_outputs=BaseModelOutput(states[owner]),
                attention_mask=query_mask[owner],
                decoder_input_ids=self.model.prepare_decoder_input_ids_from_labels(labels),
                use_cache=False,
            ).logits
        return logits

    def _generate(
        self,
        query_ids: Int[Tensor, "b t"],
        query_mask: Int[Tensor, "b t"],
        part: Adaptation | None,
        options: dict[str, Any],
    ) -> Int[Tensor, "b u"]:
        own = options.get(CACHE) is not None or options.get("cache_implementation") is not None
        if options.get("use_cache", True) and not own:
            # By default, generate gives the cross-attention's cache as many layers as the encoder has.
            options = {**options, CACHE: EncoderDecoderCache(DynamicCache(), DynamicCache())}
        tokens: Tensor = self.model.generate(
            encoder_outputs=self.model.get_encoder()(input_ids=query_ids, attention_mask=query_mask),
            attention_mask=query_mask,
            **options,
        )
        return tokens[:, 1:]  # without the decoder's start token

    def _generation_config(self) -> GenerationConfig:
        config = super()._generation_config()
        config.decoder_start_token_id = self.model.config.decoder_start_token_id
        return config

    def encode(
        self,
        query_ids: Int[Tensor, "b t"],
        query_mask: Shaped[Tensor, "b t"],
        memory: Float[Tensor, "#b s d"] | None,
        memory_mask: Shaped[Tensor, "#b s"] | None,
    ) -> tuple[Float[Tensor, "b x d"], Shaped[Tensor, "b x"]]:
        """The x = s + t states that the decoder attends to, memory first, and their mask."""
        if (memory is None) != (memory_mask is None):
            raise HartError("memory and memory_mask must be given together")
        states = self.model.encoder(input_ids=query_ids, attention_mask=query_mask).last_hidden_state
        if memory is None or memory_mask is None:
            return states, query_mask
        batch = query_ids.shape[0]
        memory = memory.to(states.dtype).expand(batch, -1, -1)
        memory_mask = memory_mask.to(query_mask.dtype).expand(batch, -1)
        return torch.cat([memory, states], dim=1), torch.cat([memory_mask, query_mask], dim=1)

    def _memory_key_values(
        self, memory: Float[Tensor, "n s d"]
    ) -> tuple[Float[Tensor, "L n heads s d_kv"], Float[Tensor, "L n heads s d_kv"]]:
        """As `MainModel._memory_key_values`, by the projections of each layer's cross-attention."""
        memory = memory.to(self.model.dtype)
        sites: Any = sites_of(self.model, "decoder", "cross_attention")
        shape = self.shape
        size = (len(sites), memory.shape[0], shape.num_heads, memory.shape[1], shape.d_kv)
        keys, values = memory.new_empty(size), memory.new_empty(size)
        for layer, site in enumerate(sites):
            for made, projection in ((keys, site.k), (values, site.v)):
                made[layer] = projection(memory).unflatten(-1, (shape.num_heads, -1)).transpose(1, 2)
        return keys, values

    def _in_front(
        self,
        keys: Float[Tensor, "L n heads s d_kv"],
        values: Float[Tensor, "L n heads s d_kv"],
        mask: Shaped[Tensor, "n s"] | None,
    ) -> dict[Site, Binding]:
        """As `MainModel._in_front`: before the keys and values of cross-attention."""
        sites = sites_of(self.model, "decoder", "cross_attention")
        return {site: ExtraKeyValues(keys[layer], values[layer], mask) for layer, site in enumerate(sites)}
