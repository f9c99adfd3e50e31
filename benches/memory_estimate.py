"""Comparison of `hart estimate` with the memory of training.

Each case trains two steps at the configured lengths in separate processes. The measured value is the peak resident set
of one process during these steps, minus its memory before them other than the loaded networks.

    python benches/memory_estimate.py [CASE ...]

Cases of the `small` shape use a T5 with the sizes of google/t5-v1_1-small, random weights and the bundled tokenizer.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
LENGTHS = {"max_demonstrations_length": 512, "max_query_length": 256, "max_target_length": 64}

# Name → (configuration, changes, processes, ZeRO stage).
CASES: dict[str, tuple[str, dict[str, Any], int, int]] = {
    "mini hart": ("hart_sni", {}, 1, 0),
    "mini hypertuning": (
        "hypertuning_no_pretraining_sni",
        {"training.batch_size": 8, "training.queries_per_task": 1},
        1,
        0,
    ),
    "mini ft-few-shot": ("ft_few_shot_sni", {"training.batch_size": 8}, 1, 0),
    "mini lora": ("lora_sni", {"training.batch_size": 8}, 1, 0),
    "small hart": ("hart_sni", {"training.batch_size": 8}, 1, 0),
    "small hart, checkpointing": (
        "hart_sni",
        {"training.batch_size": 8, "model.gradient_checkpointing": True},
        1,
        0,
    ),
    "small causal": (
        "hart_sni",
        {"training.batch_size": 8, "model.scheme": {"name": "causal", "rows": 8}},
        1,
        0,
    ),
    "small causal, checkpointing": (
        "hart_sni",
        {
            "training.batch_size": 8,
            "model.scheme": {"name": "causal", "rows": 8},
            "model.gradient_checkpointing": True,
        },
        1,
        0,
    ),
    "small hart, 8-bit": ("hart_sni", {"training.batch_size": 4, "training.optimizer": "adamw_8bit"}, 1, 0),
    "small ft-few-shot": ("ft_few_shot_sni", {"training.batch_size": 4}, 1, 0),
    "small hart, ZeRO-1": ("hart_sni", {"training.batch_size": 8}, 2, 1),
    "small hart, ZeRO-2": ("hart_sni", {"training.batch_size": 8}, 2, 2),
    "small hart, ZeRO-3": ("hart_sni", {"training.batch_size": 8}, 2, 3),
}


def small_base(folder: Path) -> None:
    """Save a T5 of the small size with random weights, in the hub's layout."""
    import torch
    from transformers import AutoTokenizer, T5ForConditionalGeneration

    from hart.model.bundled import resolve_base
    from hart.training.blueprint import base_config

    torch.manual_seed(0)
    config = base_config("google/t5-v1_1-small")
    config.decoder_start_token_id = 0
    model = T5ForConditionalGeneration(config)
    model.lm_head.weight = torch.nn.Parameter(torch.randn(config.vocab_size, config.d_model) * config.d_model**-0.5)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(resolve_base("mini-base")).save_pretrained(folder)


def long_tasks(folder: Path, lengths: dict[str, int]) -> None:
    """Write tasks whose inputs and answers fill the limits."""
    from hart.data.tasks import Demonstration, Instance, Task

    long = "apple pear plum " * lengths["max_demonstrations_length"]
    example = "apple pear plum " * (lengths["max_demonstrations_length"] // 8)
    instances = [Instance(f"{i} {long}", (long,), str(i)) for i in range(40)]
    names = [f"task{i}" for i in range(4)]
    for name in names:
        task = Task(long, [Demonstration(example, example)] * 2, name=name, instances=instances)
        task.save(folder / "tasks" / f"{name}.json")
    splits = folder / "splits" / "default"
    splits.mkdir(parents=True)
    for split in ("train", "test"):
        (splits / f"{split}_tasks.txt").write_text("\n".join(names))


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def train_and_measure(config_path: str, result: str) -> None:
    """Train two steps in this (separate) process, and write the peak memory to a file."""
    from hart.training import loop
    from hart.training.config import load
    from hart.training.train import train

    found: dict[str, int] = {}
    fit, first_loss = loop.Loop.fit, loop.Loop.loss

    def loaded(self: loop.Loop, *args: Any) -> None:
        weights = sum(p.numel() * p.element_size() for p in self.system.parameters())
        if os.environ.get("ZERO"):
            import deepspeed  # noqa: F401 - its own memory is not the model's
        found["before"] = resident() - weights
        fit(self, *args)

    def loss(self: loop.Loop, *args: Any) -> Any:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak, which excludes preparation
        loop.Loop.loss = first_loss  # type: ignore[method-assign]
        return first_loss(self, *args)

    loop.Loop.fit, loop.Loop.loss = loaded, loss  # type: ignore[method-assign]
    loop.save_checkpoint = lambda _: found.update(peak=peak())
    train(load(config_path), quiet=True)
    if os.environ.get("RANK", "0") == "0":
        Path(result).write_text(str(found["peak"] - found["before"]))


def run_case(name: str, folder: Path, base: str) -> tuple[float, float]:
    """Measured and predicted memory in GiB."""
    from hart.training.config import load
    from hart.training.estimate import estimate

    config_name, changes, processes, stage = CASES[name]
    changes = {
        **{f"data.{key}": value for key, value in (LENGTHS if name.startswith("small") else {}).items()},
        "data.validation_tasks": 0,
        "training.eval_every": 0,
        "training.max_steps": 2,
        "training.save_every": 2,
        "training.trackers": [],
        "training.num_threads": 1,
        "training.micro_batch_size": None,
        **changes,
    }
    if name.startswith("small"):
        changes["model.base"] = base
    if stage:
        # Small buffers, because a CPU only holds the written parts of large ones.
        settings = json.loads((CONFIGS / "deepspeed" / f"zero{stage}.json").read_text())
        settings["zero_optimization"] |= {"reduce_bucket_size": 5_000_000}
        (folder / f"zero{stage}.json").write_text(json.dumps(settings))
        changes["training.deepspeed"] = str(folder / f"zero{stage}.json")
    words = [f"--{key}={json.dumps(value) if not isinstance(value, str) else value}" for key, value in changes.items()]
    config = load(CONFIGS / "mini" / f"{config_name}.yaml", words)
    work = folder / name.replace(" ", "-").replace(",", "")
    long_tasks(work / "data", {"max_demonstrations_length": config.data.max_demonstrations_length})
    words += [f"--data.dir={work / 'data'}", f"--training.output_dir={work / 'run'}"]
    load(CONFIGS / "mini" / f"{config_name}.yaml", words).save(work / "config.yaml")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    if processes > 1:
        environment |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "ZERO": "1"}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29765"}
    command = [sys.executable, __file__, "--worker", str(work / "config.yaml"), str(work / "peak")]
    ranks = [{"RANK": str(i), "LOCAL_RANK": str(i)} if processes > 1 else {} for i in range(processes)]
    members = [subprocess.Popen(command, env=environment | rank) for rank in ranks]
    if any(member.wait() for member in members):
        sys.exit(f"{name}: a process failed")
    measured = int((work / "peak").read_text()) / 2**30
    return measured, estimate(config, devices=processes, zero_stage=stage).total_memory


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        train_and_measure(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; default: all")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        small_base(Path(folder, "base"))
        for name in args.cases or CASES:
            measured, predicted = run_case(name, Path(folder), str(Path(folder, "base")))
            print(
                f"{name:28} measured {measured:.2f} GiB, predicted {predicted:.2f}, {predicted / measured:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
