"""hart bench: speed ratios of hart and its alternatives, measured side by side on this machine."""

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from hart.cli.options import add_device, positive, select_device
from hart.cli.printing import say, show, tell
from hart.errors import HartError

NAMES = (
    "hypernetwork",
    "steps",
    "training",
    "prefix",
    "prefix-peft",
    "in-context",
    "mixed-tasks",
    "half",
    "lora",
    "decoder-only",
    "evaluation",
    "data",
    "growth",
)
QUICK = {"shape": "small", "tokens": 256, "repeats": 3}


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "bench",
        help="measure how fast hart is on this machine, beside the alternatives",
        description="""\
Time each figure of docs/performance.md against its alternative, in turn on this machine; print ratios (medians of
pairs) with their targets and limits. At T5-Large's size the whole takes about an hour on two CPU cores; --quick takes
small sizes and about two minutes; targets are for the default sizes. Names pick single benchmarks:
  hypernetwork   HART's pass and HyperTuning's, and what matrix products alone would take
  steps          decoder steps with keys and values kept, and without
  training       a training step of HART, HyperTuning and full fine-tuning (t5-base)
  prefix         the main model with prefixes and without; prefix-peft: beside PEFT's Prefix-Tuning
  in-context     queries per second with a ready adaptation, and with demonstrations in every input
  mixed-tasks    16 tasks in one batch, and task after task
  half           adapting and answering in bfloat16, and in float32
  lora           LoRA per row of a batch, beside PEFT's mixed batches
  decoder-only   the same in a Llama's generation, queries per second, adapting, a memory (t5-base)
  evaluation     shares of a whole evaluation; data: time that a training step waits for its batch
  growth         seconds against layers, tokens, prefix length, batch and tasks; only if named""",
        epilog="""\
examples:
  hart bench --quick
  hart bench hypernetwork --batch 8 --repeats 3 --output bench.json
  hart bench evaluation data --data-dir natural-instructions
  hart bench growth --plots docs""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("names", metavar="NAME", nargs="*", help="benchmarks (default: all but growth)")
    parser.add_argument("--quick", action="store_true", help=", ".join(f"{k} {v}" for k, v in QUICK.items()))
    parser.add_argument("--shape", help="size of the networks, e.g. t5-base (default: t5-large; training: t5-base)")
    parser.add_argument("--batch", metavar="N", type=positive, nargs="+", help="batch sizes (default: each its own)")
    parser.add_argument("--tokens", metavar="N", type=positive, help="tokens of demonstrations (default: 1024)")
    parser.add_argument("--repeats", metavar="N", type=positive, help="timed repeats of each pair (default: 5)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="default: %(default)s")
    parser.add_argument("--data-dir", metavar="D", type=Path, help="Super-NaturalInstructions (default: bundled tasks)")
    parser.add_argument("--plots", metavar="D", type=Path, help="folder for the pictures of growth")
    parser.add_argument(
        "--output", metavar="bench.json", type=Path, help="file of figures; those of other runs in it are kept"
    )
    add_device(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from hart.runtime.files import check_file_target

    unknown = [name for name in args.names if name not in NAMES]
    if unknown:
        raise HartError(f"bench: no benchmark {unknown[0]!r}; choose from {', '.join(NAMES)}")
    if args.output is not None:
        check_file_target(args.output)
    device = str(select_device(args.device))

    import torch

    from hart.benchmarks import Figure, Settings, benchmarks
    from hart.benchmarks.models import SHAPES
    from hart.benchmarks.table import merge, read, table

    given: dict[str, Any] = dict(QUICK) if args.quick else {}
    given |= {name: getattr(args, name) for name in ("shape", "tokens", "repeats") if getattr(args, name) is not None}
    if given.get("shape", "tiny") not in SHAPES:
        raise HartError(f"--shape: no size {given['shape']!r}; choose from {', '.join(SHAPES)}")
    settings = Settings(
        **given,
        batch=tuple(args.batch) if args.batch else None,
        dtype=args.dtype,
        device=device,
        data_dir=args.data_dir,
        plots=args.plots,
    )
    known = {} if args.output is None else read(args.output)
    command = shlex.join(["hart", *sys.argv[1:]])
    chosen = benchmarks()
    figures: list[Figure] = []
    for name in args.names or [each for each in NAMES if each != "growth"]:
        torch.manual_seed(0)
        tell(f"{name} …")
        new = list(chosen[name](settings))
        figures += new
        if args.output is not None:
            known = merge(args.output, known, new, settings, command)
    show(table(figures))
    if settings.shape is not None or settings.tokens < Settings.tokens:
        say("targets are for the default sizes; at smaller ones, what does not grow weighs more")
    if args.output is not None:
        say(f"figures: {args.output}")
