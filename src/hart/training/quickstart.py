"""The quickstart: train a hypernetwork for the bundled base, evaluate on unseen tasks, adapt to a new task.

It only uses parts of the package: a small pre-trained T5 (`mini-base`) and the procedural tasks. The un-adapted base
and a baseline that copies a demonstration are scored, too, for comparison.
"""

import functools
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TaskID

from hart.data.collections import load_tasks
from hart.data.tasks import Task
from hart.evaluation.answers import ANSWERS, AnswerResults, TaskResult, comparison_table, copy_demonstration
from hart.evaluation.base import System
from hart.evaluation.cards import note_scores
from hart.evaluation.plots import plot_losses, plot_task_scores
from hart.evaluation.run import evaluate
from hart.evaluation.systems import base_system, hart_system
from hart.model.hart_model import HartModel
from hart.runtime.devices import select_device
from hart.runtime.files import write_json
from hart.runtime.launch import run_hart
from hart.training.config import DataConfig, ModelConfig, RunConfig, TrainingConfig
from hart.training.run_folder import RunFolder, holding, read_metrics
from hart.training.train import train

INSTANCES = 20

NEW_TASK = Task(
    definition="You are given a list of words. Keep only the fruits, then end the answer with the word done.",
    demonstrations=[
        ("apple saw pear doctor lime", "apple pear lime done"),
        ("truck cherry grape black", "cherry grape done"),
    ],
    name="a new task",
)
NEW_QUERIES = ("plum lion hat banana", "red melon fig train peach nurse")


def quickstart_config(output_dir: str, *, seed: int = 0) -> RunConfig:
    """The configuration of the quickstart, also in configs/mini/hart_procedural.yaml.

    Scheme, optimizer, queries per task, rates, `definition_first` and `init_scale` were chosen on the validation tasks
    of the collection (docs/LOG.md), never on the test tasks. The paper's own scheme is `{"name": "autoregressive"}`
    (docs/results.md compares them).
    """
    return RunConfig(
        model=ModelConfig(
            base="mini-base",
            decoder_layers=2,
            scheme={"name": "causal", "rows": 8},
            peft=[{"kind": "prefix", "length": 8, "init_scale": 1.0}],
        ),
        data=DataConfig(
            collection="procedural",
            demonstrations="sampled",
            definition_first=0.85,
            max_demonstrations_length=256,
            max_query_length=64,
            max_target_length=32,
        ),
        training=TrainingConfig(
            output_dir=output_dir,
            max_steps=1200,
            batch_size=32,
            queries_per_task=4,
            learning_rate=2e-3,
            warmup_steps=50,
            optimizer="muon",
            muon_rate=3e-3,
            alpha=0.0,
            save_every=250,
            seed=seed,
        ),
    )


@dataclass(frozen=True)
class QuickstartResult:
    """The paths of the files, the scores of all systems, and the seconds of each part."""

    folder: Path
    results: list[AnswerResults]
    seconds: dict[str, float]


def quickstart(
    config: RunConfig, console: Console, *, instances: int = INSTANCES, processes: int = 1
) -> QuickstartResult:
    """Train, evaluate on the unseen tasks, plot, and adapt to one new task.

    Args:
        config: the run's configuration, e.g. from `quickstart_config`.
        console: console for progress and tables.
        instances: number of queries per unseen task.
        processes: number of training processes, each with its share of every batch; the result is the same up to
            rounding.

    Raises:
        HartError: the output folder has other content, or cannot be written.
    """
    folder = Path(config.training.output_dir)
    seconds: dict[str, float] = {}
    console.print(f"[bold]1. Training[/bold] a hypernetwork for {config.model.base} (frozen) in {folder}")
    started = time.monotonic()
    final = _train(config, processes)
    seconds["training"] = time.monotonic() - started

    console.print("[bold]2. Evaluation[/bold] on tasks it has never seen")
    with holding(folder, "output folder"):
        return _after_training(config, console, final, instances, seconds)


def _after_training(
    config: RunConfig, console: Console, final: Path, instances: int, seconds: dict[str, float]
) -> QuickstartResult:
    folder, started = final.parent, time.monotonic()
    model = HartModel.from_pretrained(final, device=select_device())
    tasks = load_tasks(config.data.changed(max_test_instances=instances), "test")
    results = evaluate_systems(model, tasks, console)
    seconds["evaluation"] = time.monotonic() - started

    rows = read_metrics(folder / "metrics.jsonl")
    plot_losses(rows, folder / "losses.png", alpha=config.training.alpha)
    plot_task_scores(results, folder / "tasks.png")
    started = time.monotonic()
    adaptation = model.adapt(NEW_TASK)
    seconds["adapting one task"] = time.monotonic() - started
    answers = model.generate(list(NEW_QUERIES), adaptation)

    # Saved before printing, which may fail on a terminal.
    summary = {result.system: vars(result.overall) for result in results}
    note_scores(final, results[-1], f"procedural, test: {len(tasks)} tasks")
    write_json(folder / "results.json", {"seconds": seconds, "systems": summary, "tasks": _per_task(results)})
    console.print(comparison_table(results, title=f"{len(tasks)} unseen tasks, {instances} queries each"))
    _print_new_task(console, answers, seconds["adapting one task"])
    console.print(f"Written to {folder}: results.json, losses.png, tasks.png, final/ (the trained model)")
    return QuickstartResult(folder, results, seconds)


def _train(config: RunConfig, processes: int) -> Path:
    if processes == 1:
        return train(config)
    folder = Path(config.training.output_dir)
    RunFolder.check_free(folder)
    with holding(folder):  # checked here for an error of one line; then the first process holds the folder
        run = RunFolder(config)
        if not RunFolder.is_complete(run.path):
            run.save_config()  # for the processes, as the folder may have moved
    if not RunFolder.is_complete(run.path):
        run_hart(["train", str(run.path / "config.yaml")], processes)
    return run.final


def evaluate_systems(model: HartModel, tasks: list[Task], console: Console) -> list[AnswerResults]:
    """The results of the un-adapted base in both forms, the copy baseline, and last the trained system."""
    form, main = model.input_format, model.main
    in_its_input = "base, definition and demonstrations in its input"
    systems = (
        base_system(main, form, in_context=False, name="base, query only"),
        base_system(main, form, in_context=True, name=in_its_input),
        System("copy of the first demonstration", copy_demonstration),
        hart_system(model, name="HART"),
    )
    results = []
    with Progress(console=console, transient=True) as progress:
        for system in systems:
            bar = progress.add_task(system.name, total=len(tasks))
            # A partial instead of a lambda, which would use the bar of a later iteration.
            advance = functools.partial(_advance, progress, bar)
            results.append(evaluate(system, tasks, ANSWERS, on_task=advance))
    return results


def _advance(progress: Progress, bar: TaskID, _: TaskResult) -> None:
    progress.advance(bar)


def _print_new_task(console: Console, answers: list[str], seconds: float) -> None:
    console.print("[bold]3. One new task[/bold], adapted in one forward pass:")
    console.print(f"   {NEW_TASK.definition}")
    for demonstration in NEW_TASK.demonstrations:
        console.print(f"   {demonstration.input} → {demonstration.output}")
    console.print(f"   adapted in {1000 * seconds:.0f} ms; its answers:")
    for query, answer in zip(NEW_QUERIES, answers, strict=True):
        console.print(f"   {query} → [bold]{answer}[/bold]", highlight=False)


def _per_task(results: list[AnswerResults]) -> list[dict[str, object]]:
    return [
        {
            "name": tasks[0].name,
            "category": tasks[0].categories[0],
            "exact_match": {r.system: t.score.exact_match for r, t in zip(results, tasks, strict=True)},
            "rouge_l": {r.system: t.score.rouge_l for r, t in zip(results, tasks, strict=True)},
        }
        for tasks in zip(*(result.tasks for result in results), strict=True)
    ]
