"""The two bundled bases: their construction, the batches of their pre-training, and their learning rates."""

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import torch
from mixture import Pairs
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from hart.data.collate import IGNORED_LABEL, pad

Batch = dict[str, torch.Tensor]


class T5:
    """A small, deep T5 (v1.1 form).

    Two changes let such a small T5 learn to copy (docs/LOG.md): relative biases are initialised with heads for the
    nearest neighbours and learn at ten times the rate, and query projections learn at a fifth of the rate.
    """

    factors: ClassVar = {"relative_attention_bias": 10.0, ".q.": 0.18}  # of the learning rate
    bias_start = 4.0

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        self.eos = tokenizer.eos_token_id
        self.sentinels = tokenizer.convert_tokens_to_ids([f"<extra_id_{i}>" for i in range(32)])

    def build(self, vocabulary: int) -> PreTrainedModel:
        config = T5Config(
            vocab_size=vocabulary,
            d_model=128,
            d_kv=16,
            num_heads=8,
            d_ff=384,
            num_layers=8,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            pad_token_id=0,
            eos_token_id=1,
            decoder_start_token_id=0,
        )
        model = T5ForConditionalGeneration(config)
        half = config.relative_attention_num_buckets // 2
        with torch.no_grad():
            encoder = model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight
            for head, bucket in enumerate((1, half + 1, 2, half + 2)):  # offsets -1, +1, -2, +2
                encoder[bucket, head] += self.bias_start
            decoder = model.decoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight
            for head, bucket in enumerate((1, 2, 3)):  # offsets -1, -2, -3
                decoder[bucket, head] += self.bias_start
        return model

    def pairs(self, pairs: Pairs) -> Batch:
        ids, mask = pad([[*source, self.eos] for source, _ in pairs], 0)
        labels, _ = pad([[*target, self.eos] for _, target in pairs], IGNORED_LABEL)
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    def passages(self, passages: list[list[int]], rng: np.random.Generator) -> Batch:
        """Half T5 span corruption, half prefix language modelling."""
        return self.pairs([self._corrupt(p, rng) if rng.random() < 0.5 else self._cut(p, rng) for p in passages])

    def queries(self, inputs: list[list[int]]) -> Batch:
        """The batch from which generation starts."""
        ids, mask = pad([[*source, self.eos] for source in inputs], 0)
        return {"input_ids": ids, "attention_mask": mask}

    @staticmethod
    def answers(output: torch.Tensor, queries: Batch) -> torch.Tensor:
        return output

    @staticmethod
    def _cut(tokens: list[int], rng: np.random.Generator) -> tuple[list[int], list[int]]:
        at = int(rng.integers(len(tokens) // 4, 3 * len(tokens) // 4))
        return tokens[:at], tokens[at : at + 40]

    def _corrupt(self, tokens: list[int], rng: np.random.Generator) -> tuple[list[int], list[int]]:
        spans = max(1, round(len(tokens) * 0.15 / 3))
        starts = np.sort(rng.choice(max(1, len(tokens) // 4), size=min(spans, len(tokens) // 4), replace=False)) * 4
        source, target, position = [], [], 0
        for sentinel, start in zip(self.sentinels, starts.tolist(), strict=False):
            length = int(rng.integers(2, 5))
            source += [*tokens[position:start], sentinel]
            target += [sentinel, *tokens[start : min(start + length, len(tokens))]]
            position = start + length
        return source + tokens[position:], target


class Llama:
    """A small Llama with grouped-query heads; the answer follows the end-of-sequence token of its input."""

    factors: ClassVar[dict[str, float]] = {}

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        self.begin, self.eos = tokenizer.bos_token_id, tokenizer.eos_token_id

    def build(self, vocabulary: int) -> PreTrainedModel:
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocabulary,
                hidden_size=128,
                intermediate_size=384,
                num_hidden_layers=8,
                num_attention_heads=8,
                num_key_value_heads=4,
                head_dim=32,
                max_position_embeddings=1024,
                rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
                tie_word_embeddings=True,
                pad_token_id=0,
                eos_token_id=1,
                bos_token_id=2,
            )
        )

    def pairs(self, pairs: Pairs) -> Batch:
        """The batch of pairs, with labels only for the answers."""
        inputs = [[self.begin, *source, self.eos] for source, _ in pairs]
        targets = [[*target, self.eos] for _, target in pairs]
        ids, mask = pad([a + b for a, b in zip(inputs, targets, strict=True)], 0)
        answers = [[IGNORED_LABEL] * len(a) + b for a, b in zip(inputs, targets, strict=True)]
        return {"input_ids": ids, "attention_mask": mask, "labels": pad(answers, IGNORED_LABEL)[0]}

    def passages(self, passages: list[list[int]], rng: np.random.Generator) -> Batch:
        ids, mask = pad([[self.begin, *passage, self.eos] for passage in passages], 0)
        return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, IGNORED_LABEL)}

    def queries(self, inputs: list[list[int]]) -> Batch:
        width = max(map(len, inputs))
        ids = torch.tensor([[0] * (width - len(source)) + [self.begin, *source, self.eos] for source in inputs])
        return {"input_ids": ids, "attention_mask": (ids != 0).long()}

    @staticmethod
    def answers(output: torch.Tensor, queries: Batch) -> torch.Tensor:
        return output[:, queries["input_ids"].shape[1] :]


ARCHITECTURES = {"t5": T5, "llama": Llama}


def parameter_groups(model: nn.Module, factors: dict[str, float]) -> Iterator[dict]:
    """Parameter groups by the factor of their learning rate, that of the first matching part of their name."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        factor = next((value for part, value in factors.items() if part in name), 1.0)
        groups.setdefault(factor, []).append(parameter)
    for factor, members in groups.items():
        yield {"params": members, "factor": factor}
