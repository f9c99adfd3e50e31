"""One run of a sweep in its own process: train, score, and write results.json.

python -m hart.training.sweep_run CONFIG RESULTS [ABOUT [PROCESSES [SPLIT]]]
"""

import dataclasses
import os
import resource
import signal
import sys
import threading
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from hart.errors import HartError
from hart.runtime.environment import host_facts
from hart.runtime.files import read_json, write_json
from hart.runtime.launch import TERMINATED, run_hart
from hart.training import config as configuration
from hart.training.config import RunConfig
from hart.training.run_folder import RunFolder, read_metrics
from hart.training.sweep_plan import PEAK

if TYPE_CHECKING:
    from hart.model.hart_model import HartModel

GRACE_SECONDS = 600
"""Time for a run to save and end after the end of the sweep."""


DIAGNOSED = 5
"""Instances per test task in the diagnostics, under each kind of adaptation."""


def run_one(
    config_path: str, results_path: str, about_path: str = "", processes: str = "1", split: str = "test"
) -> int:
    """Train and score one run in this process; returns its exit status.

    Args:
        config_path: YAML file of the configuration.
        results_path: JSON file for the results.
        about_path: JSON file whose content is copied into results.json.
        processes: number of training processes; scoring runs only in this one.
        split: "test", or "validation" for a try of a grid, which does not use the test tasks.
    """
    from hart.model.hart_model import HartModel
    from hart.runtime.devices import select_device
    from hart.training.stopping import Stopped
    from hart.training.train import train

    config = configuration.load(config_path)
    try:
        about = read_json(about_path, "what a sweep writes") if about_path else {}
        trained_before = RunFolder.is_complete(Path(config.training.output_dir))
        if int(processes) > 1:
            run_hart(["train", config_path, *_on_cpu()], int(processes))
            final = Path(config.training.output_dir) / "final"
        else:
            final = train(config, quiet=True)
        peak = None if trained_before else _peak_memory(children=int(processes) > 1)
        model = HartModel.from_pretrained(final, device=select_device())
        source = model.peft_source
        trained = 0 if source is None else sum(p.numel() for p in source.parameters())
        trained += sum(p.numel() for p in model.main.model.parameters()) if model.train_main else 0
        results: dict[str, Any] = {
            "config": config.to_dict(),
            "trained_parameters": trained,
            **_from_metrics(final.parent / "metrics.jsonl"),
            PEAK: peak,
            "host": host_facts(int(processes)),
            **about,
        }
        if not config.data.segments:
            results |= scores(model, config, split)
            if split == "test" and model.hypernetwork is not None:
                results |= looked_into(model, config)
        write_json(results_path, results)
    except HartError as error:
        print(error)
        return 2
    except Stopped as stop:
        print(stop)
        return TERMINATED
    return 0


def scores(model: "HartModel", config: RunConfig, split: str) -> dict[str, Any]:
    """The scores in results.json: means, the columns of P3's table, each task, and validation means if any.

    Validation uses the first `training.eval_instances` instances of each task, as during training.
    """
    from hart.data.collections import load_tasks
    from hart.evaluation.run import evaluate_model

    data, count = config.data, config.training.eval_instances
    found: dict[str, Any] = {}
    if data.validation_tasks or data.source.has_validation:
        tasks = load_tasks(data, "validation")
        shortened = [dataclasses.replace(task, instances=task.instances[:count]) for task in tasks]
        found["validation"] = evaluate_model(model, shortened, quiet=True).summary
    if split == "test":
        tested = evaluate_model(model, load_tasks(data, "test"))
        found |= {**tested.brief(), "tasks": tested.per_task}
    return found


def looked_into(model: "HartModel", config: RunConfig) -> dict[str, Any]:
    """Diagnostics and robustness on `DIAGNOSED` instances per test task, which show whether the task is read at all."""
    from hart.data.collections import load_tasks
    from hart.data.distractors import read_distractors
    from hart.evaluation.diagnostics import diagnose
    from hart.evaluation.robustness import measure_robustness
    from hart.evaluation.words import OWN

    tasks = load_tasks(config.data, "test")
    if len(tasks) < 2:
        return {}
    shortened = [dataclasses.replace(task, instances=task.instances[:DIAGNOSED]) for task in tasks]
    found = diagnose(model, shortened)
    other = [] if config.data.distractors is None else read_distractors(config.data.distractors)[1]
    robust = measure_robustness(
        model,
        shortened,
        other_definition=config.data.source.other_definition,
        distractors=other,
        own=found.scores[OWN],
    )
    return {"diagnostics": found.to_dict(), "robustness": robust.to_dict()}


def _from_metrics(path: Path) -> dict[str, Any]:
    rows = read_metrics(path)
    losses = [row["prediction_loss"] for row in rows if "prediction_loss" in row]
    times = [(row["seconds_per_step"], row["steps"]) for row in rows if "seconds_per_step" in row]
    return {
        "seconds_per_step": median([seconds for seconds, _ in times][1:] or [seconds for seconds, _ in times]),
        "training_seconds": sum(seconds * steps for seconds, steps in times),
        "loss_start": losses[0],
        "loss_end": losses[-1],
    }


def _on_cpu() -> list[str]:
    from hart.runtime.devices import select_device

    return [] if select_device().type == "cuda" else ["--device", "cpu"]


def _peak_memory(*, children: bool) -> float | None:
    """Peak of GPU memory so far in GiB, or of main memory without a GPU.

    With several processes it is that of the largest; None if only they can measure it.
    """
    import torch

    if torch.cuda.is_available():
        return None if children else torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    whose = resource.RUSAGE_CHILDREN if children else resource.RUSAGE_SELF
    return resource.getrusage(whose).ru_maxrss * unit / 2**30


def end_with_the_sweep() -> None:
    """Let this process end when the sweep that started it ends, even if the sweep was killed.

    Standard input is a pipe without content, which closes with the sweep. The run then saves as after SIGTERM.
    """

    def wait() -> None:
        while os.read(0, 1):  # not sys.stdin, whose lock the interpreter needs at its end
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_SECONDS)
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    # In the encoding in which the log of a failed run is read.
    sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]
    end_with_the_sweep()
    sys.exit(run_one(*sys.argv[1:]))
