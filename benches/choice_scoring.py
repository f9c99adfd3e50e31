"""Speed of scoring K choices per query: one encoder pass for all choices, against a forward pass for each.

    python benches/choice_scoring.py --shape t5-base --tokens 384 --choices 2 4 8

The model has random weights and no adaptation; queries have `--tokens` tokens, choices `--choice-tokens`. Both variants
score the same texts in the same batches, and their scores are checked to agree. Every repeat times both, in turn; the
reported ratio is the median of the ratios within a repeat.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor

from hart.benchmarks.models import SHAPES, main_model, stock_model, t5_config
from hart.data.input_format import InputFormat
from hart.model.main_model import MainModel
from hart.model.scoring import score_choices


@torch.no_grad()
def one_by_one(main: MainModel, queries: list[list[int]], choices: list[list[str]]) -> list[list[float]]:
    """Scores by one forward pass (including the encoder) for the k-th choices of all queries, for every k."""
    ids, mask = main.pad(queries)
    columns: list[Tensor] = []
    for texts in zip(*choices, strict=True):
        labels, label_mask = main.pad([InputFormat().encode_target(main.tokenizer, text) for text in texts])
        logits = main.model(input_ids=ids, attention_mask=mask, labels=labels).logits
        chosen = logits.log_softmax(-1).gather(2, labels.unsqueeze(2)).squeeze(2)
        columns.append((chosen * label_mask).sum(1))
    return torch.stack(columns, dim=1).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="t5-base")
    parser.add_argument("--tokens", type=int, default=384)
    parser.add_argument("--choices", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--choice-tokens", type=int, default=8)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = main_model(stock_model(t5_config(args.shape)))
    queries = torch.randint(3, 32000, (args.batch, args.tokens)).tolist()
    rows = []
    for number in args.choices:
        numbers = torch.randint(3, 32000, (args.batch, number, args.choice_tokens - 1)).tolist()
        choices = [[" ".join(map(str, words)) for words in own] for own in numbers]
        times: dict[str, list[float]] = {"shared": [], "separate": []}
        for repeat in range(args.repeats + 1):
            start = time.perf_counter()
            shared = score_choices(model, queries, choices, batch_size=args.batch)
            middle = time.perf_counter()
            separate = one_by_one(model, queries, choices)
            end = time.perf_counter()
            torch.testing.assert_close(torch.tensor(shared), torch.tensor(separate), rtol=1e-3, atol=1e-2)
            if repeat:  # the first repeat is a warm-up
                times["shared"].append(middle - start)
                times["separate"].append(end - middle)
        ratio = statistics.median(b / a for a, b in zip(times["shared"], times["separate"], strict=True))
        medians = {name: statistics.median(values) for name, values in times.items()}
        rows.append({"choices": number, **medians, "ratio": ratio})
        print(
            f"K = {number}: one encoder pass {medians['shared']:.2f} s, K forwards {medians['separate']:.2f} s, "
            f"ratio {ratio:.2f}",
            flush=True,
        )
    if args.output:
        settings = {key: value for key, value in vars(args).items() if key != "output"}
        args.output.write_text(json.dumps({"settings": settings, "rows": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
