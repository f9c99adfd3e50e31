"""The pre-training data of the bundled bases: generated pairs, and English passages."""

from pathlib import Path

import numpy as np
from tokenizer import passages
from transformers import PreTrainedTokenizerFast
from wordings import JOINERS, prompt, synonyms

from hart.data.procedural import combinations
from hart.data.procedural.primitives import draw_input

GENERATED_BATCH, SYNONYM_BATCH, TEXT_BATCH, TEXT_TOKENS = 64, 32, 8, 96
SHARDS = 5  # files of the text folder, more than one run reads

Pairs = list[tuple[list[int], list[int]]]


class Mixture:
    """Inputs and targets as tokens without special tokens, from one random generator that checkpoints save."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, text_dir: Path, seed: int):
        self._tokenizer, self.rng = tokenizer, np.random.default_rng(seed)
        self._combinations = combinations("train")
        texts = [
            text for shard in range(SHARDS) for text in passages(text_dir, f"*train.{shard:05d}*") if len(text) > 80
        ]
        encoded = tokenizer(texts, add_special_tokens=False, truncation=True, max_length=TEXT_TOKENS)
        self._texts = encoded["input_ids"]

    def generated(self) -> Pairs:
        """Pairs of a request in a terse wording with an input, and its answer."""
        chosen = [self._combinations[i] for i in self.rng.integers(len(self._combinations), size=GENERATED_BATCH)]
        inputs = [draw_input(c.selector, self.rng) for c in chosen]
        outputs = [c.answer(text) for c, text in zip(chosen, inputs, strict=True)]
        choices = self.rng.integers((4, 4, len(JOINERS)), size=(GENERATED_BATCH, 3)).tolist()
        prompts = [prompt(c, t, *choice) for c, t, choice in zip(chosen, inputs, choices, strict=True)]
        return self._encoded(prompts, outputs)

    def synonyms(self) -> Pairs:
        """Pairs of a phrase of the task definitions and the equivalent terse wording."""
        chosen = [self._combinations[i] for i in self.rng.integers(len(self._combinations), size=SYNONYM_BATCH)]
        pairs = [synonyms(c, self.rng) for c in chosen]
        return self._encoded(*([pair[side] for pair in pairs] for side in (0, 1)))

    def text(self) -> list[list[int]]:
        return [self._texts[i] for i in self.rng.integers(len(self._texts), size=TEXT_BATCH)]

    def _encoded(self, inputs: list[str], outputs: list[str]) -> Pairs:
        encoded = [self._tokenizer(texts, add_special_tokens=False)["input_ids"] for texts in (inputs, outputs)]
        return list(zip(*encoded, strict=True))
