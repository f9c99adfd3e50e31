"""Memory and time of two training steps of Qwen3-0.6B and Llama-3.2-1B on a CPU, in float32, with random weights.

    python benches/decoder_only_step.py [CONFIG.yaml ...]

Each configuration runs in a separate process, with two queries of 256 + 64 tokens, demonstrations of 512 and plain
AdamW. The measurement is that of `benches/memory_estimate.py`, compared with `hart estimate` for the same settings. It
does not start, or is stopped, if less than 4 GiB would be left for other processes.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from memory_estimate import CONFIGS, LENGTHS, long_tasks, train_and_measure

LEAST = 4 * 2**30
CASES = [CONFIGS / folder / "hart_lora_sni.yaml" for folder in ("qwen3-0.6b", "llama-3.2-1b")]
SETTINGS: dict[str, Any] = {
    **{f"data.{name}": length for name, length in LENGTHS.items()},
    "training.batch_size": 2,
    "training.micro_batch_size": 2,
    "training.max_steps": 2,
    "training.warmup_steps": 0,
    "training.save_every": 2,
    "training.log_every": 1,
    "training.optimizer": "adamw",
    "training.trackers": [],
    "training.bf16": False,  # few CPUs multiply bfloat16
    "model.dtype": "float32",
    "training.num_workers": 0,
}


def stand_in(name: str, folder: Path) -> Path:
    """A checkpoint with the sizes of a known base, random weights in bfloat16, and the bundled tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, T5ForConditionalGeneration

    from hart.model.bundled import resolve_base
    from hart.training.blueprint import base_config

    torch.manual_seed(0)
    config = base_config(name)
    torch.set_default_dtype(torch.bfloat16)
    if config.model_type == "t5":
        config.decoder_start_token_id = 0
        model: Any = T5ForConditionalGeneration(config)
    else:
        model = AutoModelForCausalLM.from_config(config)
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder / name)
    AutoTokenizer.from_pretrained(resolve_base("mini-base")).save_pretrained(folder / name)
    return folder / name


def available() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def watched(*words: str | Path) -> None:
    """Run this file in a separate process, which is stopped if memory runs out."""
    worker = subprocess.Popen([sys.executable, __file__, *map(str, words)])
    while worker.poll() is None:
        if available() < LEAST:
            worker.kill()
            sys.exit("less than 4 GiB are left; ended")
        time.sleep(0.2)
    if worker.returncode:
        sys.exit(f"a process failed: {words[0]}")


def measure(path: Path, folder: Path) -> None:
    from hart.training.config import load
    from hart.training.estimate import estimate
    from hart.training.run_folder import read_metrics

    config = load(path)
    words = [f"--{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in SETTINGS.items()]
    predicted = estimate(load(path, words)).total_memory
    if available() < predicted * 2**30 + LEAST + 2**30:
        sys.exit(f"{path}: needs {predicted:.1f} GiB, and 4 are to be left")
    for field in ("base", "hypernetwork_init"):
        name = getattr(config.model, field)
        if not (folder / name).exists():
            watched("--make", name, folder)
        words.append(f"--model.{field}={folder / name}")
    if not (folder / "data").exists():
        long_tasks(folder / "data", {"max_demonstrations_length": LENGTHS["max_demonstrations_length"]})
    run = folder / path.parent.name
    words += [f"--data.dir={folder / 'data'}", f"--training.output_dir={run}"]
    load(path, words).save(folder / "config.yaml")
    watched("--worker", folder / "config.yaml", folder / "peak")
    seconds = [row["seconds_per_step"] for row in read_metrics(run / "metrics.jsonl") if "seconds_per_step" in row]
    print(
        f"{path.parent.name}/{path.stem}: {int((folder / 'peak').read_text()) / 2**30:.2f} GiB, predicted "
        f"{predicted:.2f}; seconds of the steps {', '.join(f'{each:.1f}' for each in seconds)}",
        flush=True,
    )


def main() -> None:
    match sys.argv[1:]:
        case ["--worker", config, peak]:
            train_and_measure(config, peak)
        case ["--make", name, folder]:
            stand_in(name, Path(folder))
        case paths:
            with tempfile.TemporaryDirectory() as folder:
                for path in map(Path, paths or CASES):
                    measure(path, Path(folder))


if __name__ == "__main__":
    main()
