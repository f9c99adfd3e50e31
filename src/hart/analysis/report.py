"""The report of a study: one HTML page and one CSV file from the folder of a sweep (`hart report`)."""

from dataclasses import dataclass
from pathlib import Path

from hart.analysis.report_page import page
from hart.analysis.report_runs import Runs, StudyRow, read_runs
from hart.analysis.report_tables import (
    CollectionReport,
    as_csv,
    of_collection,
    of_costs,
    of_diagnostics,
    of_paper,
    per_task,
)
from hart.errors import HartError, suggestion
from hart.runtime.files import check_file_target, write_text


@dataclass(frozen=True)
class Report:
    """A written report: the paths of its page and CSV file, the study, and the results of each collection."""

    path: Path
    csv: Path
    study: Runs
    collections: tuple[CollectionReport, ...]


def report(folder: Path, *, output: Path | None = None, against: str | None = None) -> Report:
    """Write the report of a sweep's folder, without loading any model.

    Args:
        output: path of the page; None: report.html in the folder. The CSV file is written next to it.
        against: name of the row with which all others are compared; in collections where it has no scores, and for
            None, it is the first row.

    Raises:
        HartError: the folder has no sweep or no finished run, runs cannot be compared, no row is named `against`, or
            the files cannot be written.
    """
    path = output or folder / "report.html"
    table = path.with_suffix(".csv")
    if table == path:
        raise HartError(
            f"{path}: is the name of the CSV file beside the page; give the page another, such as report.html"
        )
    study = read_runs(folder)
    scored = [row.name for collection in study.collections for row in study.of(collection)]
    if against is not None and against not in scored:
        raise HartError(
            f"--against {against}: no row of that name has scores in {folder}; {suggestion(against, scored)}"
        )
    for target in (path, table):
        check_file_target(target)
    _note_single_seeds(study)
    reports = tuple(of_collection(study, each, _against(study, each, against)) for each in study.collections)
    papers, costs, diagnostics = of_paper(study), of_costs(study), of_diagnostics(study)
    write_text(path, page(study, reports, papers, costs, diagnostics))
    tables = [*(each.scores for each in reports), *papers, costs, *diagnostics]
    write_text(table, as_csv([*tables, *map(per_task, reports)], reports))
    return Report(path, table, study, reports)


def _against(study: Runs, collection: str, name: str | None) -> StudyRow:
    rows = study.of(collection)
    return next((row for row in rows if row.name == name), rows[0])


def _note_single_seeds(study: Runs) -> None:
    single = [row.name for row in study.rows if len(row.scored) == 1]
    if single:
        study.notes.append(f"One seed only, so no deviation and no interval over seeds: {', '.join(single)}.")
