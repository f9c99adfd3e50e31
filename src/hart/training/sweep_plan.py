"""The plan of a sweep: rows × seeds, each a run with its configuration and its folder.

A row is a configuration file with changes. It may start from the weights of another row, and it may have a grid: values
of some fields, every combination tried with one seed. The combination that scores best on the validation tasks is used
for all seeds. The test tasks are scored once, at the end.
"""

import dataclasses
import itertools
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hart.errors import HartError
from hart.model.config import ModelConfig
from hart.runtime.sections import FieldError
from hart.training import config as configuration
from hart.training.config import RunConfig
from hart.training.run_folder import FREE_FIELDS, MOVABLE

RESULTS_FILE, RUN_FOLDER, GRID_FOLDER = "results.json", "run", "grid"
PEAK = "peak_memory_gib"
"""Key of results.json: peak memory in GiB; null where another process did the training."""
OWN_FIELDS = ("training.seed", "training.output_dir", "training.max_steps")
"""Fields that no grid may have: the sweep sets them from its seeds, its folder and `grid_steps`."""
OTHER_RUNS = ("model.init_from", "distillation.teacher")
"""Fields that may name the trained weights of another run."""


@dataclass(frozen=True)
class Row:
    """One system of a sweep.

    Attributes:
        words: changes to the configuration file, as command-line options.
        paper: tables of the paper, and the rows in them, that this system stands for.
        grid: field → values to choose from.
        grid_steps: training steps of each candidate of the grid; None: as many as the run itself has.
        init_from: name of the row whose trained weights this one starts from, with the same seed.
        teacher: name of the row whose trained system is the teacher (distillation), with the same seed.
        where: first words of error messages about this row; empty: messages begin with the name of its file.
    """

    name: str
    config: Path
    words: tuple[str, ...] = ()
    paper: tuple[Mapping[str, Any], ...] = ()
    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    grid_steps: int | None = None
    init_from: str | None = None
    teacher: str | None = None
    where: str = ""

    def build(self, overrides: Sequence[str] = (), fields: Mapping[str, Any] | None = None) -> RunConfig:
        """The configuration of this row.

        Args:
            overrides: further command-line options, after the row's own.
            fields: "section.field" → value, such as one combination of the grid; applied last.

        Raises:
            HartError: a field is unknown or has a wrong value.
        """
        try:
            return configuration.load(self.config, [*self.words, *overrides, *as_words(fields or {})])
        except HartError as error:
            if not self.where:
                raise
            told = re.sub(r"--(?=\w+\.?)", "", str(error)).replace("unknown option", "unknown field")
            raise HartError(f"{self.where}: {told}") from None


def as_words(fields: Mapping[str, Any]) -> list[str]:
    """Values of fields as command-line options: the text of a whole field unchanged, everything else as JSON."""
    return [
        f"--{name}={value if isinstance(value, str) and name.count('.') == 1 else json.dumps(value)}"
        for name, value in fields.items()
    ]


@dataclass(frozen=True)
class SweepRun:
    """One row with one seed, and the folder of its files.

    Attributes:
        about: entries copied into results.json: the row, the command, the rows of the paper's tables.
        sources: folders of the runs that must be finished first: the one whose weights it starts from, and its teacher.
        fields: values that this run tries, if it is a candidate of a grid; it is scored on the validation tasks only.
        candidates: runs of the row's grid; the best of them determines the values of this run.
    """

    name: str
    seed: int
    config: RunConfig
    folder: Path
    about: Mapping[str, Any] = field(default_factory=dict)
    sources: tuple[Path, ...] = ()
    fields: Mapping[str, Any] = field(default_factory=dict)
    candidates: tuple["SweepRun", ...] = ()

    @property
    def label(self) -> str:
        """The name of the run in messages."""
        return ", ".join([self.name, f"seed {self.seed}", *(f"{name} {value}" for name, value in self.fields.items())])

    def results(self) -> dict[str, Any] | None:
        """The content of results.json from an earlier sweep; None if there is none or its configuration differs."""
        path = self.folder / RESULTS_FILE
        if not path.is_file():
            return None
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            return None
        run = self.resolved()
        return found if run and isinstance(found, dict) and _same(found.get("config"), run.config.to_dict()) else None

    def resolved(self) -> "SweepRun | None":
        """This run with the values of the best candidate of its grid; None as long as no candidate is finished.

        Candidates are ranked by their first score (ROUGE-L, exact match or accuracy), ties by the next score, then by
        their order in the grid.
        """
        if not self.candidates:
            return self
        found = [(each, each.results()) for each in self.candidates]
        done = [(each, result["validation"]) for each, result in found if result]
        if not done:
            return None
        best, _ = max(done, key=lambda pair: list(pair[1].values()))  # of equal ones the first
        own, steps = self.config, best.config.training.max_steps
        training = {name.partition(".")[2]: getattr(own.training, name.partition(".")[2]) for name in OWN_FIELDS}
        # Source and teacher are those of this run's seed, unless the grid chose them.
        start = {} if "model.init_from" in best.fields else {"init_from": own.model.init_from}
        learn = {} if "distillation.teacher" in best.fields else {"teacher": own.distillation.teacher}
        config = best.config.changed(model=start, distillation=learn, training=training)
        tried = [
            {"fields": dict(each.fields), **({"validation": result["validation"]} if result else {"failed": True})}
            for each, result in found
        ]
        chosen = {"fields": dict(best.fields), "on": f"validation tasks, seed {best.seed}, {steps} steps"}
        about = {**self.about, "chosen": {**chosen, "candidates": tried}}
        return dataclasses.replace(self, config=config, about=about, candidates=())

    def best(self) -> "SweepRun | None":
        """The best candidate if its training is identical to that of this run (same seed and steps), else None."""
        run = self.resolved()
        if not self.candidates or run is None:
            return None
        chosen = [each for each in self.candidates if dict(each.fields) == run.about["chosen"]["fields"]]
        return next((each for each in chosen if _same(each.config.to_dict(), run.config.to_dict())), None)


def _same(one: Any, other: Mapping[str, Any]) -> bool:
    """Whether two configurations give the same numbers; a field that is missing in one has today's default."""
    made = [configuration.flattened(each) for each in (one, other)]
    return None not in made and telling(made[0] or {}) == telling(made[1] or {})


def telling(fields: Mapping[str, Any], *, any_seed: bool = False) -> dict[str, Any]:
    """The fields that can change a run's numbers, independent of the folders that hold data and sweeps.

    Data files are reduced to their own name, and the trained weights of another run of a sweep to its row and seed.

    Args:
        fields: "section.field" → value.
        any_seed: ignore the seed of the run that this one starts or learns from.
    """
    told = {name: value for name, value in fields.items() if name not in FREE_FIELDS or name in MOVABLE}
    for name in MOVABLE:
        if told.get(name):
            told[name] = Path(told[name]).name
    for name in OTHER_RUNS:
        if told.get(name) and Path(told[name]).parts[-2:] == (RUN_FOLDER, "final"):
            told[name] = "/".join(Path(told[name]).parts[-4:])
        if told.get(name) and any_seed:
            told[name] = re.sub(r"seed-\d+", "seed-*", told[name])
    return told


def alike(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `telling` that all runs of one row have in common, whatever their seeds."""
    return {name: value for name, value in telling(fields, any_seed=True).items() if name != "training.seed"}


def plan(
    out: Path,
    configs: Sequence[Path],
    seeds: Sequence[int],
    overrides: Sequence[str] = (),
    text_dir: str | None = None,
) -> list[SweepRun]:
    """All runs of a sweep over configuration files: the runs of one file together, in the order given.

    A run is named after its file. `model.init_from` is replaced where it names the run of another configuration of
    the sweep (`runs/…/NAME/final`): fine-tuning then starts from the sweep's own pre-training, with the same seed.

    Args:
        overrides: command-line options as for `hart train`, applied to all configurations.
        text_dir: `data.dir` of the configurations that pre-train on text.

    Raises:
        HartError: a configuration is invalid, two have the same name, or one comes before the configuration that it
            starts from or has another architecture.
    """
    names = [path.stem for path in configs]
    rows = []
    for path, name in zip(configs, names, strict=True):
        if names.count(name) > 1:
            raise HartError(
                f"two configurations are called {name}, and their runs would share a folder; rename one file"
            )
        start = configuration.load(path, overrides).model.init_from
        source = Path(start).parent.name if start else None
        rows.append(Row(name, path, init_from=source if source in names else None))
    files = {row.name: str(row.config) for row in rows}
    begin = ["hart", "sweep", str(out)]
    commands = {row.name: [*begin, *(files[each] for each in (row.init_from, row.name) if each)] for row in rows}
    return plan_rows(out, rows, seeds, overrides, text_dir, commands=commands)


def plan_rows(
    out: Path,
    rows: Sequence[Row],
    seeds: Sequence[int],
    overrides: Sequence[str] = (),
    text_dir: str | None = None,
    *,
    commands: Mapping[str, Sequence[str]],
    grid_seed: int | None = None,
) -> list[SweepRun]:
    """All runs of a sweep over rows; otherwise as `plan`.

    Args:
        commands: row → the command that repeats it, as a list of words without the seed.
        grid_seed: seed of the grid's candidates; None: the first of `seeds`.

    Raises:
        HartError: as `plan`, or a grid is invalid or has no validation tasks.
    """
    names, runs = [row.name for row in rows], []
    for row in rows:
        for does, other in (("starts from", row.init_from), ("learns from", row.teacher)):
            if other and names.index(other) >= names.index(row.name):
                raise HartError(f"{row.where or row.name} {does} {other}; put {other} before it")
        chosen_with = seeds[0] if grid_seed is None else grid_seed
        tries = tuple(_candidates(out, row, chosen_with, overrides, text_dir))
        for seed in seeds:
            folder = out / row.name / f"seed-{seed}"
            config, sources = _config(out, row, row.build(overrides), seed, folder, text_dir)
            text = ["--text-dir", text_dir] if text_dir else []
            command = shlex.join([*commands[row.name], "--seeds", str(seed), *text, *overrides])
            about = {"row": row.name, "command": command, "paper": [dict(each) for each in row.paper]}
            runs.append(SweepRun(row.name, seed, config, folder, about, sources, candidates=tries))
        if row.init_from:
            start = next(run.config for run in runs if run.name == row.init_from)
            _check_make(row, start.model, runs[-1].config.model)
    return runs


def _check_names(row: Row, model: ModelConfig) -> None:
    """Refuse before anything runs a scheme, a PEFT kind or an option of theirs that nobody knows."""
    from hart.hypernetwork.schemes.base import scheme_of  # not above: they import torch
    from hart.peft.base import build_kinds

    try:
        scheme_of(model.scheme)
        build_kinds(model.peft)
    except HartError as error:
        raise HartError(f"{row.where or row.config}: model.{error}") from None


def _check_make(row: Row, start: ModelConfig, own: ModelConfig) -> None:
    """Raise `HartError` unless the two architectures match: loading the weights would fail too, but hours later."""
    from hart.hypernetwork.schemes.base import with_defaults  # not above: they import torch
    from hart.model.folder import MAKE
    from hart.peft.base import build_kinds

    def made(model: ModelConfig) -> dict[str, Any]:
        found = {name: getattr(model, name) for name in MAKE}
        if model.weights != "generated":
            found["scheme"] = found["decoder_layers"] = None
            return found
        kinds = [kind.to_config() for kind in build_kinds(model.peft)]
        return {**found, "scheme": with_defaults(model.scheme), "peft": kinds}

    said, wanted = made(start), made(own)
    for name in MAKE:
        if said[name] != wanted[name]:
            raise HartError(
                f"{row.where or row.name} starts from {row.init_from}, which has model.{name} {said[name]}, and this "
                f"row {wanted[name]}; they must be equal"
            )


def _config(
    out: Path, row: Row, loaded: RunConfig, seed: int, folder: Path, text_dir: str | None
) -> tuple[RunConfig, tuple[Path, ...]]:
    """The configuration of one run, and the folders of the runs that it needs."""
    _check_names(row, loaded.model)
    model, data, distillation = loaded.model, loaded.data, loaded.distillation
    if data.segments and not any(word.startswith("--data.dir=") for word in row.words):
        data = data.changed(dir=text_dir)
    start, teacher = (out / name / f"seed-{seed}" if name else None for name in (row.init_from, row.teacher))
    if start:
        model = model.changed(init_from=str(start / RUN_FOLDER / "final"))
    if teacher:
        distillation = distillation.changed(teacher=str(teacher / RUN_FOLDER / "final"))
    training = loaded.training.changed(seed=seed, output_dir=str(folder / RUN_FOLDER))
    try:
        config = loaded.changed(model=model, data=data, training=training, distillation=distillation)
    except FieldError as error:
        raise error.within(f"{row.where or row.name}: ") from None
    return config, tuple(folder for folder in (start, teacher) if folder)


def _candidates(out: Path, row: Row, seed: int, overrides: Sequence[str], text_dir: str | None) -> Iterator[SweepRun]:
    """The candidates of a row's grid: one run for each combination of its values."""
    if not row.grid:
        return
    for name in row.grid:
        if name in OWN_FIELDS:
            raise HartError(f"{row.where}: grid: {name} is set by the study's seeds and grid_steps; remove it")
        if {"model.init_from": row.init_from, "distillation.teacher": row.teacher}.get(name):
            raise HartError(f"{row.where}: grid: {name} is set by {name.partition('.')[2]} of the row; remove it")
    for number, values in enumerate(itertools.product(*row.grid.values())):
        fields = dict(zip(row.grid, values, strict=True))
        loaded = row.build(overrides, fields)
        if loaded.data.segments or not (loaded.data.validation_tasks or loaded.data.source.has_validation):
            raise HartError(f"{row.where}: grid: there are no validation tasks to choose on; set data.validation_tasks")
        if row.grid_steps:
            try:
                loaded = loaded.changed(training={"max_steps": row.grid_steps})
            except FieldError as error:
                raise error.within(f"{row.where}: grid_steps: ") from None
        shown = "-".join(f"{name.rpartition('.')[2]}={value}" for name, value in fields.items())
        folder = out / row.name / GRID_FOLDER / f"{number}-{re.sub(r'[^A-Za-z0-9.=+-]+', '_', shown)[:80]}"
        config, sources = _config(out, row, loaded, seed, folder, text_dir)
        yield SweepRun(row.name, seed, config, folder, {"row": row.name}, sources, fields=fields)
