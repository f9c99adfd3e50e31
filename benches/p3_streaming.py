"""Memory during the sampling of training examples from a very large P3 subset.

    python benches/p3_streaming.py --rows 5000000 --output-dir runs/streaming

A subset of that many rows is generated as parquet (P3's largest, gigaword, has 3.8 million) and loaded as in `hart
train`; then its average length is measured, and examples with 16 demonstrations are drawn. Each size runs in a separate
process; the report has the peak of its anonymous memory (which cannot be paged out), sampled every 20 ms, and those
with a tenth of the rows and with 1000 rows.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

SMALL = 1000


def generate(folder: Path, rows: int) -> None:
    import pyarrow
    import pyarrow.parquet

    path = folder / "gigaword_made_up" / "train-00000.parquet"
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    names = ("inputs_pretokenized", "targets_pretokenized")
    schema = pyarrow.schema([(name, pyarrow.string()) for name in names])
    words = "in a statement on monday the company said that its profit had risen by more than ten percent over".split()
    with pyarrow.parquet.ParquetWriter(path.with_suffix(".partial"), schema) as writer:
        for first in range(0, rows, 100_000):
            numbers = range(first, min(first + 100_000, rows))
            inputs = [f"{i}: " + " ".join(words[(i * k) % 19] for k in range(1, 40)) + " Sum this up." for i in numbers]
            targets = [f"profit number {i} rises" for i in numbers]
            writer.write_table(pyarrow.table([inputs, targets], schema=schema))
    path.with_suffix(".partial").rename(path)


def anonymous_memory() -> int:
    """Anonymous memory of this process in KiB, which is not backed by a file."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1])
    raise SystemExit("this bench needs Linux's /proc")


def measure(folder: Path, examples: int) -> None:
    """Load the subset, measure lengths and draw examples in this (separate) process."""
    from transformers import AutoTokenizer

    from hart.data.input_format import InputFormat
    from hart.data.lengths import without_long
    from hart.data.p3 import rows
    from hart.data.p3.names import sampling_size
    from hart.data.p3.subsets import load_p3
    from hart.data.sampling import TrainingDataset
    from hart.model.bundled import resolve_base

    rows.IN_MEMORY_BYTES = 0  # the small subset is also read from disk
    import datasets

    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(resolve_base("mini-base"))
    tokenizer("warm up")
    peak, done = anonymous_memory(), threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.02):
            peak = max(peak, anonymous_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.monotonic()
    tasks = load_p3(folder, "train", subsets=["gigaword_made_up"])
    kept, _ = without_long(tasks, tokenizer, 320)
    sizes = [sampling_size(task.name, len(task.instances)) for task in kept]
    loaded = time.monotonic()
    dataset = TrainingDataset(
        kept,
        tokenizer,
        InputFormat(num_demonstrations=16, prompt_format="prompts", input_eos=False),
        length=examples,
        seed=0,
        sizes=sizes,
        demonstrations="sampled",
    )
    for index in range(examples):
        dataset[index]
    end = time.monotonic()
    done.set()
    watcher.join()
    result = {
        "rows": len(kept[0].instances),
        "peak_mib": peak / 1024,
        "load_s": loaded - start,
        "ms_per_example": 1000 * (end - loaded),
    }
    result["ms_per_example"] /= examples
    print(json.dumps(result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--examples", type=int, default=2000)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        return measure(args.measure, args.examples)
    for rows in (SMALL, args.rows // 10, args.rows):
        folder = args.output_dir / str(rows)
        generate(folder, rows)
        words = [sys.executable, __file__, "--measure", str(folder), "--examples", str(args.examples)]
        # A new cache each time, as the conversion at the first use takes most memory.
        with tempfile.TemporaryDirectory(dir=args.output_dir) as cache:
            environment = {**os.environ, "HF_DATASETS_CACHE": cache, "HART_CACHE": cache, "HF_HUB_OFFLINE": "1"}
            found = subprocess.run([*words, "--output-dir", "."], env=environment, stdout=subprocess.PIPE, check=True)
        result = json.loads(found.stdout.splitlines()[-1])
        text = sum(path.stat().st_size for path in folder.rglob("*.parquet")) / 2**20
        print(
            f"{result['rows']:>9,} rows ({text:,.0f} MiB of parquet): peak {result['peak_mib']:.0f} MiB, "
            f"loaded in {result['load_s']:.1f} s, {result['ms_per_example']:.2f} ms an example",
            flush=True,
        )


if __name__ == "__main__":
    main()
