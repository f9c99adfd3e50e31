"""The sources of figures: runs and models found in folders, grouped if they differ only in the seed."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hart.errors import HartError
from hart.model.bundled import MODELS, resolve_model
from hart.model.folder import read_config
from hart.runtime.files import damage, read_text
from hart.training.config import RunConfig, flattened, load
from hart.training.run_folder import RunFolder, read_metrics
from hart.training.sweep_plan import RUN_FOLDER, telling

LOSSES = ("prediction_loss", "consistency_loss")

_NO_DIFFERENCE = ("training.seed", "training.eval_every", "training.eval_instances")
"""Fields, in addition to `FREE_FIELDS`, in which two runs of one configuration may differ."""
CONSISTENCY_FIELDS = ("training.alpha", "training.pairing", "training.previous_dropout")
SCHEME_FIELDS = ("model.scheme",)


@dataclass(frozen=True)
class Curves:
    """Losses over optimizer steps.

    Attributes:
        steps: int64 `[x]`, counted from 1.
        losses: name (of `LOSSES`) → float64 `[x]`; prediction in nats per target token, consistency a mean square.
        window: number of steps over which each value is a mean; 1: one value per step.
    """

    steps: np.ndarray
    losses: dict[str, np.ndarray]
    window: int


@dataclass(frozen=True)
class Source:
    """A run, or a model without one.

    Attributes:
        name: name of the folder, or of the configuration for a run of a sweep.
        path: folder of the run or the model.
        config: configuration of the run; None for a model without a run.
        each_step, means: losses of steps.csv and of metrics.jsonl; None if the file is missing or has no losses yet;
            `each_step` also if steps.csv does not begin with step 1.
        model: folder of the newest model; None if there is none yet.
        step: the last step that was logged.
    """

    name: str
    path: Path
    config: RunConfig | None = None
    each_step: Curves | None = None
    means: Curves | None = None
    model: Path | None = None
    step: int = 0

    @property
    def seed(self) -> int | None:
        return None if self.config is None else self.config.training.seed

    @property
    def unfinished(self) -> str:
        """A remark about the progress of an unfinished run; empty for a finished one."""
        if self.config is None or (self.model is not None and self.model.name == "final"):
            return ""
        what = f"{self.name}, seed {self.seed}: unfinished, step {self.step} of {self.config.training.max_steps}"
        model = "there is no model yet" if self.model is None else f"its model is {self.model.name}"
        return f"{what}; used as far as it goes ({model})"


@dataclass(frozen=True)
class Group:
    """Runs of one configuration with several seeds, or one model.

    Attributes:
        label: unique name of the group in figures.
        sources: sorted by seed.
    """

    label: str
    sources: tuple[Source, ...]

    @property
    def config(self) -> RunConfig | None:
        return self.sources[0].config

    def alike(self, *but: str) -> str | None:
        """A key, equal for groups whose configurations differ at most in the fields `but`; None without a run."""
        return None if self.config is None else json.dumps(_comparable(self.config, but), sort_keys=True)


def find_sources(paths: Sequence[str]) -> tuple[list[Source], list[str]]:
    """The runs and models at the paths, without duplicates, and remarks about them.

    Args:
        paths: folders of runs, of `hart sweep` (the sweep, one configuration or one seed) or of models, or `mini`.

    Raises:
        HartError: a path has no run or model, a file cannot be read, no run has logged anything yet, or runs are of
            different collections.
    """
    found: dict[Path, Source] = {}
    remarks = []
    for path in paths:
        for source in _at(path):
            if source.path.resolve() in found:
                continue
            if source.config is not None and source.each_step is source.means is source.model is None:
                remarks.append(f"{source.path}: no step is logged yet; left out")
                continue
            found[source.path.resolve()] = source
    sources = list(found.values())
    if not sources:
        raise HartError(f"{remarks[0]}; there is nothing to draw")
    runs = [source for source in sources if source.config is not None]
    for each in runs[1:]:
        (first, one), (other, another) = ((run.name, _tasks(run)) for run in (runs[0], each))
        if one != another:
            raise HartError(
                f"{first} is trained on {one} and {other} on {another}: their losses and states are of different "
                "tasks; give runs of one collection"
            )
    return sources, [*remarks, *(source.unfinished for source in sources if source.unfinished)]


def _tasks(run: Source) -> str:
    assert run.config is not None
    data = run.config.data
    return data.collection + (f" ({', '.join(data.train_subsets)})" if data.train_subsets else "")


def _at(given: str) -> Iterator[Source]:
    path = Path(given)
    if given in MODELS and not path.exists():
        yield Source(given, Path(resolve_model(given)), model=Path(resolve_model(given)))
        return
    if not path.is_dir():
        what = "is a file" if path.exists() else "no such folder"
        raise HartError(f"{given}: {what}; give the folder of a run, a sweep or a model, or {' or '.join(MODELS)}")
    if _is_run(path):
        yield _read_run(path)
        return
    runs = [
        run
        for pattern in (RUN_FOLDER, f"seed-*/{RUN_FOLDER}", f"*/seed-*/{RUN_FOLDER}")
        for run in sorted(path.glob(pattern), key=_in_order)
        if (run / "config.yaml").is_file()
    ]
    if runs:
        yield from map(_read_run, runs)
    elif (path / "config.json").is_file():
        read_config(path)
        run = path.resolve().parent
        if _is_run(run):  # tasks and name are those of the run that the model belongs to
            whole = _read_run(run)
            yield Source(whole.name, path, whole.config, model=path, step=whole.step)
        else:
            yield Source(path.resolve().name, path, model=path)
    else:
        raise HartError(
            f"{given}: must be a run (config.yaml with run.json or metrics.jsonl), a folder of hart sweep or a model"
        )


def _in_order(path: Path) -> list[Any]:
    """Sort key that puts seed-2 before seed-10."""
    return [[int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", each)] for each in path.parts[-3:]]


def _is_run(path: Path) -> bool:
    logged = any((path / name).is_file() for name in ("run.json", "metrics.jsonl", "steps.csv"))
    return logged and (path / "config.yaml").is_file()


def _read_run(path: Path) -> Source:
    config = load(path / "config.yaml")
    # The path is replaced by the actual one, since the folder may have been moved.
    folder = RunFolder(config.changed(training={"output_dir": str(path)}), owner=False)
    each_step = _read_steps(folder.steps) if folder.steps.is_file() else None
    means = _read_means(folder.metrics, config.training.log_every) if folder.metrics.is_file() else None
    last = [int(curves.steps[-1]) for curves in (each_step, means) if curves is not None]
    place = path.resolve()
    if place.name == RUN_FOLDER and place.parent.name.startswith("seed-"):
        place = place.parent.parent
    return Source(place.name, path, config, each_step, means, _newest_model(folder), max(last, default=0))


def _newest_model(folder: RunFolder) -> Path | None:
    if RunFolder.is_complete(folder.path):
        return folder.final
    saved = folder.saved()
    whole = (saved[step] for step in sorted(saved, reverse=True) if damage(saved[step]) is None)
    return next(whole, None)


def _read_steps(path: Path) -> Curves | None:
    """The losses of each step; None if they do not begin with step 1 (after a crash that lost some)."""
    header, *lines = read_text(path, "the losses of a run").splitlines() or [""]
    names = header.split(",")
    if not {"step", *LOSSES} <= set(names):
        raise HartError(f"{path}: its first line is not the header step,loss,prediction_loss,consistency_loss")
    rows: list[list[float]] = []
    for number, line in enumerate(lines, start=2):
        try:
            row = [float(value) for value in line.split(",")]
            if len(row) != len(names) or row[names.index("step")] != (rows[-1][names.index("step")] + 1 if rows else 1):
                raise ValueError
        except ValueError:
            if number == len(lines) + 1 and rows:
                break  # the run is being written, or was cut short
            if number == 2:
                return None
            raise HartError(f"{path}: line {number} is not the one of step {len(rows) + 1}") from None
        rows.append(row)
    return _curves(np.array(rows), names, window=1) if rows else None


def _read_means(path: Path, window: int) -> Curves | None:
    rows = [row for row in _metrics(path) if {"step", *LOSSES} <= row.keys()]
    names = ["step", *LOSSES]
    return _curves(np.array([[row[name] for name in names] for row in rows], float), names, window) if rows else None


def _curves(table: np.ndarray, names: Sequence[str], window: int) -> Curves:
    columns = dict(zip(names, table.T, strict=True))
    return Curves(columns["step"].astype(np.int64), {name: columns[name] for name in LOSSES}, window)


def _metrics(path: Path) -> list[Any]:
    try:
        return read_metrics(path)
    except (OSError, UnicodeDecodeError) as error:
        raise HartError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or 'not UTF-8'})") from None


def without_repeated_seeds(sources: Sequence[Source]) -> tuple[list[Source], list[str]]:
    """The first run of each configuration and seed, and remarks about repetitions, which must not count as seeds."""
    kept: dict[str, Source] = {}
    remarks = []
    for source in sources:
        key = str(source.path)
        if source.config is not None:
            key = json.dumps([source.seed, _fields(source.config)], sort_keys=True)
        first = kept.setdefault(key, source)
        if first is not source:
            remarks.append(f"{source.path}: the same configuration and seed as {first.path}, left out")
    return [*kept.values()], remarks


def group_sources(sources: Sequence[Source]) -> list[Group]:
    """Group runs of the same configuration, in the order given; each model without a run is a group of its own."""
    together: dict[str, list[Source]] = {}
    for source in sources:
        key = str(source.path) if source.config is None else json.dumps(_fields(source.config), sort_keys=True)
        together.setdefault(key, []).append(source)
    members = list(together.values())
    labels = [_label(each) for each in members]
    for label in {label for label in labels if labels.count(label) > 1}:
        same = [at for at, each in enumerate(labels) if each == label]
        for at, difference in zip(same, _differences([members[at][0] for at in same]), strict=True):
            labels[at] = f"{label}, {difference}"
    return [
        Group(label, tuple(sorted(each, key=lambda source: source.seed or 0)))
        for label, each in zip(labels, members, strict=True)
    ]


def _label(sources: Sequence[Source]) -> str:
    """The folder's name, or a description of the configuration if its folders have different names."""
    names, config = {source.name for source in sources}, sources[0].config
    if len(names) == 1 or config is None:
        return sources[0].name
    return describe(config)


def _differences(sources: Sequence[Source]) -> list[str]:
    """Phrases that distinguish sources of the same name: up to three fields of their configurations, or their paths."""
    tables = [{} if source.config is None else _fields(source.config) for source in sources]
    varied = [name for name in tables[0] if len({json.dumps(table.get(name)) for table in tables}) > 1][:3]
    said = [", ".join(f"{name.partition('.')[2]} {_short(table.get(name))}" for name in varied) for table in tables]
    return said if len(set(said)) == len(said) else [str(source.path) for source in sources]


def describe(config: RunConfig) -> str:
    """A description of a configuration in the paper's terms: `autoregressive, α = 0.1`."""
    if config.model.weights != "generated":
        return f"{config.model.weights} weights"
    name, *options = (_short(value) for value in config.model.scheme.values())
    alpha = config.training.alpha
    said = [f"α = {alpha:g}"] if alpha else []
    return ", ".join([name, *options, *said, *([f"by {config.training.pairing}"] if alpha else [])])


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(_short(each) for each in value.values())
    return f"{value:g}" if isinstance(value, float) else str(value)


def _fields(config: RunConfig, but: Sequence[str] = ()) -> dict[str, Any]:
    """ "section.field" → value, for all fields that change a run's numbers, except `but`."""
    fields = flattened(config.to_dict())
    assert fields is not None
    told = telling(fields, any_seed=True)  # pre-training and teachers of a sweep differ with each seed
    return {name: value for name, value in told.items() if name not in _NO_DIFFERENCE and name not in but}


def _comparable(config: RunConfig, but: Sequence[str]) -> dict[str, Any]:
    """As `_fields`; with α = 0 also without the other fields of the consistency loss, which then have no effect."""
    return _fields(config, but if config.training.alpha else [*but, *CONSISTENCY_FIELDS[1:]])


def differing(one: Group, other: Group, but: Sequence[str]) -> list[str]:
    """Fields, other than `but`, in which two groups differ."""
    if one.config is None or other.config is None:
        return []
    tables = [_comparable(config, but) for config in (one.config, other.config)]
    return [name for name in tables[0] | tables[1] if tables[0].get(name) != tables[1].get(name)]
