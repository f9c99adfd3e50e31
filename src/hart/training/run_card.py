"""The section of a model card on the training run: data, settings, seeds, machine, versions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from hart.data.tasks import Task
from hart.runtime.environment import host_facts
from hart.training.config import RunConfig
from hart.training.run_folder import read_metrics

PATHS = {
    "data": ("dir",),
    "model": ("base", "init_from"),
    "training": ("output_dir", "deepspeed"),
    "distillation": ("teacher", "cache"),
}
"""Fields that may be paths, of which a card only shows the last part."""


def run_card(config: RunConfig, tasks: Sequence[Task], metrics: Path, step: int, processes: int) -> str:
    """Markdown for `hart.model.card.model_card`, without paths of the machine.

    Args:
        tasks: training tasks.
        metrics: path of the run's metrics.jsonl.
        step: step after which the model is saved.
    """
    data, training = config.data, config.training
    rows = read_metrics(metrics) if metrics.exists() else []
    seconds = sum(row["seconds_per_step"] * row["steps"] for row in rows if "seconds_per_step" in row)
    losses = [row["prediction_loss"] for row in rows if "prediction_loss" in row]
    scored = [{k[5:]: v for k, v in row.items() if k.startswith("eval_")} for row in rows if row["step"] == step]
    validation = [f"{name} {value:.2f}" for each in scored for name, value in each.items()]
    host = host_facts(processes)
    told = [
        ("data", f"`{data.collection}`{_origin(config)}: {_amount(config, tasks)}"),
        ("steps", f"{step} of {training.max_steps}, {training.batch_size} queries each"),
        ("optimiser", f"{training.optimizer}, learning rate {training.learning_rate:g}, α {training.alpha:g}"),
        ("seeds", f"training {training.seed}, data {data.seed}"),
        ("last prediction loss", f"{losses[-1]:.3f}" if losses else "not measured"),
        ("validation tasks, at this step", ", ".join(validation) or "not scored"),
        ("training time", f"{seconds / 60:.1f} minutes" if seconds else "not measured"),
        ("hardware", f"{host['device']}, {host['processes']} processes, {host['cores']} cores, {host['system']}"),
        ("versions", ", ".join(f"{name} {host[name]}" for name in ("hart", "torch", "transformers", "python"))),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in told)
    return f"""## How it was made

| | |
|---|---|
{table}

`hart train config.yaml`, with this file; all other fields are at their defaults:

```yaml
{yaml.safe_dump(_set_fields(config), sort_keys=False, allow_unicode=True).strip()}
```

## License

None is stated here. Those of the base (`{_name(config.model.base)}`) and of the data above say what may be done with
these weights; add `license:` to the head of this file before you hand it on.
"""


def _origin(config: RunConfig) -> str:
    source = config.data.source
    if source.hub_name is None:
        return ", which comes with hart"
    return ", from a folder" if config.data.dir is not None else f", from {config.data.hub_name or source.hub_name}"


def _amount(config: RunConfig, tasks: Sequence[Task]) -> str:
    if config.data.segments:
        return "text, cut into segments"
    instances = sum(len(task.instances) for task in tasks)
    return f"{len(tasks):,} training tasks, {instances:,} instances"


def _set_fields(config: RunConfig) -> dict[str, Any]:
    """The fields that differ from their defaults, by section, without paths of this machine."""
    defaults, found = RunConfig().to_dict(), {}
    for section, values in config.to_dict().items():
        own = {name: value for name, value in values.items() if value != defaults[section][name]}
        own |= {name: _name(own[name]) for name in PATHS.get(section, ()) if isinstance(own.get(name), str)}
        if own:
            found[section] = own
    return found


def _name(place: str) -> str:
    """A name on the hub or in the package unchanged, or the last part of a folder's path."""
    return Path(place).name if Path(place).is_absolute() or Path(place).exists() else place
