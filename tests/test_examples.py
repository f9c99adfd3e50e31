"""Examples of the documentation and of --help with an answer of `mini` are run, and give this answer."""

import ast
import json
import re
import shlex
from pathlib import Path

import pytest

from hart import HartModel, Task
from hart.cli import adapt, main
from hart.data.procedural.primitives import FINISHERS, SELECTORS
from hart.serving.engine import model_fingerprint
from hart.serving.store import adaptation_id

REPOSITORY = Path(__file__).resolve().parents[1]
TEXTS = {
    "README.md": (REPOSITORY / "README.md").read_text(encoding="utf-8"),
    "docs/data.md": (REPOSITORY / "docs" / "data.md").read_text(encoding="utf-8"),
    "docs/mini.md": (REPOSITORY / "docs" / "mini.md").read_text(encoding="utf-8"),
    "hart adapt --help": Path(adapt.__file__).read_text(encoding="utf-8").replace("\\\\\n", "\\\n"),
}
COMMAND = re.compile(r"^ *hart (adapt mini (?:.*\\\n)*.*|predict [^\\\n]*)$", re.MULTILINE)
PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)


@pytest.mark.parametrize("place", TEXTS)
def test_commands_give_the_answers_beside_them(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    checked = 0
    for command in COMMAND.findall(TEXTS[place]):
        line, _, answer = command.replace("\\\n", " ").partition("  # ")
        words = shlex.split(line.replace('""",', ""))
        if "--definition" in words:
            assert main(words) == 0
        elif answer:
            capsys.readouterr()
            assert main(words) == 0
            assert capsys.readouterr() == (answer.strip().removesuffix('""",') + "\n", "")
            checked += 1
    assert checked


@pytest.mark.parametrize("place", ["README.md", "docs/data.md"])
def test_python_gives_the_answers_beside_it(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (text, *_) = [each for each in PYTHON.findall(TEXTS[place]) if 'from_pretrained("mini")' in each]
    names: dict[str, object] = {}
    checked = 0
    for node in ast.parse(text).body:
        code = ast.get_source_segment(text, node) or ""
        comment = text.splitlines()[(node.end_lineno or 1) - 1].partition("  # ")[2]
        if isinstance(node, ast.Expr) and comment.startswith("["):
            assert eval(code, names) == ast.literal_eval(comment)
            checked += 1
        else:
            exec(code, names)
    assert checked == 1


def test_the_guide_to_serving_names_the_id_that_a_server_gives() -> None:
    """The commands after the first one name the adaptation by its id, so a reader can run them as they are."""
    guide = (REPOSITORY / "docs" / "serving.md").read_text(encoding="utf-8")
    (body,) = re.findall(r"/v1/adaptations -H '[^']*' -d '({.*?})'", guide, re.DOTALL)
    asked = json.loads(body)
    task = Task(asked["definition"], [(each["input"], each["output"]) for each in asked["demonstrations"]])
    model = HartModel.from_pretrained("mini")
    id = adaptation_id(model.main.fingerprint, model_fingerprint(model), task)
    assert f'"id":"{id[:12]}…"' in guide
    assert set(re.findall(r'"(?:adaptation|model)": "([0-9a-f]{12})"', guide)) == {id[:12]}
    notebook = (REPOSITORY / "notebooks" / "adapt_and_serve.ipynb").read_text(encoding="utf-8")
    assert f"id: {id[:8]} …" in notebook


def test_every_wording_is_listed() -> None:
    for each in (*SELECTORS, *FINISHERS):
        assert f"| {' / '.join(each.phrasings)} |" in TEXTS["docs/mini.md"]
