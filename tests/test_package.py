"""The package itself: its public names, and the one-line representations of its objects."""

import subprocess
import sys

import pytest

import hart
from hart import Demonstration, HartModel, Task

LONG = "word " * 100


def test_the_public_names_are_listed_before_they_are_imported() -> None:
    code = "import hart, sys; print(*dir(hart)); assert 'torch' not in sys.modules"
    listed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {*hart.__all__, "__version__", "__doc__"} <= set(listed)
    assert all(hasattr(hart, name) for name in hart.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'Hart'"):
        hart.Hart  # noqa: B018


@pytest.mark.parametrize(
    ("made", "shown"),
    [
        (Demonstration("a b", "b a"), "Demonstration('a b', 'b a')"),
        (Demonstration("a\nb", "b", "turned"), "Demonstration('a\\nb', 'b', explanation='turned')"),
        (Task("Swap.", [("a", "b")]), "Task(definition='Swap.', demonstrations=1)"),
        (Task("Swap.", name="swap"), "Task(name='swap', definition='Swap.', demonstrations=0)"),
    ],
)
def test_short_ones_are_shown_whole(made: object, shown: str) -> None:
    assert repr(made) == shown


@pytest.mark.parametrize("name", ["mini", "mini-causal"])
def test_nothing_long_is_shown(name: str) -> None:
    model = HartModel.from_pretrained(name)
    task = Task(LONG, [(LONG, LONG, LONG)] * 2)
    for each in (task, task.demonstrations[0], model, model.adapt(task)):
        assert "\n" not in repr(each) and len(repr(each)) < 200
    assert f"name='{name}'" in repr(model) and "scheme=causal" in repr(model)
    assert f"model='{name}', tasks=1" in repr(model.adapt(task))
