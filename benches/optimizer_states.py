"""Scores, memory and time of 8-bit Adam and Muon against Adam with float32 states.

The same configuration is trained with each optimizer for several seeds and scored on the validation tasks, with the
bytes of the optimizer's states and the seconds of a step.

    python benches/optimizer_states.py CONFIG.yaml --output-dir runs/adam --seeds 0 1 2 [--section.field VALUE ...]
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch

from hart.data.collections import load_tasks
from hart.evaluation.run import evaluate_model
from hart.model.hart_model import HartModel
from hart.training import config as configuration
from hart.training.optimizer import MUON
from hart.training.run_folder import read_metrics
from hart.training.train import train


def state_bytes(checkpoint: Path) -> int:
    """Bytes of all tensors that the optimizer keeps for its parameters."""
    states = torch.load(checkpoint / "optimizer.pt", weights_only=True)["state"]
    tensors = (value for state in states.values() for value in _leaves(state))
    return sum(value.numel() * value.element_size() for value in tensors)


def _leaves(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [leaf for each in value.values() for leaf in _leaves(each)] if isinstance(value, dict) else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--optimizers", nargs="+", default=["adamw", "adamw_8bit"])
    args, overrides = parser.parse_known_args()
    results: dict[str, list[dict[str, float]]] = {name: [] for name in args.optimizers}
    for seed in args.seeds:
        for optimizer, found in results.items():
            folder = args.output_dir / f"{optimizer}-{seed}"
            own = ["--training.seed", str(seed), "--training.optimizer", optimizer, "--training.output_dir"]
            if optimizer != MUON:
                own = ["--training.muon_rate", "null", *own]
            config = configuration.load(args.config, [*overrides, *own, str(folder)])
            final = train(config, quiet=True)
            rows = [row for row in read_metrics(folder / "metrics.jsonl") if "loss" in row]
            losses = [row["prediction_loss"] for row in rows]
            seconds = statistics.median(row["seconds_per_step"] for row in rows)
            scores = evaluate_model(HartModel.from_pretrained(final), load_tasks(config.data, "validation")).summary
            newest = folder / "checkpoints" / f"checkpoint-{config.training.max_steps}"
            row = {"loss": statistics.fmean(losses[-5:]), **scores, "seconds": seconds}
            row["state_mib"] = state_bytes(newest) / 2**20
            found.append(row)
            print(f"{optimizer:>10} seed {seed}: " + ", ".join(f"{k} {v:.4g}" for k, v in row.items()), flush=True)
    summary = {
        optimizer: {name: statistics.fmean(row[name] for row in rows) for name in rows[0]}
        for optimizer, rows in results.items()
    }
    (args.output_dir / "results.json").write_text(json.dumps({"runs": results, "means": summary}, indent=2))
    print(json.dumps(summary, indent=2))


if __name__ == "__main__":
    main()
