"""What a sweep consists of: rows × seeds, each a run with its configuration and its folder.

A row is a configuration file with changes. It may start from what another row has trained, and it may have a grid:
values of some fields, each tried once, of which the best on the validation tasks is taken for all seeds. The test tasks
are looked at once, at the end.
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
"""In results.json; null where the training was done before the process that scored it."""
OWN_FIELDS = ("training.seed", "training.output_dir", "training.max_steps")
"""Fields that the sweep itself sets, or that a grid has another word for."""
OTHER_RUNS = ("model.init_from", "distillation.teacher")
"""Fields that may name what another run has trained."""


@dataclass(frozen=True)
class Row:
    """One system of a sweep.

    Attributes:
        words: changes to the file, as words of a command line.
        paper: tables of the paper and their rows that it stands for.
        grid: field → the values to choose from.
        grid_steps: training steps of each try; None: as many as of the run itself.
        init_from: name of the row whose trained weights it starts from, with the same seed.
        teacher: name of the row whose trained system it learns from (distillation), with the same seed.
        where: begins a message about it; empty: the file's own name says it.
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
        """Its configuration, with values of its grid.

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
    """Values of fields as a command line gives them: text of a whole field as it stands, all else as JSON."""
    return [
        f"--{name}={value if isinstance(value, str) and name.count('.') == 1 else json.dumps(value)}"
        for name, value in fields.items()
    ]


@dataclass(frozen=True)
class SweepRun:
    """One row with one seed, and where its files go.

    Attributes:
        about: what results.json repeats: the command, the rows of the paper's tables.
        sources: folders of the runs that it needs: whose trained weights it starts from, and its teacher's.
        fields: of a grid, the values that this run tries; it is scored on the validation tasks only.
        candidates: the runs of a grid of which the best one says what this run's values are.
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
        """How messages call it."""
        return ", ".join([self.name, f"seed {self.seed}", *(f"{name} {value}" for name, value in self.fields.items())])

    def results(self) -> dict[str, Any] | None:
        """What an earlier sweep found, if it was with this very configuration."""
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
        """This run with the values that its grid has found best; None as long as no candidate is done.

        The first score counts (ROUGE-L or accuracy), where it is equal the next one, then the order of the grid.
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
        # What it starts and learns from has its own seed, unless that is what the grid has chosen.
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
        """The candidate whose training is this run's own: same seed, same steps."""
        run = self.resolved()
        if not self.candidates or run is None:
            return None
        chosen = [each for each in self.candidates if dict(each.fields) == run.about["chosen"]["fields"]]
        return next((each for each in chosen if _same(each.config.to_dict(), run.config.to_dict())), None)


def _same(one: Any, other: Mapping[str, Any]) -> bool:
    """Whether two configurations give the same numbers; a field that one has not had today's default."""
    made = [configuration.flattened(each) for each in (one, other)]
    return None not in made and telling(made[0] or {}) == telling(made[1] or {})


def telling(fields: Mapping[str, Any], *, any_seed: bool = False) -> dict[str, Any]:
    """What tells one run from another: the fields that change a number of it, wherever data and sweeps are kept.

    Data files go by their own name, what another run of a sweep has trained by its row and seed.

    Args:
        fields: "section.field" → value.
        any_seed: whether runs that start or learn from another seed of one row are alike.
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
    """What runs of one row have in common, whatever their seeds."""
    return {name: value for name, value in telling(fields, any_seed=True).items() if name != "training.seed"}


def plan(
    out: Path,
    configs: Sequence[Path],
    seeds: Sequence[int],
    overrides: Sequence[str] = (),
    text_dir: str | None = None,
) -> list[SweepRun]:
    """All runs of a sweep over configuration files, those of one file together, in the order given.

    A run is called after its file. `model.init_from` is replaced where it names the run of another configuration of
    the sweep (`runs/…/NAME/final`): fine-tuning then starts from the sweep's own pre-training, with the same seed.

    Args:
        overrides: as for `hart train`, for all configurations.
        text_dir: `data.dir` of those that pre-train on text.

    Raises:
        HartError: a configuration that is wrong, named twice, or comes before the one it starts from, or is made
            otherwise than that.
    """
    names = [path.stem for path in configs]
    rows = []
    for path, name in zip(configs, names, strict=True):
        if names.count(name) > 1:
            raise HartError(f"two configurations are called {name}; a sweep tells runs apart by the name of the file")
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
    """The runs of rows, as `plan`.

    Args:
        commands: of each row the words that repeat it, without the seed.
        grid_seed: with which values are chosen; None: the first of `seeds`.
    """
    names, runs = [row.name for row in rows], []
    for row in rows:
        for does, other in (("starts from", row.init_from), ("learns from", row.teacher)):
            if other and names.index(other) >= names.index(row.name):
                raise HartError(f"{row.where or row.name} {does} {other}; name {other} before it")
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
    """Refuse before anything runs what would be refused when the weights are taken over, hours later."""
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
    """The tries of a row's grid, all combinations of its values."""
    if not row.grid:
        return
    for name in row.grid:
        if name in OWN_FIELDS:
            raise HartError(f"{row.where}: grid: {name} cannot be chosen; the study's seeds and grid_steps say it")
        if {"model.init_from": row.init_from, "distillation.teacher": row.teacher}.get(name):
            raise HartError(f"{row.where}: grid: {name} cannot be chosen; {name.partition('.')[2]} of the row says it")
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
