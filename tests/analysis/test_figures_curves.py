"""Figures of losses: the drawn values are those of the runs."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from hart.analysis.figures import find_groups
from hart.analysis.figures_curves import fig3_autoregression, fig4_consistency, fig5_consistency_loss
from hart.analysis.figures_runs import Group
from hart.analysis.figures_spikes import find_spikes, running_median
from hart.analysis.figures_style import Drawing, NotDrawable, Numbers, save, styled

SHARED = {"model": {"scheme": {"name": "shared"}}}


def groups(*paths: Path) -> Sequence[Group]:
    return find_groups([str(path) for path in paths])[0]


def column(drawing: Drawing, run: str, name: str, table: str = "") -> list:
    columns = list(drawing.tables[table].columns)
    return [row[columns.index(name)] for row in drawing.tables[table].rows if row[0] == run]


def test_fig3_has_the_losses_of_runs_that_differ_in_the_scheme(make_run, falling) -> None:
    paths = [make_run(f"hyper/seed-{seed}/run", falling(60, seed=seed), seed=seed, **SHARED) for seed in (0, 1)]
    drawing = fig3_autoregression(groups(*paths, make_run("hart", falling(60, seed=2))))
    np.testing.assert_array_equal(column(drawing, "hart", "prediction_loss_nats_per_token"), falling(60, seed=2))
    np.testing.assert_allclose(column(drawing, "hart", "running_median"), running_median(falling(60, seed=2), 51))
    assert column(drawing, "hyper", "seed") == [0] * 60 + [1] * 60
    (axes,) = drawing.figure.axes
    lines = {line.get_label(): line.get_ydata() for line in axes.lines}
    smooth = [running_median(falling(60, seed=seed), 51) for seed in (0, 1)]
    np.testing.assert_allclose(lines["hyper, 2 seeds"], np.mean(smooth, axis=0))
    assert len(axes.collections) == 1  # the band of the run with two seeds
    assert drawing.remarks == [
        "lines are means over seeds, bands reach from the lowest to the highest",
        "one seed, so no band: hart",
    ]


def test_means_are_used_for_all_where_one_run_has_nothing_else(make_run, falling) -> None:
    old = make_run("old", falling(60), steps=False)
    drawing = fig3_autoregression(groups(old, make_run("new", falling(60), **SHARED)))
    assert column(drawing, "new", "step") == [10, 20, 30, 40, 50, 60]
    assert drawing.remarks == [
        "values are means over 10 steps (old without steps.csv): spikes are hidden",
        "one seed each, so no band",
    ]


def test_fig3_says_what_it_lacks(make_run, falling) -> None:
    hyper, hart = make_run("hyper", falling(20), **SHARED), make_run("hart", falling(20), alpha=1.0)
    with pytest.raises(NotDrawable, match=r"alike in all other fields$"):
        fig3_autoregression(groups(hart))
    with pytest.raises(NotDrawable, match=r"\(hyper and hart differ in training.alpha"):
        fig3_autoregression(groups(hyper, hart))
    with pytest.raises(NotDrawable, match="needs runs with metrics.jsonl or steps.csv"):
        fig3_autoregression(groups(Path("mini")))


def test_fig4_counts_spikes_over_the_steps_that_all_runs_have(make_run, falling) -> None:
    wild = falling(200, spikes=(50, 120, 190))
    paths = [make_run("without", wild), make_run("with", falling(150), alpha=1.0, max_steps=200)]
    drawing = fig4_consistency(groups(*paths, make_run("hyper", falling(20), **SHARED)))
    assert column(drawing, "without", "spikes", "spikes") == [2]
    assert column(drawing, "with", "spikes", "spikes") == [0]
    assert column(drawing, "without", "variance", "spikes") == [find_spikes(wild[:150]).variance]
    marked = zip(column(drawing, "without", "step"), column(drawing, "without", "spike"), strict=True)
    assert [step for step, spike in marked if spike] == [50, 120]
    assert max(column(drawing, "without", "step")) == 150
    assert column(drawing, "hyper", "step") == []
    labels = [text.get_text() for text in drawing.figure.axes[0].get_legend().get_texts()]
    assert [label.splitlines()[0] for label in labels] == ["without (α = 0):", "with (α = 1):"]
    assert labels[0].splitlines()[1].startswith("2 spikes, variance ")
    assert "compared up to step 150, which all have reached" in drawing.remarks


def test_fig4_needs_runs_that_differ_in_consistency_alone(make_run, falling) -> None:
    paths = make_run("hyper", falling(20), **SHARED), make_run("hart", falling(20), alpha=1.0)
    with pytest.raises(NotDrawable, match="differ in model.scheme"):
        fig4_consistency(groups(*paths))
    with pytest.raises(NotDrawable, match="needs a run with training.alpha 0 and one with more"):
        fig4_consistency(groups(paths[0]))
    # how a consistency loss of weight 0 pairs rows makes no difference
    pair = make_run("a", falling(20), pairing="task"), make_run("b", falling(20), alpha=1.0, pairing="slots")
    assert fig4_consistency(groups(*pair)).tables["spikes"].rows


@pytest.mark.parametrize("many", [False, True])
def test_a_legend_of_many_lines_stands_above_the_curves(make_run, falling, many: bool) -> None:
    orders = ["bottom_up", "top_down", "random", "random", "random"][: 5 if many else 2]
    schemes = [{"name": "autoregressive", "order": order, "order_seed": at} for at, order in enumerate(orders)]
    runs = [make_run(f"run_{at}", falling(60), model={"scheme": each}) for at, each in enumerate(schemes)]
    (axes,) = fig3_autoregression(groups(make_run("hyper", falling(60), **SHARED), *runs)).figure.axes
    axes.figure.draw_without_rendering()
    bottom, top = axes.get_legend().get_window_extent().y0, axes.get_window_extent().y1
    assert (bottom > top) == many
    if many:
        assert axes.get_legend().get_window_extent().x1 <= axes.figure.bbox.x1 + 1, "within the figure"


def test_fig5_shows_losses_that_are_comparable_in_one_panel(make_run, falling) -> None:
    slots = [make_run("a", falling(20), consistency=2.0), make_run("b", falling(20), alpha=1.0)]
    by_task = make_run("c", falling(20), alpha=1.0, pairing="task")
    drawing = fig5_consistency_loss(groups(*slots, by_task))
    assert [len(axes.get_legend().get_texts()) for axes in drawing.figure.axes] == [2, 1]
    assert column(drawing, "a", "consistency_loss_mean_square") == [2.0] * 19  # as drawn
    assert column(drawing, "a", "step") == [*range(2, 21)]
    assert min(min(line.get_xdata()) for line in drawing.figure.axes[0].lines) == 2  # the first has no partner
    colours = [line.get_color() for axes in drawing.figure.axes for line in axes.lines]
    assert len(set(colours)) == 3  # a run has one colour, and no other has it
    with pytest.raises(NotDrawable, match="generate weights"):
        fig5_consistency_loss(groups(make_run("d", falling(20), consistency=0.0)))


def test_files_have_the_numbers_and_what_they_are(make_run, falling, tmp_path: Path) -> None:
    def saved() -> list[Path]:
        with styled():
            return save(fig5_consistency_loss(groups(run)), "name", tmp_path / "out", ("png", "svg"))

    run = make_run("a, b", falling(20))
    paths = saved()
    assert [path.name for path in paths] == ["name.png", "name.svg", "name.csv"]
    assert paths[0].read_bytes()[:4] == b"\x89PNG"
    assert "optimizer step</text>" in paths[1].read_text()  # text, no outlines
    lines = paths[2].read_text().splitlines()
    assert lines[0].startswith("# consistency_loss of each run") and "# one seed each, so no band." in lines
    rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    assert [float(row["consistency_loss_mean_square"]) for row in rows] == [0.5] * 19
    assert {row["run"] for row in rows} == {"a, b"}
    before = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in saved()] == before


def test_numbers_are_written_in_full() -> None:
    table = Numbers(["a", "b"], [[np.float64(0.1) * 3, "x,y"], [np.int64(2), None]], ["long " * 40])
    text = table.to_csv()
    assert text.endswith('a,b\n0.30000000000000004,"x,y"\n2,\n')
    assert all(line.startswith("# long") for line in text.splitlines()[:-3])
