"""hart estimate: parameters, FLOPs and memory of a configuration, without running it."""

import argparse
import json
from typing import TYPE_CHECKING, Any

from hart.cli.options import positive, read_configuration
from hart.cli.printing import say, show
from hart.errors import HartError

if TYPE_CHECKING:
    from hart.training.estimate import Estimate

OWN_OPTIONS = ("--help", "--devices", "--zero-stage", "--gpu", "--utilisation", "--gpu-memory", "--json")


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "estimate",
        help="parameters, arithmetic and memory of a configuration, without running it",
        description="""\
Print the parameters of each part (trained and frozen), tokens and floating-point operations of an optimizer
step, and the memory that one device needs. Parameters are exact; memory is a formula at the configured lengths.
Needs no weights and no network for published T5 checkpoints, Qwen3-0.6B, Llama-3.2-1B and SmolLM2-135M. With
--gpu or --gpu-memory, says what to change if it does not fit; the exit status is then 1. With --gpu, also the time of
training: operations over the card's peak, of which --utilisation is reached; evaluation and reading are not in it.""",
        epilog="""\
examples:
  hart estimate configs/t5-large/hart_sni.yaml
  hart estimate configs/t5-base/hart_causal_sni.yaml --gpu rtx-4090
  hart estimate configs/t5-xl/hart_sni.yaml --devices 8 --zero-stage 2 --gpu-memory 80""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        usage="hart estimate CONFIG.yaml [--section.field VALUE ...] [--devices N] [--zero-stage {0,1,2,3}] "
        "[--gpu NAME] [--utilisation SHARE] [--gpu-memory GIB] [--json]",
    )
    parser.add_argument("config", metavar="CONFIG.yaml")
    parser.add_argument(
        "--devices", metavar="N", type=positive, default=1, help="devices that share a batch (default: 1)"
    )
    parser.add_argument(
        "--zero-stage",
        type=int,
        choices=(0, 1, 2, 3),
        help="stage of DeepSpeed's ZeRO; 3 also for FSDP (default: from training.deepspeed or training.fsdp, else 0)",
    )
    parser.add_argument(
        "--gpu", metavar="NAME", help="the devices are cards of this kind: t4, rtx-4090, a100-80gb, h100, …"
    )
    parser.add_argument(
        "--utilisation",
        metavar="SHARE",
        type=float,
        help="reached share of the card's peak, above 0 and at most 1 (default: 0.3)",
    )
    parser.add_argument("--gpu-memory", metavar="GIB", type=float, help="memory of one device (default: that of --gpu)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.set_defaults(read=read_configuration, run=run)


def run(args: argparse.Namespace) -> int:
    from hart.training.estimate import estimate, with_advice, zero_stage_of
    from hart.training.gpus import UTILISATION, named_gpu, seconds_per_step

    if args.gpu_memory is not None and not args.gpu_memory > 0:
        raise HartError(f"--gpu-memory: must be a number of GiB above 0, not {args.gpu_memory}")
    if args.utilisation is not None and args.gpu is None:
        raise HartError("--utilisation: is a share of a card's peak; name the card with --gpu")
    share = UTILISATION if args.utilisation is None else args.utilisation
    if not 0 < share <= 1:
        raise HartError(f"--utilisation: must be above 0 and at most 1, not {share}")
    limit = args.gpu_memory
    if limit is None and args.gpu is not None:
        limit = named_gpu(args.gpu).memory
    config = args.configuration
    stage = zero_stage_of(config) if args.zero_stage is None else args.zero_stage
    found = estimate(config, devices=args.devices, zero_stage=stage)
    time = None
    if args.gpu is not None:
        step = seconds_per_step(config, found, args.gpu, share)
        hours = step * config.training.max_steps / 3600
        time = {"gpu": args.gpu.lower(), "utilisation": share, "seconds_per_step": step, "hours": hours}
    fits = limit is None or found.total_memory <= limit
    if not fits:
        bfloat16 = args.gpu is None or named_gpu(args.gpu).bfloat16 is not None
        found = with_advice(config, found, has_bfloat16=bfloat16)
    if args.json:
        say(json.dumps(found.to_dict() | ({"time": time} if time else {}), indent=2))
    else:
        _show(found, limit, time, config.training.max_steps)
    return 0 if fits else 1


def _show(found: "Estimate", limit: float | None, time: dict[str, Any] | None, steps: int) -> None:
    from rich.table import Table

    parameters = Table("part", "parameters", title="parameters")
    for name, count in found.parameters.items():
        parameters.add_row(name, f"{count:,}")
    parameters.add_section()
    parameters.add_row("trained", f"{found.trained:,}")
    parameters.add_row("frozen", f"{found.frozen:,}")
    step = Table("", "per optimizer step", title="one step, at the longest lengths")
    for name, count in found.tokens.items():
        step.add_row(f"tokens, {name}", f"{count:,}")
    step.add_row("operations", f"{found.flops:.3g}")
    where = f"one of {found.devices} devices, ZeRO stage {found.zero_stage}" if found.devices > 1 else "one device"
    memory = Table("part", "GiB", title=f"memory of {where}")
    for name, size in found.memory.items():
        memory.add_row(name, f"{size:.2f}")
    memory.add_section()
    memory.add_row("in all", f"{found.total_memory:.2f}")
    show(parameters, step, memory)
    if time:
        cards = f"{found.devices} × {time['gpu']}" if found.devices > 1 else time["gpu"]
        say(
            f"{_hours(time['hours'])} for {steps:,} steps of {time['seconds_per_step']:.2g} s on {cards}, if "
            f"{time['utilisation']:.0%} of the peak is reached, without evaluation and reading; by a formula, "
            "not measured."
        )
    if limit is not None and found.total_memory > limit:
        say(f"This does not fit into {limit:g} GiB. Each of these on its own would save:")
        for text, saved in found.advice:
            say(f"  {text}: {saved:.2f} GiB")


def _hours(hours: float) -> str:
    return f"{hours:.1f} hours" if hours >= 1 else f"{hours * 60:.0f} minutes"
