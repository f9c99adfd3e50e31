"""Kill a training run repeatedly at random moments, and check that nothing is lost.

One run is not interrupted. Another one is killed with SIGKILL at a random moment after its start and restarted with the
same command, `--kills` times, and then runs to its end. The report has the state that each start found (the checkpoint
from which it resumed, half-written ones), and whether losses, scores and final weights equal those of the uninterrupted
run, bit for bit.

    python benches/kill_and_resume.py CONFIG.yaml --output-dir runs/kills --kills 20 [--section.field VALUE ...]
"""

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from hart.runtime.files import damage
from hart.training.run_folder import read_metrics


def command(args: argparse.Namespace, overrides: list[str], folder: Path) -> list[str]:
    own = ["--device", "cpu", "--training.output_dir", str(folder)]
    return [sys.executable, "-m", "hart", "train", str(args.config), *overrides, *own]


def rows(folder: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "seconds_per_step"} for row in read_metrics(folder / "metrics.jsonl")]


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").glob("checkpoint-*"))


def hidden(folder: Path) -> set[str]:
    """Hidden files and folders: half-written ones, and the lock file of every run."""
    return {str(path.relative_to(folder)) for path in folder.rglob(".*")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args, overrides = parser.parse_known_args()
    alone, killed = args.output_dir / "alone", args.output_dir / "killed"
    shutil.rmtree(args.output_dir, ignore_errors=True)

    began = time.monotonic()
    subprocess.run(command(args, overrides, alone), check=True, stdout=subprocess.DEVNULL)
    whole = time.monotonic() - began
    print(f"left alone: {whole:.1f} s")

    # Half of the moments are spread over the whole run, half are during the writing of a checkpoint.
    draw = random.Random(args.seed)
    kills = while_saving = damaged = 0
    finished = False
    while kills < args.kills:
        process = subprocess.Popen(command(args, overrides, killed), stdout=subprocess.DEVNULL)
        wait_for_save, until = draw.random() < 0.5, time.monotonic() + draw.uniform(0.2, 1.0) * whole
        partial = killed / "checkpoints" / ".partial"
        while process.poll() is None and time.monotonic() < until:
            if wait_for_save and partial.exists():
                time.sleep(draw.uniform(0, 0.05))
                break
            time.sleep(0.001)
        saving = partial.exists()
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            while_saving += saving
        elif (killed / "final").exists():
            # The run ended before its moment, so a new run begins.
            finished = True
            shutil.rmtree(killed)
            continue
        else:
            sys.exit(f"a start failed with exit status {process.returncode}")
        wrong = {name: damage(killed / "checkpoints" / name) for name in checkpoints(killed)}
        damaged += any(wrong.values())
        print(f"kill {kills}: {'while saving' if saving else 'in training'}; whole: {', '.join(wrong) or 'none yet'}")
    subprocess.run(command(args, overrides, killed), check=True, stdout=subprocess.DEVNULL)

    one, other = (load_file(folder / "final" / "model.safetensors") for folder in (alone, killed))
    result = {
        "kills": kills,
        "while_saving": while_saving,
        "damaged_checkpoints": damaged,
        "runs_that_ended_before_their_kill": finished,
        "same_metrics": rows(alone) == rows(killed),
        "same_weights": all(torch.equal(one[name], other[name]) for name in one | other),
        "left_over": sorted(hidden(killed) - hidden(alone)),
    }
    print(json.dumps(result, indent=2))
    good = result["same_metrics"] and result["same_weights"] and not damaged and not result["left_over"]
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
