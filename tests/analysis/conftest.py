"""Fixtures: folders of sweeps as `hart sweep` writes them, with made-up numbers; runs without training."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hart.data.p3.names import dataset_of, held_out
from hart.model.hart_model import HartModel
from hart.training.config import RunConfig
from hart.training.run_folder import RunFolder

FineTuned = {"weights": "none", "train_main": True, "fusion": False, "peft": []}
MODELS: dict[str, dict[str, Any]] = {
    "hart": {},
    "hypertuning": {"scheme": {"name": "shared"}},
    "causal": {"scheme": {"name": "causal"}},
    "top_down": {"scheme": {"name": "autoregressive", "order": "top_down"}},
    "ft_zero_shot": FineTuned,
}


def configuration(row: str, collection: str = "procedural", **changes: Any) -> RunConfig:
    """A row's configuration: HART's with alpha 1, all others with 0."""
    data: dict[str, Any] = {"collection": collection}
    if collection == "p3":
        data |= {"demonstrations": "sampled", "num_demonstrations": 16}
    if row == "ft_zero_shot":
        data["demonstrations_to"] = "nowhere"
    training = {"alpha": 1.0 if row == "hart" else 0.0, "max_steps": 100}
    model = {"base": "mini-base", **MODELS.get(row, {})}
    config = RunConfig().changed(data=data, model=model, training=training)
    return config.changed(**changes) if changes else config


def task_scores(row: str, seed: int, collection: str, tasks: int = 12) -> dict[str, dict[str, float]]:
    """Scores that differ by row, seed and task, always the same."""
    random = np.random.default_rng([sum(map(ord, row)), seed])
    level = 40 + 4 * list(MODELS).index(row) if row in MODELS else 50
    if collection == "p3":
        names = [f"{d}_{t}" for sets in held_out().values() for d, ts in sets.items() for t in sorted(ts)[:2]]
        names = sorted({t for sets in held_out().values() for ts in sets.values() for t in sorted(ts)[:2]})
        return {name: {"accuracy": float(level + random.normal(0, 4))} for name in names}
    hard = np.random.default_rng(0).normal(0, 15, tasks)
    scores = np.clip(level + hard + random.normal(0, 3) + random.normal(0, 4, tasks), 0, 100)
    return {
        f"task_{number}": {"rouge_l": float(s) / 2 + 50, "exact_match": float(s), "instances": 20}
        for number, s in enumerate(scores)
    }


def p3_columns(accuracies: Mapping[str, float]) -> dict[str, float]:
    """Mean accuracy of each column of the paper's table that has tasks."""
    own = {
        column: [value for name, value in accuracies.items() if dataset_of(name) in datasets]
        for column, datasets in held_out().items()
    }
    return {column: float(np.mean(values)) for column, values in own.items() if values}


def write_run(
    folder: Path,
    row: str,
    seed: int,
    *,
    collection: str = "procedural",
    config: RunConfig | None = None,
    finished: bool = True,
    **more: Any,
) -> Path:
    """One run: config.yaml, run/metrics.jsonl and, if it is finished, results.json; `more` goes into that."""
    own = folder / row / f"seed-{seed}"
    config = (config or configuration(row, collection)).changed(training={"seed": seed})
    config.save(own / "config.yaml")
    (own / "run").mkdir(exist_ok=True)
    steps = range(10, 101 if finished else 51, 10)
    losses = [{"step": s, "prediction_loss": 4.0 * 0.97**s + 0.1 * seed, "consistency_loss": 0.0} for s in steps]
    (own / "run" / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in losses))
    if finished:
        tasks = more.pop("tasks", None) or task_scores(row, seed, collection)
        names = ("accuracy",) if collection == "p3" else ("rouge_l", "exact_match")
        means: dict[str, Any] = {name: float(np.mean([each[name] for each in tasks.values()])) for name in names}
        if collection == "p3":
            means["columns"] = p3_columns({name: each["accuracy"] for name, each in tasks.items()})
        sizes = {"trained_parameters": 1_234_567, "seconds_per_step": 0.5, "peak_memory_gib": 1.5}
        results = {"config": config.to_dict(), **sizes, "loss_start": 4.0, "loss_end": 0.2, **means, "tasks": tasks}
        (own / "results.json").write_text(json.dumps(results | more))
    return own


Write = Callable[..., Path]


@pytest.fixture
def sweep_folder(tmp_path: Path) -> Write:
    """Write the folder of a sweep: rows × seeds, with what `study.json` says of them."""

    def write(
        rows: Sequence[str] = tuple(MODELS),
        seeds: Sequence[int] = (0, 1, 2),
        *,
        collection: str = "procedural",
        paper: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> Path:
        folder = tmp_path / "study"
        for row in rows:
            for seed in seeds:
                write_run(folder, row, seed, collection=collection, **more)
        listing = {
            row: {"seeds": [*seeds], "paper": [(paper or {})[row]] if row in (paper or {}) else []} for row in rows
        }
        (folder / "study.json").write_text(json.dumps({"study": "toy", "rows": listing}))
        return folder

    return write


MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(build_config: Callable[..., RunConfig], tmp_path: Path) -> MakeRun:
    """Writes a run's folder.

    `losses` are those of each step; metrics.jsonl has their means over ten steps, steps.csv each unless `steps=False`.
    With `final=True` there is a model. Other options are those of `build_config`.
    """

    def make(
        name: str, losses: Any, *, steps: bool = True, final: bool = False, consistency: float = 0.5, **options: Any
    ) -> Path:
        config = build_config(
            tmp_path / name, **{"max_steps": max(1, len(losses)), "log_every": 10, "alpha": 0.0, **options}
        )
        run = RunFolder(config)
        losses = np.asarray(losses, float).tolist()
        states = [0.0, *[consistency] * (len(losses) - 1)]
        if steps and losses:
            run.append_steps(1, {"loss": losses, "prediction_loss": losses, "consistency_loss": states})
        for end in range(10, len(losses) + 1, 10):
            mean = float(np.mean(losses[end - 10 : end]))
            row = {"loss": mean, "prediction_loss": mean, "consistency_loss": float(np.mean(states[end - 10 : end]))}
            run.append_metrics({"step": end, **row})
        if final:
            HartModel.from_config(config.model, config.data, seed=config.training.seed).save_pretrained(run.final)
        return run.path

    return make


@pytest.fixture
def falling() -> Callable[..., np.ndarray]:
    """A loss that falls from about 4 to about 1 with noise, and with spikes of 2 at the given steps (from 1)."""

    def losses(steps: int = 400, *, noise: float = 0.05, spikes: tuple[int, ...] = (), seed: int = 0) -> np.ndarray:
        drawn = np.random.default_rng(seed).normal(size=steps)
        values = 1 + 3 * np.exp(-np.arange(steps) / (steps / 8)) + noise * drawn
        values[[step - 1 for step in spikes]] += 2
        return values

    return losses
