"""How much does generating layer by layer cost?

Times, side by side in one run, with random weights and without gradients:

- the pass of the HART hypernetwork (autoregressive states) and of HyperTuning's (one shared state):
  same encoder, same decoder blocks, same number of generated parameters; and
- the scheme alone (decoder steps without encoder and heads), with keys and values cached and not.

    python benches/hypernetwork_pass.py --shape t5-large --tokens 1024 --batch 1 8

Every repeat times each variant once, in turn, so that a machine that slows down slows all of them;
the ratios are medians of the ratios within a repeat. The uncached steps recompute everything in
every step, keys and values of cross-attention too.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import T5Config

from hart.hypernetwork import T5_FIELDS, HyperNetwork, HyperNetworkConfig
from hart.peft import MainShape

SHAPES: dict[str, dict[str, int]] = {
    "tiny": {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_heads": 4, "num_layers": 6},
    "t5-base": {"d_model": 768, "d_kv": 64, "d_ff": 2048, "num_heads": 12, "num_layers": 12},
    "t5-large": {"d_model": 1024, "d_kv": 64, "d_ff": 2816, "num_heads": 16, "num_layers": 24},
    "t5-xl": {"d_model": 2048, "d_kv": 64, "d_ff": 5120, "num_heads": 32, "num_layers": 24},
}


def build(shape: str, scheme: str, args: argparse.Namespace) -> HyperNetwork:
    # The vocabulary costs memory and no time.
    t5 = T5Config(**SHAPES[shape], vocab_size=1000, feed_forward_proj="gated-gelu")
    config = HyperNetworkConfig(
        t5={name: getattr(t5, name) for name in T5_FIELDS},
        decoder_layers=min(args.decoder_layers, t5.num_layers),
        scheme={"name": scheme},
        peft=[{"kind": "prefix", "length": args.prefix}],
        main=vars(MainShape.from_config(t5)),
    )
    with torch.device("meta"):
        network = HyperNetwork(config)
    network.to(getattr(torch, args.dtype)).to_empty(device=args.device).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            # Norm gains and embeddings would do with ones; the values do not matter for the time.
            parameter.normal_(std=parameter.shape[-1] ** -0.5)
    return network


def seconds(run: Callable[[], Any], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def alternate(variants: dict[str, Callable[[], Any]], repeats: int, device: str) -> dict[str, list[float]]:
    """Seconds of each variant in each repeat, after one warm-up."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for repeat in range(repeats + 1):
        for name, run in variants.items():
            elapsed = seconds(run, device)
            if repeat:
                times[name].append(elapsed)
    return times


def ratio(times: dict[str, list[float]], numerator: str, denominator: str) -> float:
    pairs = zip(times[numerator], times[denominator], strict=True)
    return statistics.median(a / b for a, b in pairs)


@torch.inference_mode()
def measure(batch: int, hart: HyperNetwork, shared: HyperNetwork, args: argparse.Namespace) -> dict[str, Any]:
    ids = torch.randint(1000, (batch, args.tokens), device=args.device)
    mask = torch.ones_like(ids)
    variants = {"shared": lambda: shared(ids, mask), "hart": lambda: hart(ids, mask)}
    passes = alternate(variants, args.repeats, args.device)
    memory: Tensor = hart.encoder(input_ids=ids, attention_mask=mask).last_hidden_state

    def steps(cached: bool) -> Tensor:
        assert hart.scheme is not None and hart.decoder is not None
        return hart.scheme(hart.decoder, memory, mask, cached=cached)

    schemes = alternate({"cached": lambda: steps(True), "uncached": lambda: steps(False)}, args.repeats, args.device)
    return {
        "batch": batch,
        **{f"{name}_s": statistics.median(t) for name, t in (passes | schemes).items()},
        "hart_over_shared": ratio(passes, "hart", "shared"),
        "uncached_over_cached": ratio(schemes, "uncached", "cached"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="t5-large")
    parser.add_argument("--tokens", type=int, default=1024, help="length of the demonstrations")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--decoder-layers", type=int, default=8)
    parser.add_argument("--prefix", type=int, default=32)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="also write the numbers there")
    args = parser.parse_args()

    torch.manual_seed(0)
    hart, shared = (build(args.shape, name, args) for name in ("autoregressive", "shared"))
    environment = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "processor": torch.cuda.get_device_name() if args.device == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
    }
    print(f"{args.shape}, {args.tokens} tokens, {args.dtype} on {args.device}; " + str(environment))
    columns = "{:>5} {:>11} {:>9} {:>12} {:>11} {:>13} {:>16}"
    titles = ("batch", "shared (s)", "HART (s)", "HART/shared")
    print(columns.format(*titles, "cached (s)", "uncached (s)", "uncached/cached"))
    results = []
    for batch in args.batch:
        row = measure(batch, hart, shared, args)
        results.append(row)
        print(
            columns.format(
                batch,
                *(f"{row[k]:.3f}" for k in ("shared_s", "hart_s")),
                f"{row['hart_over_shared']:.3f}",
                *(f"{row[k]:.3f}" for k in ("cached_s", "uncached_s")),
                f"{row['uncached_over_cached']:.2f}",
            ),
            flush=True,
        )
    if args.json:
        settings = {k: v for k, v in vars(args).items() if k != "json"}
        record = {"settings": settings, "environment": environment, "results": results}
        args.json.write_text(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
