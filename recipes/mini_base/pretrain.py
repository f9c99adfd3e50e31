"""Pre-train the bundled base model: a small, deep T5 that can do the primitives but has read no task definition.

Each step takes a batch of generated examples (a combination in one of its terse wordings and an input → the
output; no test or validation combination is ever drawn), a batch of synonyms (what a phrase of the task definitions
means, in the terse wordings: a larger model knows English, this one must be told), and each second step a batch of
English passages too (half T5 span corruption, half prefix language modelling). What makes so small a T5 learn to copy
(docs/LOG.md): relative biases that start with heads for the nearest neighbours and learn at ten times the rate, query
projections that learn at a fifth of it.

python recipes/mini_base/pretrain.py --text-dir DIR --tokenizer DIR --output-dir DIR [--steps N]
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from tokenizer import passages
from torch import nn
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)
from wordings import JOINERS, prompt, synonyms

from hart.data.procedural import combinations
from hart.data.procedural.primitives import draw_input

LAYERS, D_MODEL, HEADS, D_KV, D_FF = 8, 128, 8, 16, 384
LEARNING_RATE, WARMUP, DECAY_SHARE = 1.5e-3, 200, 0.5
QUERY_FACTOR, BIAS_FACTOR, BIAS_START = 0.18, 10.0, 4.0
GENERATED_BATCH, SYNONYM_BATCH, TEXT_BATCH, TEXT_TOKENS = 64, 32, 8, 96
WEIGHTS = (1.0, 0.5, 0.5)  # of generated examples, synonyms, text
TEXT_EVERY = 2  # steps between two batches of text
SHARDS = 5  # of the text folder; more than one run reads


def build_model(tokenizer: PreTrainedTokenizerFast) -> T5ForConditionalGeneration:
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=D_MODEL,
        d_kv=D_KV,
        num_heads=HEADS,
        d_ff=D_FF,
        num_layers=LAYERS,
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
            encoder[bucket, head] += BIAS_START
        decoder = model.decoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight
        for head, bucket in enumerate((1, 2, 3)):  # offsets -1, -2, -3
            decoder[bucket, head] += BIAS_START
    return model


def parameter_groups(model: nn.Module) -> list[dict]:
    groups: dict[float, list[nn.Parameter]] = {1.0: [], QUERY_FACTOR: [], BIAS_FACTOR: []}
    for name, parameter in model.named_parameters():
        is_bias, is_query = "relative_attention_bias" in name, ".q." in name
        groups[BIAS_FACTOR if is_bias else QUERY_FACTOR if is_query else 1.0].append(parameter)
    return [{"params": members, "factor": factor} for factor, members in groups.items()]


class Mixture:
    """Batches of both kinds, from one random generator that belongs to the checkpoint."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, text_dir: Path, seed: int):
        self.tokenizer, self.rng = tokenizer, np.random.default_rng(seed)
        self.combinations = combinations("train")
        self.sentinels = tokenizer.convert_tokens_to_ids([f"<extra_id_{i}>" for i in range(32)])
        texts = [
            text for shard in range(SHARDS) for text in passages(text_dir, f"*train.{shard:05d}*") if len(text) > 80
        ]
        encoded = tokenizer(texts, add_special_tokens=False, truncation=True, max_length=TEXT_TOKENS)
        self.texts = encoded["input_ids"]

    def generated(self) -> tuple[list[str], list[str]]:
        chosen = [self.combinations[i] for i in self.rng.integers(len(self.combinations), size=GENERATED_BATCH)]
        inputs = [draw_input(c.selector, self.rng) for c in chosen]
        outputs = [c.answer(text) for c, text in zip(chosen, inputs, strict=True)]
        choices = self.rng.integers((4, 4, len(JOINERS)), size=(GENERATED_BATCH, 3)).tolist()
        prompts = [prompt(c, t, *choice) for c, t, choice in zip(chosen, inputs, choices, strict=True)]
        return prompts, outputs

    def generated_batch(self) -> dict[str, torch.Tensor]:
        inputs, outputs = self.generated()
        return self._pad(self.tokenizer(inputs)["input_ids"], self.tokenizer(outputs)["input_ids"])

    def synonym_batch(self) -> dict[str, torch.Tensor]:
        chosen = [self.combinations[i] for i in self.rng.integers(len(self.combinations), size=SYNONYM_BATCH)]
        pairs = [synonyms(c, self.rng) for c in chosen]
        return self._pad(*(self.tokenizer([pair[side] for pair in pairs])["input_ids"] for side in (0, 1)))

    def text_batch(self) -> dict[str, torch.Tensor]:
        pairs = []
        for i in self.rng.integers(len(self.texts), size=TEXT_BATCH):
            tokens = self.texts[i]
            pairs.append(self._corrupt(tokens) if self.rng.random() < 0.5 else self._cut(tokens))
        return self._pad([a for a, _ in pairs], [b for _, b in pairs])

    def _cut(self, tokens: list[int]) -> tuple[list[int], list[int]]:
        at = int(self.rng.integers(len(tokens) // 4, 3 * len(tokens) // 4))
        return tokens[:at] + [1], tokens[at : at + 40] + [1]

    def _corrupt(self, tokens: list[int]) -> tuple[list[int], list[int]]:
        spans = max(1, round(len(tokens) * 0.15 / 3))
        starts = (
            np.sort(self.rng.choice(max(1, len(tokens) // 4), size=min(spans, len(tokens) // 4), replace=False)) * 4
        )
        source, target, position = [], [], 0
        for sentinel, start in zip(self.sentinels, starts.tolist(), strict=False):
            length = int(self.rng.integers(2, 5))
            source += [*tokens[position:start], sentinel]
            target += [sentinel, *tokens[start : min(start + length, len(tokens))]]
            position = start + length
        return source + tokens[position:] + [1], target + [1]

    def _pad(self, sources: list[list[int]], targets: list[list[int]]) -> dict[str, torch.Tensor]:
        ids = nn.utils.rnn.pad_sequence([torch.tensor(s) for s in sources], batch_first=True)
        labels = nn.utils.rnn.pad_sequence([torch.tensor(t) for t in targets], batch_first=True, padding_value=-100)
        return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": labels}


@torch.no_grad()
def exact_match(model: T5ForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, split: str) -> float:
    """Share of right answers when the base is prompted in its own words: the ceiling for any adaptation."""
    rng, right, total = np.random.default_rng(0), 0, 0
    model.eval()
    for combination in combinations(split):
        texts = [draw_input(combination.selector, rng) for _ in range(8)]
        batch = tokenizer([prompt(combination, t) for t in texts], return_tensors="pt", padding=True)
        output = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=40,
            do_sample=False,
        )
        answers = tokenizer.batch_decode(output, skip_special_tokens=True)
        right += sum(a.strip() == combination.answer(t) for a, t in zip(answers, texts, strict=True))
        total += len(texts)
    model.train()
    return right / total


def learning_rate(step: int, steps: int) -> float:
    decay_from = steps * (1 - DECAY_SHARE)
    if step < WARMUP:
        return (step + 1) / WARMUP
    return 1.0 if step < decay_from else max(0.02, (steps - step) / (steps - decay_from))


def save(model: T5ForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """The bundled form: bf16 safetensors in the hub's layout."""
    frozen = T5ForConditionalGeneration(model.config)
    frozen.load_state_dict(model.state_dict())
    frozen.to(torch.bfloat16).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text-dir", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--init", type=Path, help="a base to go on from, instead of a new one")
    parser.add_argument("--steps", type=int, default=3600)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    out = arguments.output_dir
    out.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(arguments.seed)
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    if arguments.init:
        model = T5ForConditionalGeneration.from_pretrained(arguments.init, dtype=torch.float32).train()
    else:
        model = build_model(tokenizer)
    data = Mixture(tokenizer, arguments.text_dir, arguments.seed)
    optimizer = torch.optim.AdamW(parameter_groups(model), weight_decay=0.01, betas=(0.9, 0.98), fused=True)
    step, last = 0, out / "last.pt"
    if last.exists():
        state = torch.load(last, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step, data.rng.bit_generator.state = state["step"], json.loads(state["rng"])

    log, since, sums = (out / "log.jsonl").open("a"), time.time(), [0.0, 0.0, 0.0, 0]
    while step < arguments.steps:
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * group["factor"] * learning_rate(step, arguments.steps)
        batches = [data.generated_batch(), data.synonym_batch()]
        if step % TEXT_EVERY == 0:
            batches.append(data.text_batch())
        for kind, batch in enumerate(batches):
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(**batch).loss
            (loss * WEIGHTS[kind]).backward()
            sums[kind] += loss.item() * (TEXT_EVERY if kind == 2 else 1)
        sums[3] += 1
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if not math.isfinite(norm):
            raise SystemExit(f"step {step}: gradient is not finite")
        if step % 50 == 0:
            row = {kind: sums[i] / sums[3] for i, kind in enumerate(("generated", "synonyms", "text"))}
            row |= {"step": step, "seconds_per_step": (time.time() - since) / sums[3], "gradient": norm.item()}
            since, sums = time.time(), [0.0, 0.0, 0.0, 0]
            if step % 500 == 0:
                row |= {f"exact_match_{s}": exact_match(model, tokenizer, s) for s in ("validation",)}
                state = {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "step": step,
                }
                torch.save(state | {"rng": json.dumps(data.rng.bit_generator.state)}, last)
                save(model, tokenizer, out / "model")
            print(json.dumps(row), file=log, flush=True)
    save(model, tokenizer, out / "model")


if __name__ == "__main__":
    main()
