"""What mkdocs does beside its own work: pages of files outside docs/, and links that hold on GitHub and on the site.

README, CONTRIBUTING, CHANGELOG and the notebooks become pages as they are, so that no text exists twice. Links in all
pages are written for GitHub, relative to the file that they stand in. Here one to a file that is a page leads to the
page, one to another file of the repository to it under `repo_url`, or is plain text while mkdocs.yml names none. One to
a file that does not exist stays, and the strict build fails at it.
"""

import importlib.util
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]

OUTSIDE = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""File of the repository → page of the site; with the notebooks below."""
OUTSIDE |= {f"notebooks/{path.name}": f"notebooks/{path.stem}.md" for path in REPOSITORY.glob("notebooks/*.ipynb")}
SOURCES = {page: source for source, page in OUTSIDE.items()}

# A fence or a piece of code, in which nothing is a link; or a link or an image.
CODE = r"(?P<code>^(?P<fence>```+).*?^(?P=fence)\s*$|`[^`\n]+`)"
LINK = re.compile(rf"{CODE}|(?P<mark>!?\[(?P<text>[^\]]*)\]\()(?P<to>[^)\s]+)\)", re.DOTALL | re.MULTILINE)
CELL = re.compile(r"<td[^>]*>.*?</td>", re.DOTALL)
CODE_IN_CELL = re.compile(r"(?<=<code>)[^<]+")
IN_NUMBERED_LIST = re.compile(r"^   (?=\S| +\S)", re.MULTILINE)


def on_files(files: Files, config: Any) -> Files:
    for source, page in OUTSIDE.items():
        path = REPOSITORY / source
        text = _to_markdown(path) if path.suffix == ".ipynb" else path.read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    place = page.file.src_uri
    source = SOURCES.get(place, f"docs/{place}")
    linked = LINK.sub(lambda found: _link(found, source, place, config.repo_url), markdown)
    # GitHub takes blocks in a numbered list from three columns on, Python-Markdown from four.
    return IN_NUMBERED_LIST.sub("    ", linked) if source == "CONTRIBUTING.md" else linked


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """Paths in tables may break after their signs, so that columns are neither torn nor wide."""
    return CELL.sub(
        lambda cell: CODE_IN_CELL.sub(lambda code: re.sub(r"(?<=[/:._])(?=\w)", "<wbr>", code[0]), cell[0]), html
    )


def _link(found: re.Match[str], source: str, place: str, repo_url: str | None) -> str:
    to = found["to"]
    if found["code"] is not None or to.startswith("#") or re.match(r"[a-z]+:", to):
        return found[0]
    path, mark, anchor = to.partition("#")
    file = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    page = OUTSIDE.get(file) or (file.removeprefix("docs/") if file.startswith("docs/") else None)
    if page is not None:
        return f"{found['mark']}{posixpath.relpath(page, posixpath.dirname(place) or '.')}{mark}{anchor})"
    if not (REPOSITORY / file).exists() or file.startswith(".."):
        return found[0]
    return f"{found['mark']}{repo_url.rstrip('/')}/blob/main/{file}{mark}{anchor})" if repo_url else found["text"]


def _to_markdown(path: Path) -> str:
    # mkdocs loads this file by its path, so its neighbour is no module that could be imported by name.
    spec = importlib.util.spec_from_file_location("hart_site_notebooks", HERE / "notebooks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.to_markdown(path)
