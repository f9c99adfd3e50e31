"""The quickstart over seeds, and with prefixes only or fusion only: mean and range on the unseen tasks.

python benches/quickstart_seeds.py --output-dir runs/seeds [--seeds 0 1 2] [--systems HART ...] [--base mini-base]

Runs that are complete are not repeated, so several processes can share the work (each with its own seeds or systems)
and a last call prints the table of all. Each run uses one thread unless OMP_NUM_THREADS says otherwise.
"""

import argparse
import dataclasses
import json
import statistics
from pathlib import Path

from rich.console import Console
from rich.table import Table

from hart.data.collections import load_tasks
from hart.evaluation.answers import ANSWERS
from hart.evaluation.run import evaluate
from hart.evaluation.systems import hart_system
from hart.model.hart_model import HartModel
from hart.runtime.files import write_json
from hart.training.config import RunConfig
from hart.training.quickstart import INSTANCES, evaluate_systems, quickstart_config
from hart.training.train import train

SYSTEMS = ("HART", "HART, prefixes only", "HART, fusion only")


def configuration(system: str, seed: int, base: str, folder: Path) -> RunConfig:
    config = quickstart_config(str(folder), seed=seed)
    model = config.model.changed(base=base)
    if system == "HART, prefixes only":
        model = model.changed(fusion=False)
    if system == "HART, fusion only":
        model = model.changed(peft=[])
    return config.changed(model=model)


def run_one(system: str, seed: int, base: str, directory: Path, console: Console) -> None:
    """Train and evaluate one system; its scores go to `scores.json` in the run's folder."""
    folder = directory / f"{system.lower().replace(', ', '-').replace(' ', '-')}-{seed}"
    if (folder / "scores.json").exists():
        return
    config = configuration(system, seed, base, folder)
    model = HartModel.from_pretrained(train(config, quiet=True))
    tasks = load_tasks(config.data.changed(max_test_instances=INSTANCES), "test")
    if system == "HART" and seed == 0:
        results = evaluate_systems(model, tasks, console)
        results[-1] = dataclasses.replace(results[-1], system=system)
    else:
        results = [evaluate(hart_system(model, name=system), tasks, ANSWERS)]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    seconds = [row["seconds_per_step"] for row in rows if "seconds_per_step" in row]
    scores = {
        "seed": seed,
        "minutes": statistics.median(seconds) * config.training.max_steps / 60,
        "systems": {result.system: vars(result.overall) for result in results},
    }
    write_json(folder / "scores.json", scores)


def table(directory: Path) -> Table:
    """Mean and range over the seeds that are there."""
    found: dict[str, list[dict[str, float]]] = {}
    for path in sorted(directory.glob("*/scores.json")):
        content = json.loads(path.read_text())
        for system, score in content["systems"].items():
            found.setdefault(system, []).append(score | {"minutes": content["minutes"]})
    result = Table("system", "runs", "exact match", "range", "ROUGE-L", "range", "minutes")
    for system, scores in found.items():
        row = [system, str(len(scores))]
        for metric in ("exact_match", "rouge_l"):
            values = [score[metric] / 100 for score in scores]
            row += [f"{statistics.mean(values):.3f}", f"{min(values):.3f}–{max(values):.3f}"]
        trained = system.startswith("HART")
        result.add_row(*row, f"{statistics.mean(s['minutes'] for s in scores):.1f}" if trained else "–")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--base", default="mini-base")
    arguments = parser.parse_args()
    console = Console(width=120)
    for seed in arguments.seeds:
        for system in arguments.systems:
            run_one(system, seed, arguments.base, arguments.output_dir, console)
    console.print(table(arguments.output_dir))


if __name__ == "__main__":
    main()
