"""Memory of `hart predict` by the number of rows, which should not grow as files are read a few rows at a time.

    python benches/predict_memory.py --rows 10000 1000000

For each number of rows and each of `--formats`, a separate process answers a CSV file with an adaptation of `mini`.
Answers are constants instead of the model's, so only reading, checking, tokenisation and writing are measured. The
output has one JSON object per line: rows, format, seconds, and the peak resident set in MiB.
"""

import argparse
import csv
import json
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

from hart import HartModel, Task
from hart.cli import main as hart
from hart.model.main_model import MainModel


def answer(folder: Path, source: Path, target: Path, results: "multiprocessing.Queue[dict[str, float]]") -> None:
    """Run the command in this process."""
    MainModel.generate = lambda self, rows, *_, **__: ["an answer"] * len(rows)  # type: ignore[method-assign,assignment]
    start = time.perf_counter()
    words = ("predict", folder, "--input-file", source, "--input-field", "text", "--output-file", target)
    assert hart([str(word) for word in words]) == 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    results.put({"seconds": round(time.perf_counter() - start, 1), "peak_mib": round(peak)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--formats", nargs="+", default=["csv", "parquet"])
    args = parser.parse_args()
    processes = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        HartModel.from_pretrained("mini").adapt(Task("Keep the fruits.", [("a pear", "pear")])).save_pretrained(
            folder / "adaptation"
        )
        for rows in args.rows:
            source = folder / f"{rows}.csv"
            with source.open("w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(("id", "text"))
                writer.writerows((i, f"apple saw pear doctor lime {i}") for i in range(rows))
            for form in args.formats:
                results = processes.Queue()
                job = processes.Process(
                    target=answer, args=(folder / "adaptation", source, folder / f"out.{form}", results)
                )
                job.start()
                print(json.dumps({"rows": rows, "format": form, **results.get()}), flush=True)
                job.join()


if __name__ == "__main__":
    main()
