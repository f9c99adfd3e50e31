"""Attention, cosines and maps of states, against explicit numbers and on untrained models."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from decoder_models import decoder_model
from transformers import AutoTokenizer

from hart.analysis.figures import find_groups
from hart.analysis.figures_reading import Reader, Reading, demonstration_sets, evenly, layer_cosines
from hart.analysis.figures_states import (
    SHARES,
    attention_shares,
    fig1_attention,
    fig5_tsne,
    states_cosine,
    uniform_attention,
)
from hart.analysis.figures_style import NotDrawable
from hart.data.collections import load_tasks
from hart.data.prompts import Cuts
from hart.errors import HartError
from hart.model.bundled import resolve_base
from hart.model.hart_model import HartModel


def reading(scheme: str = "bidirectional", size: int = 4, order: tuple[int, ...] | None = None) -> Reading:
    nothing = np.zeros((2, size, size))
    return Reading(scheme, ("encoder", "decoder"), (size, size), 1, nothing, nothing, order, (), None)


def test_shares_of_attention_written_out() -> None:
    attention = np.array([[0.1, 0, 0, 0], [0.4, 0.1, 0, 0], [0.2, 0.3, 0.1, 0.05], [0, 0.2, 0.5, 0.3]])
    shares = attention_shares(attention, reading(), 4)
    assert shares == pytest.approx(
        {
            "predecessor": (0.4 + 0.3 + 0.5) / 3,
            "two predecessors": (0.4 + 0.3 + 0.2 + 0.5 + 0.2) / 3,
            "itself": (0.1 + 0.1 + 0.3) / 3,
            "the rest": 1 - (1.6 + 0.5) / 3,
        }
    )
    flipped = attention[::-1, ::-1]
    assert attention_shares(flipped, reading(order=(3, 2, 1, 0)), 4) == pytest.approx(shares)
    # of a stack with fewer layers the rest does not count
    assert attention_shares(attention, reading(), 2)["predecessor"] == pytest.approx(0.4)
    with pytest.raises(NotDrawable, match="two layers or more"):
        attention_shares(attention, reading(), 1)


def test_uniform_attention_is_over_what_a_layer_may_see() -> None:
    even = uniform_attention(reading())
    np.testing.assert_allclose(even, 1 / 8)
    causal = uniform_attention(reading("causal"))
    np.testing.assert_allclose(causal[0, 2], [1 / 6, 1 / 6, 1 / 6, 0])
    np.testing.assert_allclose(causal.sum(axis=2), 0.5)  # as much again lies on the other stack
    down = uniform_attention(reading("causal", order=(3, 2, 1, 0)))
    np.testing.assert_allclose(down[0], causal[0][::-1, ::-1])
    assert attention_shares(causal[0], reading("causal"), 4) == pytest.approx(
        attention_shares(down[0], reading("causal", order=(3, 2, 1, 0)), 4)
    )


def test_cosines_of_layers_written_out() -> None:
    states = torch.randn(3, 2, 4, 2, 5)
    cosines = layer_cosines(states)
    one, other = states[1, 0, 2].flatten(), states[1, 0, 3].flatten()
    assert cosines[1, 0, 2, 3] == pytest.approx(float(one @ other / one.norm() / other.norm()))
    assert layer_cosines(states[:, :, :1].expand(-1, -1, 4, -1, -1)).numpy() == pytest.approx(1)


def test_demonstration_sets_are_the_tasks_own_and_the_same_again(build_config, tmp_path: Path) -> None:
    config = build_config(tmp_path).data
    (task,) = load_tasks(config, "test")
    form = HartModel.from_pretrained("mini").input_format
    sets = demonstration_sets(task, form, 5)
    known = {(each.input, each.output) for each in task.demonstrations}
    known |= {(each.input, each.references[0]) for each in task.instances}
    assert all({(each.input, each.output) for each in one.demonstrations} <= known for one in sets)
    assert [len(one.demonstrations) for one in sets] == [2] * 5
    assert len({one.demonstrations for one in sets}) > 1
    assert [one.demonstrations for one in demonstration_sets(task, form, 5)] == [one.demonstrations for one in sets]


def test_tasks_are_spread_over_the_split() -> None:
    assert evenly(range(10), 4) == [0, 3, 6, 9]  # type: ignore[arg-type]
    assert evenly(range(3), 4) == [0, 1, 2]  # type: ignore[arg-type]


def test_fig1_and_cosines_are_the_models_own(make_run, falling) -> None:
    path = make_run("both", falling(20), final=True, model={"scheme": {"name": "bidirectional"}})
    groups, _ = find_groups([str(path)])
    reader = Reader()
    drawing = fig1_attention(groups, reader)
    model = HartModel.from_pretrained(path / "final")
    (task,) = load_tasks(groups[0].config.data, "test")
    ids, mask = model.main.pad([model.input_format.encode_task(model.main.tokenizer, model.input_format.shown(task))])
    attention = model.hypernetwork.attention_maps(ids, mask)[0]
    rows = {(stack, layer, other): value for _, stack, layer, other, value, _ in drawing.tables[""].rows}
    assert len(rows) == 2 * 3 * 3
    assert rows["decoder", 2, 1] == pytest.approx(float(attention[1, 1, 0]))
    assert [row[3] for row in drawing.tables["shares"].rows] == [*SHARES, *SHARES]
    said = drawing.figure.axes[0].get_xlabel()
    assert f"predecessor {drawing.tables['shares'].rows[0][4]:.2f} (uniform 0.17)" in said

    cosines = states_cosine(groups, reader).tables[""].rows
    with torch.no_grad():
        states = model.hypernetwork(ids, mask).states[0, 1].flatten(1)
    expected = torch.nn.functional.cosine_similarity(states[0], states[2], dim=0)
    (value,) = [row[-1] for row in cosines if row[2:5] == ["decoder", 1, 3]]
    assert value == pytest.approx(float(expected), abs=1e-6)


def test_layers_that_cannot_be_seen_stay_empty(make_run, falling) -> None:
    path = make_run("causal", falling(20), final=True, model={"scheme": {"name": "causal"}})
    drawing = fig1_attention(find_groups([str(path)])[0], Reader())
    image = drawing.figure.axes[0].images[0].get_array()
    assert np.ma.getmaskarray(image).tolist() == np.triu(np.ones((3, 3), bool), 1).tolist()


def test_the_map_has_a_point_for_each_state(make_run, falling) -> None:
    hart = make_run("hart", falling(20), final=True)
    hyper = make_run("hyper", falling(20), final=True, model={"scheme": {"name": "shared"}})
    groups, _ = find_groups([str(hart), str(hyper)])
    reader = Reader()
    drawing = fig5_tsne(groups, reader)
    points = drawing.tables[""].rows
    assert len(points) == 2 * 1 * 8 * 3  # stacks, tasks, demonstration sets, layers; of hart alone
    assert points == fig5_tsne(groups, Reader()).tables[""].rows
    by_layer = {tuple(row[1:4]): row[4] for row in drawing.tables["silhouettes"].rows}
    assert np.isnan(by_layer["encoder", "task", "map"])  # one task has no other
    from sklearn.metrics import silhouette_score

    states = reader.read(groups[0].sources[0]).states[0, :, 0]
    layers = np.broadcast_to(np.arange(3), (8, 3)).ravel()
    assert by_layer["encoder", "layer", "states"] == pytest.approx(silhouette_score(states.reshape(24, -1), layers))
    with pytest.raises(NotDrawable, match="in scheme shared all have one"):
        fig5_tsne(groups[1:], reader)
    (remark, *_) = [each for each in states_cosine(groups, reader).remarks if "shared" in each]
    assert remark == "in scheme shared all layers have one state, so all cosines are 1"


def test_what_models_cannot_give_is_said(make_run, falling, monkeypatch, tmp_path: Path) -> None:
    hart = make_run("hart", falling(20), final=True)
    with pytest.raises(NotDrawable, match="scheme bidirectional or causal"):
        fig1_attention(find_groups([str(hart)])[0], Reader())
    with pytest.raises(NotDrawable, match="needs a run that has saved a model"):
        states_cosine(find_groups([str(make_run("none", falling(20)))])[0], Reader())
    with pytest.raises(HartError, match="gone"):
        states_cosine(find_groups([str(hart)])[0], Reader(data_dir=str(tmp_path / "gone")))
    (hart / "final" / "model.safetensors").write_bytes(b"x")
    good = make_run("good", falling(20), final=True, alpha=1.0)
    drawing = states_cosine(find_groups([str(hart), str(good)])[0], Reader())
    assert {row[0] for row in drawing.tables[""].rows} == {"good"}
    assert any(remark.startswith("left out: ") and "model.safetensors" in remark for remark in drawing.remarks)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(HartError, match=r"scikit-learn is not installed; pip install 'hart-hypernet\[figures\]'"):
        fig5_tsne(find_groups([str(good)])[0], Reader())


def test_full_fine_tuning_has_no_states(make_run, falling) -> None:
    model = {"weights": "none", "train_main": True, "peft": [], "fusion": False}
    path = make_run("full", falling(20), final=True, model=model, data={"demonstrations_to": "main"})
    with pytest.raises(NotDrawable, match="generates no weights"):
        states_cosine(find_groups([str(path)])[0], Reader())


def test_decoder_only_models_have_one_stack_and_a_tokenizer_of_their_hypernetwork(make_run, falling, tmp_path) -> None:
    base = tmp_path / "llama"
    tokenizer = AutoTokenizer.from_pretrained(resolve_base("mini-base"))
    tokenizer.add_tokens(["the", "words"])  # else both networks had the same
    decoder_model("llama", len(tokenizer)).save_pretrained(base)
    tokenizer.save_pretrained(base)
    scheme = {"name": "bidirectional", "rows": 2}
    options = {"base": str(base), "hypernetwork_init": "mini-base", "decoder_layers": 1, "fusion": False}
    llama = make_run("llama-run", falling(20), final=True, model={**options, "scheme": scheme})
    t5 = make_run("t5", falling(20), final=True, model={"scheme": {"name": "bidirectional"}})
    groups, _ = find_groups([str(llama), str(t5)])
    reader = Reader()
    for draw in (fig1_attention, fig5_tsne, states_cosine):
        rows = draw(groups, reader).tables[""].rows
        at = 1 if draw is not states_cosine else 2
        assert {(row[0], row[at]) for row in rows} == {("llama-run", "decoder"), ("t5", "encoder"), ("t5", "decoder")}
    shares = fig1_attention(groups[:1], reader).tables["shares"].rows
    assert shares[0][-1] == pytest.approx(1 / 3)  # uniform over three layers, the only stack's

    model = HartModel.from_pretrained(llama / "final")
    (task,) = load_tasks(groups[0].config.data, "test")
    states = model.read([model.input_format.shown(task)], Cuts()).states.detach()
    np.testing.assert_allclose(reader.read(groups[0].sources[0]).cosines, layer_cosines(states)[0], atol=1e-6)
