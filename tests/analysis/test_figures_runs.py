"""Finding and distinguishing runs for figures, and refused folders."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from hart.analysis.figures import find_groups
from hart.analysis.figures_runs import CONSISTENCY_FIELDS, Source, describe, find_sources, group_sources
from hart.errors import HartError
from hart.training.config import RunConfig


def test_the_losses_of_a_run_are_read(make_run, falling) -> None:
    losses = falling(40)
    path = make_run("one", losses)
    (source,), remarks = find_sources([str(path)])
    assert source.each_step is not None and source.means is not None
    np.testing.assert_array_equal(source.each_step.losses["prediction_loss"], losses)
    assert source.each_step.steps.tolist() == list(range(1, 41)) and source.each_step.window == 1
    np.testing.assert_allclose(source.means.losses["prediction_loss"], losses.reshape(4, 10).mean(axis=1))
    assert source.means.steps.tolist() == [10, 20, 30, 40] and source.means.window == 10
    assert remarks == ["one, seed 0: unfinished, step 40 of 40; used as far as it goes (there is no model yet)"]


def test_a_line_that_is_being_written_is_left_out_and_a_wrong_one_refused(make_run, falling) -> None:
    path = make_run("one", falling(40))
    steps = path / "steps.csv"
    whole = steps.read_text()
    steps.write_text(whole + "41,1.2")
    assert len(find_sources([str(path)])[0][0].each_step.steps) == 40
    steps.write_text(whole.replace("\n7,", "\n9,"))
    with pytest.raises(HartError, match="steps.csv: line 8 is not the one of step 7"):
        find_sources([str(path)])
    steps.write_text("a,b\n1,2\n")
    with pytest.raises(HartError, match="first line is not the header"):
        find_sources([str(path)])
    steps.write_bytes(b"\xff\xfe")
    with pytest.raises(HartError, match="not UTF-8"):
        find_sources([str(path)])


def test_steps_of_which_the_first_are_lost_are_not_used(make_run, falling) -> None:
    path = make_run("one", falling(40))
    header, *lines = (path / "steps.csv").read_text().splitlines()
    (path / "steps.csv").write_text("\n".join([header, *lines[20:]]) + "\n")
    (source,), _ = find_sources([str(path)])
    assert source.each_step is None and source.means is not None


def test_a_sweep_is_found_at_each_of_its_folders_and_each_run_once(make_run, falling) -> None:
    for name, scheme in (("causal", "causal"), ("hyper", "shared")):
        for seed in (0, 2, 10):
            path = make_run(f"out/{name}/seed-{seed}/run", falling(20), model={"scheme": {"name": scheme}}, seed=seed)
            (path.parent / "config.yaml").write_text("of the sweep")
    out = path.parents[2]
    whole, _ = find_sources([str(out)])
    assert [(source.name, source.seed) for source in whole] == [
        (name, seed) for name in ("causal", "hyper") for seed in (0, 2, 10)
    ]
    again = [str(out / "causal"), str(out / "causal" / "seed-0"), str(out / "causal" / "seed-0" / "run"), str(out)]
    assert [source.path.resolve() for source in find_sources(again)[0]] == [each.path.resolve() for each in whole]
    groups = group_sources(whole)
    assert [(group.label, len(group.sources)) for group in groups] == [("causal", 3), ("hyper", 3)]


def test_a_repeated_seed_is_no_other_seed(make_run, falling) -> None:
    one, again, other = (make_run(f"{n}/run", falling(20), seed=seed) for n, seed in (("a", 0), ("b", 0), ("c", 1)))
    (group,), remarks = find_groups([str(path) for path in (one, again, other)])
    assert [source.seed for source in group.sources] == [0, 1]
    assert remarks[-1:] == [f"{again}: the same configuration and seed as {one}, left out"]


def test_seeds_are_grouped_and_labels_are_told_apart(make_run, falling) -> None:
    paths = [
        make_run("a/run", falling(20), seed=0),
        make_run("b/run", falling(20), alpha=1.0),
        make_run("c-0", falling(20), model={"scheme": {"name": "causal"}}, seed=0, log_every=5),
        make_run("c-1", falling(20), model={"scheme": {"name": "causal"}}, seed=1),
        make_run("a2/run", falling(20), seed=1),
    ]
    groups = group_sources(find_sources([str(path) for path in paths])[0])
    assert [(group.label, [source.seed for source in group.sources]) for group in groups] == [
        ("run, alpha 0", [0, 1]),
        ("run, alpha 1", [0]),
        ("causal", [0, 1]),
    ]
    assert groups[0].alike(*CONSISTENCY_FIELDS) == groups[1].alike(*CONSISTENCY_FIELDS)
    assert groups[0].alike() != groups[1].alike() and groups[0].alike("model.scheme") == groups[2].alike("model.scheme")


def test_a_description_has_the_papers_terms(build_config, tmp_path: Path) -> None:
    scheme = {"name": "causal", "order": "top_down"}
    assert describe(build_config(tmp_path, model={"scheme": scheme}, alpha=0.0)) == "causal, top_down"
    assert describe(build_config(tmp_path, alpha=0.5, pairing="task")) == "autoregressive, α = 0.5, by task"


def test_a_model_is_a_source_with_the_tasks_of_its_run(make_run, falling) -> None:
    path = make_run("one", falling(20), final=True)
    (run,), remarks = find_sources([str(path)])
    assert remarks == [] and run.model == path / "final"
    (model,), remarks = find_sources([str(path / "final")])
    assert remarks == [] and model.name == "one" and model.config == run.config and model.means is None
    alone = shutil.copytree(path / "final", path.parent / "alone")
    (model, mini), _ = find_sources([str(alone), "mini"])
    assert (model.name, model.config, mini.name, mini.config) == ("alone", None, "mini", None)
    assert [group.label for group in group_sources([model, mini, run])] == ["alone", "mini", "one"]


def test_mistakes_are_one_line(make_run, falling, tmp_path: Path) -> None:
    for given, problem in (
        (tmp_path / "none", "no such folder"),
        (Path(__file__), "is a file"),
        (tmp_path, "must be a run"),
    ):
        with pytest.raises(HartError, match=problem) as error:
            find_sources([str(given)])
        assert "\n" not in str(error.value)
    one = make_run("one", falling(20))
    other = make_run("other", falling(20), data={"collection": "procedural", "dir": None})
    with pytest.raises(HartError, match="one is trained on sni and other on procedural.*give runs of one collection"):
        find_sources([str(one), str(other)])


def test_a_run_without_a_step_is_left_out(make_run, falling) -> None:
    empty, one = make_run("empty", []), make_run("one", falling(20))
    (empty / "run.json").write_text("{}")
    sources, remarks = find_sources([str(empty), str(one)])
    assert [source.name for source in sources] == ["one"]
    assert remarks[0] == f"{empty}: no step is logged yet; left out"
    with pytest.raises(HartError, match="nothing to draw"):
        find_sources([str(empty)])


def test_runs_with_other_data_or_another_teacher_are_no_seeds_of_one_another() -> None:
    def grouped(*changes: dict[str, dict[str, str]]) -> int:
        configs = [
            RunConfig().changed(**each).changed(training={"seed": seed, "alpha": 0.0})
            for seed, each in enumerate(changes)
        ]
        return len(group_sources([Source("run", Path(str(at)), config) for at, config in enumerate(configs)]))

    moved, other = ([{"data": {"dir": path}} for path in paths] for paths in (("a/sni", "b/sni"), ("a/one", "a/two")))
    assert grouped(*moved) == 1 and grouped(*other) == 2
    assert grouped({}, {"distillation": {"teacher": "base"}}) == 2
    files = [{"data": {"distractors": path}} for path in ("a/d.txt", "b/d.txt", "b/e.txt")]
    assert grouped(*files) == 2
    seeds = [{"model": {"init_from": f"{out}/pre/seed-{at}/run/final"}} for at, out in enumerate(("here", "there"))]
    assert grouped(*seeds) == 1 and grouped(seeds[0], {"model": {"init_from": "here/other/seed-0/run/final"}}) == 2
