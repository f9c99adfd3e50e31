"""A report as one self-contained HTML page: no network, no script, charts and styles included."""

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

import yaml

from hart.analysis import report_charts as charts
from hart.analysis import report_statistics
from hart.analysis.report_runs import COLLECTION_NAMES, Runs, StudyRow, in_short
from hart.analysis.report_tables import Cell, CollectionReport, Table, per_task
from hart.evaluation.words import METRIC_NAMES
from hart.training.sweep_plan import telling


def page(
    study: Runs,
    reports: Sequence[CollectionReport],
    papers: Sequence[Table],
    costs: Table,
    diagnostics: Sequence[Table],
) -> str:
    """The HTML document."""
    parts: list[tuple[str, str, str]] = []
    for report in reports:
        name = COLLECTION_NAMES.get(report.collection, report.collection)
        parts.append((f"of-{report.collection}", f"Results, {name}", _collection(report)))
    parts += [(table.key, table.title, _table(table)) for table in (*papers, *diagnostics)]
    parts += [
        ("losses", "Loss curves", _losses(study, reports)),
        (costs.key, costs.title, _table(costs)),
        ("configurations", "Configurations", _configurations(study)),
        ("environment", "Environment", _environment(study)),
        ("commands", "Commands", _commands(study)),
        ("definitions", "Definitions", _definitions()),
    ]
    links = "".join(f'<li><a href="#{key}">{escape(title)}</a></li>' for key, title, _ in parts)
    body = "".join(
        f'<section aria-labelledby="{key}"><h2 id="{key}">{escape(title)}</h2>{html}</section>'
        for key, title, html in parts
    )
    sheets = (("hart.serving", "page/base.css"), ("hart.analysis", "report.css"))
    css = "".join(files(package).joinpath(name).read_text(encoding="utf-8") for package, name in sheets)
    notes = "".join(f"<li>{escape(note)}</li>" for note in study.notes)
    warnings = f'<ul class="warnings" aria-label="What is missing">{notes}</ul>' if notes else ""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(study.name)}: report of a study</title>
<link rel="icon" href="data:,">
<style>{css}</style>
</head>
<body>
<a class="skip" href="#main">To the results</a>
<header>
<h1>{escape(study.name)}</h1>
<p>{escape(_summary(study))}</p>
{warnings}
<nav aria-label="Sections"><ul>{links}</ul></nav>
</header>
<main id="main" tabindex="-1">{body}</main>
</body>
</html>
"""


def _summary(study: Runs) -> str:
    runs = [run for row in study.rows for run in row.runs]
    absent = [seed for seeds in study.absent.values() for seed in seeds]
    rows = {*(row.name for row in study.rows), *study.absent}
    seeds = in_short(sorted({*(run.seed for run in runs), *absent}))
    done = sum(run.results is not None for run in runs)
    bases = sorted({str(row.config["model.base"]) for row in study.rows})
    return (
        f"Rows: {len(rows)}. Seeds: {seeds}. Finished: {done} of {len(runs) + len(absent)} runs. "
        f"Base: {', '.join(bases)}. Scores are percent; ± is the standard deviation over seeds."
    )


def _collection(report: CollectionReport) -> str:
    parts = [f"<p>{escape(finding(report))}</p>", _table(report.scores)]
    parts.append(_figure(charts.scores(report), "A dot is a seed, a line the mean."))
    if report.compared:
        parts += [f"<h3>{escape(report.compared.title)}</h3>", _table(report.compared)]
        said = "Dot: the difference. Thick line: its 95 % over seeds; thin line: over seeds and tasks."
        parts.append(_figure(charts.differences(report), said))
    tasks = per_task(report)
    parts.append(f"<details><summary>{escape(tasks.title)}</summary>{_table(tasks, 'task')}</details>")
    return "".join(parts)


def finding(report: CollectionReport) -> str:
    """A sentence about the rows whose difference from `against` is significant over seeds."""
    metric, against = METRIC_NAMES[report.metric], report.against.name
    if not report.differences:
        return f"The score that counts is {metric}; no other row has a seed in common with {against}."
    judged = {name: found.over_seeds for name, found in report.differences.items() if found.over_seeds}
    if not judged:
        return f"The score that counts is {metric}. One seed in common with {against}: seeds tell no rows apart."
    above = [name for name, (low, _) in judged.items() if low > 0]
    below = [name for name, (_, high) in judged.items() if high < 0]
    return (
        f"The score that counts is {metric}. By the 95 % interval over seeds, above {against}: "
        f"{', '.join(above) or 'none'}; below it: {', '.join(below) or 'none'}; "
        f"not told apart: {', '.join(name for name in judged if name not in above + below) or 'none'}."
    )


def _table(table: Table, first: str = "row") -> str:
    head = "".join(f'<th scope="col">{_breaking(name)}</th>' for name in (first, *table.columns))
    lines = []
    for label, note, cells in table.rows:
        small = f"<small>{escape(note)}</small>" if note and note != label else ""
        own = "".join(_cell(cell) for cell in cells)
        lines.append(f'<tr><th scope="row">{_breaking(label)}{small}</th>{own}</tr>')
    notes = f'<p class="note">{escape(" ".join(table.notes))}</p>' if table.notes else ""
    return (
        _scrolling(table.title, f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>") + notes
    )


def _breaking(name: str) -> str:
    """The escaped name, with possible line breaks after each `_`."""
    return escape(name).replace("_", "_<wbr>")


def _cell(cell: Cell) -> str:
    printed = "" if cell.paper is None else f'<span class="printed">paper {cell.paper:.1f}</span>'
    return f"<td>{escape(cell.shown())}{printed}</td>"


def _scrolling(label: str, html: str) -> str:
    """A scrollable region for content wider than the window; with the focus, arrow keys scroll it."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}">{html}</div>'


def _figure(svg: str, caption: str) -> str:
    return f'<figure class="wide">{svg}<figcaption class="note">{escape(caption)}</figcaption></figure>'


def _losses(study: Runs, reports: Sequence[CollectionReport]) -> str:
    against = {report.collection: report.against for report in reports}
    rows = [row for row in study.rows if any(run.metrics for run in row.runs)]
    if not rows:
        return '<p class="quiet">No run has a metrics.jsonl here.</p>'
    panels, highest = [], {}
    for row in rows:
        kind = row.collection
        if kind not in highest:
            highest[kind] = charts.highest_loss([each for each in rows if each.collection == kind])
        svg = charts.losses(row, against.get(kind, row), highest[kind])
        panels.append(f"<figure><figcaption>{escape(row.name)}</figcaption>{svg}</figure>")
    names = ", ".join(dict.fromkeys(report.against.name for report in reports))
    return (
        "<p>Prediction loss on the training batches, nats per token, mean over seeds, also of unfinished runs. "
        f'Thin: {escape(names)}.</p><div class="panels">{"".join(panels)}</div>'
    )


def _configurations(study: Runs) -> str:
    first = study.rows[0]
    lines = []
    for row in study.rows[1:]:
        changed = differing(first, row)
        words = "<br>".join(f"<code>{escape(name)}: {escape(value)}</code>" for name, value in changed.items())
        lines.append(
            f'<tr><th scope="row">{_breaking(row.name)}</th><td class="text">{words or "no difference"}</td></tr>'
        )
    heads = f'<th scope="col">row</th><th scope="col" class="text">differs from {escape(first.name)} in</th>'
    table = f"<table><thead><tr>{heads}</tr></thead>"
    whole = yaml.safe_dump(dict(first.config), sort_keys=False, allow_unicode=True)
    return (
        (_scrolling("Configurations", f"{table}<tbody>{''.join(lines)}</tbody></table>") if lines else "")
        + f"<details><summary>All fields of {escape(first.name)}, seed {first.runs[0].seed}</summary>"
        f"<pre>{escape(whole)}</pre></details>"
    )


def differing(first: StudyRow, row: StudyRow) -> dict[str, str]:
    """Field → value, for fields in which a row differs from the first row."""
    one, other = (telling(each.config, any_seed=True) for each in (first, row))
    return {
        name: json.dumps(value, ensure_ascii=False)
        for name, value in other.items()
        if value != one.get(name) and name != "training.seed"
    }


def _environment(study: Runs) -> str:
    found: dict[str, int] = {}
    for row in study.rows:
        for run in row.runs:
            if run.results is not None:
                host: Mapping[str, Any] = run.results.get("host") or {}
                words = ", ".join(f"{name} {value}" for name, value in host.items()) or "not recorded"
                found[words] = found.get(words, 0) + 1
    return _list(f"{count} runs: {words}" for words, count in found.items())


def _list(lines: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def _commands(study: Runs) -> str:
    lines = [
        f'<tr><th scope="row">{_breaking(run.row)}, seed {run.seed}</th>'
        f'<td class="text"><code>{escape(run.command)}</code></td></tr>'
        for row in study.rows
        for run in row.runs
    ]
    table = '<table><thead><tr><th scope="col">run</th><th scope="col" class="text">command</th></tr></thead>'
    whole = _scrolling("Commands", f"{table}<tbody>{''.join(lines)}</tbody></table>")
    return f"<details><summary>The command of each of {len(lines)} runs</summary>{whole}</details>"


def _definitions() -> str:
    paragraphs = (report_statistics.__doc__ or "").strip().split("\n\n")
    html = []
    for paragraph in paragraphs[1:]:
        if paragraph.startswith("- "):
            items = paragraph.removeprefix("- ").split("\n- ")
            html.append("<ul>" + "".join(f"<li>{_emphasised(item)}</li>" for item in items) + "</ul>")
        else:
            html.append(f"<p>{_emphasised(paragraph)}</p>")
    more = (
        "A deviation is that of a sample over seeds (n − 1). ROUGE-L and exact match are means over instances, so a "
        "task weighs as many as it has; accuracy on P3 is the mean of the columns of the paper's table, each the mean "
        "over templates (ANLI: of its three rounds), and a column counts as one task."
    )
    return f"<p>{escape(more)}</p>{''.join(html)}"


def _emphasised(text: str) -> str:
    """The escaped text on one line, with `*…*` in italics."""
    words = escape(" ".join(text.split())).split("*")
    return "".join(f"<em>{part}</em>" if number % 2 else part for number, part in enumerate(words))
