"""Study files: the rows of a table as changes to configuration files, in YAML.

    base: ../mini/hart_procedural.yaml     # relative to the study file
    set: {training.alpha: 0.0}             # for all rows
    seeds: [0, 1, 2]
    rows:
      hart: {}
      causal: {model.scheme: {name: causal}}
      lora: {config: ../mini/lora_sni.yaml, set: {data.collection: procedural}}

docs/studies.md describes all fields. Errors are one line that names file, row and field.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hart.errors import HartError, suggestion
from hart.runtime.sections import read_yaml, shortened
from hart.training.sweep_plan import Row, SweepRun, as_words, plan_rows

FIELDS = ("base", "set", "seeds", "rows", "grid", "grid_steps")
ROW_FIELDS = ("config", "set", "paper", "grid", "grid_steps", "init_from", "teacher")
PAPER_FIELDS = ("table", "row")


@dataclass(frozen=True)
class Study:
    """The content of a study file."""

    path: Path
    seeds: tuple[int, ...]
    rows: tuple[Row, ...]

    def listing(self) -> dict[str, Any]:
        """The content of study.json in the sweep's folder: the rows in order, and the seeds of each."""
        rows = {row.name: {"seeds": [*self.seeds], "paper": [dict(each) for each in row.paper]} for row in self.rows}
        return {"study": self.path.stem, "rows": rows}


def is_study(path: Path) -> bool:
    """Whether a file is a study; False for invalid YAML."""
    try:
        content = read_yaml(path)
    except HartError:
        return False
    return isinstance(content, dict) and ("rows" in content or "base" in content)


def read_study(path: Path) -> Study:
    """Read a study file, without its configurations.

    Raises:
        HartError: the file cannot be read, or has unknown or wrong fields.
    """
    content = read_yaml(path, "study file")
    _mapping(content, f"{path}", "a study: base, seeds and rows")
    _known(content, FIELDS, f"{path}")
    rows = _mapping(content.get("rows"), f"{path}: rows", "a mapping from the name of a row to its changes")
    if not rows:
        raise HartError(f"{path}: rows is empty; add the rows to compare")
    base = content.get("base")
    if base is not None and not isinstance(base, str):
        raise HartError(f"{path}: base must be a configuration file, not {shortened(base)}")
    seeds = content.get("seeds", [0])
    if not (isinstance(seeds, list) and seeds and all(type(seed) is int and seed >= 0 for seed in seeds)):
        raise HartError(f"{path}: seeds must be a list of whole numbers, not {shortened(seeds)}")
    if len({*seeds}) < len(seeds):
        raise HartError(f"{path}: seeds has a seed twice; remove one")
    return Study(path, tuple(seeds), tuple(_row(path, content, name, values, rows) for name, values in rows.items()))


def plan_study(
    study: Study,
    out: Path,
    *,
    names: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    overrides: Sequence[str] = (),
    text_dir: str | None = None,
) -> list[SweepRun]:
    """The runs of a study, or of some of its rows and the rows that they depend on.

    Args:
        names: names of the rows; None: all rows.
        seeds: seeds to use instead of the study's; a grid is still decided with the study's first seed.
        overrides: as for `hart train`, for all rows.
        text_dir: `data.dir` of rows that pre-train on text.

    Raises:
        HartError: there is no such row, or a row's configuration is wrong.
    """
    known = {row.name: row for row in study.rows}
    for name in names or ():
        if name not in known:
            raise HartError(f"--row {name}: {study.path} has no such row; {suggestion(name, known)}")
    wanted = set(known) if names is None else set(names)
    waiting = list(wanted)
    while waiting:
        row = known[waiting.pop()]
        for needed in (row.init_from, row.teacher):
            if needed and needed not in wanted:
                wanted.add(needed)
                waiting.append(needed)
    rows = [row for row in study.rows if row.name in wanted]
    begin = ["hart", "sweep", str(study.path), "--output-dir", str(out)]
    commands = {row.name: [*begin, "--row", row.name] for row in rows}
    chosen = study.seeds if seeds is None else seeds
    return plan_rows(out, rows, chosen, overrides, text_dir, commands=commands, grid_seed=study.seeds[0])


def _row(path: Path, study: Mapping[str, Any], name: Any, values: Any, rows: Mapping[Any, Any]) -> Row:
    where = f"{path}: row {name}"
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_][\w.+=-]*", name, re.ASCII):
        raise HartError(f"{where}: a row's name must consist of letters, digits and _ . + = -; put a number in quotes")
    values = _mapping({} if values is None else values, where, "a mapping of fields and their values")
    own = {key: value for key, value in values.items() if isinstance(key, str) and "." in key}
    _known([key for key in values if key not in own], ROW_FIELDS, where)
    config = values.get("config", study.get("base"))
    if not isinstance(config, str):
        raise HartError(f"{where}: names no configuration; give the study a base, or the row a config")
    fields: dict[str, Any] = {}
    for place, given in ((f"{path}: set", study.get("set")), (f"{where}: set", values.get("set"))):
        fields |= _dotted(given, place)
    fields |= own
    for field in ("init_from", "teacher"):
        other = values.get(field)
        if other is not None and (not isinstance(other, str) or other not in rows or other == name):
            raise HartError(f"{where}: {field}: {other} must be another row of the study; {suggestion(other, rows)}")
    grid = _dotted(values.get("grid", study.get("grid")), f"{where}: grid")
    for field, choices in grid.items():
        if not (isinstance(choices, list) and choices):
            raise HartError(f"{where}: grid: {field} must be a list of values, not {shortened(choices)}")
    steps = values.get("grid_steps", study.get("grid_steps"))
    if steps is not None and (type(steps) is not int or steps < 1):
        raise HartError(f"{where}: grid_steps must be a whole number of at least 1, not {shortened(steps)}")
    return Row(
        name,
        path.parent / config,
        tuple(as_words(fields)),
        _paper(values.get("paper"), where),
        grid,
        steps,
        values.get("init_from"),
        values.get("teacher"),
        where,
    )


def _paper(given: Any, where: str) -> tuple[Mapping[str, Any], ...]:
    entries = given if isinstance(given, list) else [] if given is None else [given]
    for entry in entries:
        _known(_mapping(entry, f"{where}: paper", "{table: NUMBER, row: LABEL}"), PAPER_FIELDS, f"{where}: paper")
        if type(entry.get("table")) is not int or not isinstance(entry.get("row"), str):
            raise HartError(f"{where}: paper must be {{table: NUMBER, row: LABEL}}, not {shortened(entry)}")
    return tuple(entries)


def _mapping(value: Any, where: str, what: str) -> Mapping[Any, Any]:
    if not isinstance(value, dict):
        raise HartError(f"{where}: must be {what}, not {shortened(value)}")
    return value


def _dotted(value: Any, where: str) -> dict[str, Any]:
    """Dotted field names → values."""
    found = _mapping({} if value is None else value, where, "a mapping of fields and their values")
    for key in found:
        if not isinstance(key, str) or "." not in key:
            raise HartError(f"{where}: {key} has no section; write section.field, e.g. training.alpha")
    return dict(found)


def _known(keys: Iterable[Any], known: Sequence[str], where: str) -> None:
    for key in keys:
        if key not in known:
            raise HartError(f"{where}: unknown field {key}; {suggestion(str(key), known)}")
