"""Several configurations × seeds: train, score on the test tasks, and put side by side.

Each run has a process of its own, so that its peak memory is its own and a failure stops nobody else. What is done is
not done again: a sweep that was interrupted goes on with the same command.
"""

import json
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

from hart.errors import HartError
from hart.runtime.files import write_json, write_text
from hart.runtime.launch import TERMINATED
from hart.training import config as configuration
from hart.training.config import RunConfig
from hart.training.run_folder import LOCK_FILE, holding, read_metrics

RESULTS_FILE, LOG_FILE, RUN_FOLDER = "results.json", "log.txt", "run"
TABLE_FILES = ("table.md", "table.json")


@dataclass(frozen=True)
class SweepRun:
    """One configuration with one seed, and where its files go."""

    name: str
    seed: int
    config: RunConfig
    folder: Path

    def results(self) -> dict[str, Any] | None:
        """What an earlier sweep found, if it was with this very configuration."""
        path = self.folder / RESULTS_FILE
        if not path.is_file():
            return None
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            return None
        return found if found.get("config") == self.config.to_dict() else None


def plan(
    out: Path,
    configs: Sequence[Path],
    seeds: Sequence[int],
    overrides: Sequence[str] = (),
    text_dir: str | None = None,
) -> list[SweepRun]:
    """All runs of a sweep, those of one configuration together, in the order given.

    A run is called after its file. `model.init_from` is replaced where it names the run of another configuration of
    the sweep (`runs/…/NAME/final`): fine-tuning then starts from the sweep's own pre-training, with the same seed.

    Args:
        overrides: as for `hart train`, for all configurations.
        text_dir: `data.dir` of those that pre-train on text.

    Raises:
        HartError: a configuration that is wrong, named twice, or comes before the one it starts from.
    """
    names = [path.stem for path in configs]
    for name in names:
        if names.count(name) > 1:
            raise HartError(f"two configurations are called {name}; a sweep tells runs apart by the name of the file")
    runs = []
    for path, name in zip(configs, names, strict=True):
        loaded = configuration.load(path, overrides)
        data = loaded.data
        if data.segments:
            data = data.changed(dir=text_dir)
        for seed in seeds:
            folder = out / name / f"seed-{seed}"
            model, start = loaded.model, loaded.model.init_from
            source = Path(start).parent.name if start else ""
            if source in names:
                if names.index(source) >= names.index(name):
                    raise HartError(f"{name} starts from {source}; name {source} before it")
                model = model.changed(init_from=str(out / source / f"seed-{seed}" / RUN_FOLDER / "final"))
            training = loaded.training.changed(seed=seed, output_dir=str(folder / RUN_FOLDER))
            runs.append(SweepRun(name, seed, RunConfig(model=model, data=data, training=training), folder))
    return runs


def sweep(out: Path, runs: Sequence[SweepRun], *, say: Callable[[str], None] = print) -> list[dict[str, Any]]:
    """Do what is not done, write the tables, and return their rows.

    Raises:
        HartError: `out` has other content, or another sweep is at work in it.
        KeyboardInterrupt: the run in progress goes on from its last checkpoint when the sweep is started again.
        SystemExit: SIGTERM came and was handed on; the run in progress has saved what it did (status 143).
    """
    try:
        foreign = out.exists() and (not out.is_dir() or any(not _ours(path, runs) for path in out.iterdir()))
    except OSError as error:
        raise HartError(f"{out}: cannot be read ({error.strerror})") from error
    if foreign:
        raise HartError(f"{out}: exists with other content; choose another folder for the sweep")
    with holding(out, "folder for the sweep"):
        return _sweep(out, runs, say)


def _sweep(out: Path, runs: Sequence[SweepRun], say: Callable[[str], None]) -> list[dict[str, Any]]:
    for number, run in enumerate(runs, start=1):
        where = f"[{number}/{len(runs)}] {run.name}, seed {run.seed}"
        if run.results() is not None:
            say(f"{where}: done before")
            continue
        say(f"{where} …")
        started = time.monotonic()
        failure = _in_a_process(run)
        say(f"{where}: {failure or f'{time.monotonic() - started:.0f} s'}")
        write_tables(out, runs)
    return write_tables(out, runs)


def _ours(path: Path, runs: Sequence[SweepRun]) -> bool:
    """Whether a sweep has made `path`: a table, or the folder of a configuration, of this sweep or an earlier one."""
    return path.name in {LOCK_FILE, *TABLE_FILES, *(run.name for run in runs)} or any(path.glob("seed-*"))


def _in_a_process(run: SweepRun) -> str:
    """Empty, or why it failed.

    Raises:
        SystemExit: this process got SIGTERM and has waited for the run to save.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    config = run.folder / "config.yaml"
    run.config.save(config)
    log = run.folder / LOG_FILE
    utf_8 = "sys.stdout.reconfigure(encoding='utf-8', errors='backslashreplace')"  # as the log is read below
    code = f"import sys; {utf_8}; from hart.training.sweep import run_one; sys.exit(run_one(*sys.argv[1:]))"
    with log.open("a", encoding="utf-8") as file:
        words = [sys.executable, "-c", code, str(config), str(run.folder / RESULTS_FILE)]
        child = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT)
        try:
            with _handing_on(child) as told:
                status = child.wait()
        finally:
            child.kill()
            child.wait()
    if told:
        sys.exit(TERMINATED)
    if status == 0:
        return ""
    lines = log.read_text(encoding="utf-8").strip().splitlines() or [f"exit status {status}"]
    return f"failed: {lines[-1]} (see {log})"


@contextmanager
def _handing_on(child: "subprocess.Popen[bytes]") -> Iterator[list[int]]:
    """Within, SIGTERM goes on to `child`, which saves and ends; the list holds it then."""
    told: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield told  # only the main thread may handle signals
        return

    def hand_on(number: int, _: Any) -> None:
        told.append(number)
        child.terminate()

    before = signal.signal(signal.SIGTERM, hand_on)
    try:
        yield told
    finally:
        signal.signal(signal.SIGTERM, before)


def run_one(config_path: str, results_path: str) -> int:
    """Train and score one run in this process; returns its exit status."""
    from hart.data.collections import load_tasks
    from hart.evaluation.run import evaluate_model
    from hart.model.hart_model import HartModel
    from hart.runtime.devices import select_device
    from hart.training.stopping import Stopped
    from hart.training.train import train

    config = configuration.load(config_path)
    try:
        final = train(config, quiet=True)
        peak = _peak_memory()
        model = HartModel.from_pretrained(final, device=select_device())
        source = model.peft_source
        trained = 0 if source is None else sum(p.numel() for p in source.parameters())
        trained += sum(p.numel() for p in model.main.model.parameters()) if model.train_main else 0
        rows = read_metrics(final.parent / "metrics.jsonl")
        losses = [row["prediction_loss"] for row in rows if "prediction_loss" in row]
        times = [row["seconds_per_step"] for row in rows if "seconds_per_step" in row]
        results: dict[str, Any] = {
            "config": config.to_dict(),
            "trained_parameters": trained,
            "seconds_per_step": median(times[1:] or times),
            "peak_memory_gib": peak,
            "loss_start": losses[0],
            "loss_end": losses[-1],
        }
        if not config.data.segments:
            scores = evaluate_model(model, load_tasks(config.data, "test"))
            results |= {**scores.summary, "tasks": scores.per_task}
        write_json(results_path, results)
    except HartError as error:
        print(error)
        return 2
    except Stopped as stop:
        print(stop)
        return TERMINATED
    return 0


def _peak_memory() -> float:
    """GiB of main memory at most so far, or of GPU memory where there is one."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def write_tables(out: Path, runs: Sequence[SweepRun]) -> list[dict[str, Any]]:
    """table.md and table.json from the results so far, one row for each configuration."""
    names = list(dict.fromkeys(run.name for run in runs))
    found = {(run.name, run.seed): run.results() for run in runs}
    rows = [_row(name, [r for (n, _), r in found.items() if n == name and r], found, names[0]) for name in names]
    write_json(out / "table.json", rows)
    write_text(out / "table.md", markdown(rows))
    return rows


def _row(
    name: str, done: list[dict[str, Any]], found: dict[tuple[str, int], dict[str, Any] | None], first: str
) -> dict[str, Any]:
    row: dict[str, Any] = {"system": name, "runs": len(done)}
    for key in ("trained_parameters", "seconds_per_step", "peak_memory_gib", "loss_start", "loss_end"):
        row[key] = fmean(result[key] for result in done) if done else None
    for key in ("rouge_l", "exact_match", "accuracy"):
        scores = [result[key] for result in done if key in result]
        row[key] = fmean(scores) if scores else None
        row[f"{key}_deviation"] = stdev(scores) if len(scores) > 1 else None
    # Paired by seed and task: what a task is like, and what a seed did to it, cancels out.
    by = "accuracy" if any("accuracy" in result for result in done) else "rouge_l"
    differences = [
        found_score[by] - first_result["tasks"][task][by]
        for (system, seed), result in found.items()
        if system == name and name != first and result and (first_result := found.get((first, seed)))
        for task, found_score in result.get("tasks", {}).items()
        if by in first_result.get("tasks", {}).get(task, {})
    ]
    row["difference"] = fmean(differences) if differences else None
    row["difference_error"] = stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else None
    return row


# Key → heading and format.
_COLUMNS: dict[str, tuple[str, str]] = {
    "runs": ("runs", "d"),
    "trained_parameters": ("trained parameters", ",.0f"),
    "seconds_per_step": ("s / step", ".2f"),
    "peak_memory_gib": ("peak memory (GiB)", ".2f"),
    "loss_start": ("loss, start", ".2f"),
    "loss_end": ("loss, end", ".2f"),
    "rouge_l": ("ROUGE-L", ".2f"),
    "rouge_l_deviation": ("±", ".2f"),
    "exact_match": ("exact match", ".2f"),
    "accuracy": ("accuracy", ".2f"),
    "accuracy_deviation": ("±", ".2f"),
    "difference": ("− first row's", "+.2f"),
    "difference_error": ("± (standard error over tasks and seeds)", ".2f"),
}


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a table; a column that nobody fills is left out."""
    used = [key for key in _COLUMNS if any(row[key] is not None for row in rows)]
    lines = ["| system | " + " | ".join(_COLUMNS[key][0] for key in used) + " |", "|---" * (len(used) + 1) + "|"]
    for row in rows:
        cells = ("–" if row[key] is None else format(row[key], _COLUMNS[key][1]) for key in used)
        lines.append(f"| {row['system']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
