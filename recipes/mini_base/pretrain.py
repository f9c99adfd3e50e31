"""Pre-train a bundled base, a small and deep model that can do the primitives but has read no task definition.

Each step has a batch of generated examples (a combination in one of its terse wordings and an input → the output; no
test or validation combination is drawn), and a batch of synonyms (a phrase of the task definitions → the terse wording,
because this model does not know English as a larger one does). Every second step also has a batch of English passages
(T5: half span corruption, half prefix language modelling; Llama: language modelling).

python recipes/mini_base/pretrain.py --text-dir DIR --tokenizer DIR --output-dir DIR [--architecture llama] [--steps N]
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from architectures import ARCHITECTURES, parameter_groups
from mixture import Mixture
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from wordings import prompt

from hart.data.procedural import combinations
from hart.data.procedural.primitives import draw_input

LEARNING_RATE, WARMUP, DECAY_SHARE = 1.5e-3, 200, 0.5
WEIGHTS = (1.0, 0.5, 0.5)  # loss weights of generated examples, synonyms, text
TEXT_EVERY = 2  # steps between two batches of text


@torch.no_grad()
def exact_match(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, reading, split: str) -> float:
    """Share of correct answers to prompts in the base's own wordings, the upper bound for any adaptation."""
    rng, right, total = np.random.default_rng(0), 0, 0
    model.eval()
    for combination in combinations(split):
        texts = [draw_input(combination.selector, rng) for _ in range(8)]
        prompts = tokenizer([prompt(combination, t) for t in texts], add_special_tokens=False)["input_ids"]
        queries = reading.queries(prompts)
        output = model.generate(**queries, max_new_tokens=40, do_sample=False)
        answers = tokenizer.batch_decode(reading.answers(output, queries), skip_special_tokens=True)
        right += sum(a.strip() == combination.answer(t) for a, t in zip(answers, texts, strict=True))
        total += len(texts)
    model.train()
    return right / total


def learning_rate(step: int, steps: int) -> float:
    decay_from = steps * (1 - DECAY_SHARE)
    if step < WARMUP:
        return (step + 1) / WARMUP
    return 1.0 if step < decay_from else max(0.02, (steps - step) / (steps - decay_from))


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """Save a base in its bundled form: bf16 safetensors in the hub's layout."""
    frozen = type(model)(model.config)
    frozen.load_state_dict(model.state_dict())
    frozen.to(torch.bfloat16).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text-dir", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--architecture", choices=list(ARCHITECTURES), default="t5")
    parser.add_argument("--init", type=Path, help="a base to go on from, instead of a new one")
    parser.add_argument("--steps", type=int, default=3600)
    parser.add_argument("--bf16", action="store_true", help="autocast; ten times slower where a CPU lacks its products")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    out = arguments.output_dir
    out.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(arguments.seed)
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    reading = ARCHITECTURES[arguments.architecture](tokenizer)
    if arguments.init:
        auto = AutoModelForSeq2SeqLM if arguments.architecture == "t5" else AutoModelForCausalLM
        model = auto.from_pretrained(arguments.init, dtype=torch.float32).train()
    else:
        model = reading.build(len(tokenizer))
    data = Mixture(tokenizer, arguments.text_dir, arguments.seed)
    groups = list(parameter_groups(model, reading.factors))
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01, betas=(0.9, 0.98), fused=True)
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
        batches = [reading.pairs(data.generated()), reading.pairs(data.synonyms())]
        if step % TEXT_EVERY == 0:
            batches.append(reading.passages(data.text(), data.rng))
        for kind, batch in enumerate(batches):
            with torch.autocast("cpu", torch.bfloat16, enabled=arguments.bf16):
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
                row |= {"exact_match_validation": exact_match(model, tokenizer, reading, "validation")}
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
