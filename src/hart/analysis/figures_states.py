"""Figures of layer states: attention between layers (Fig. 1), cosines, and t-SNE maps (Fig. 5, right)."""

import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hart.analysis.figures_reading import SCATTERED_SETS, SCATTERED_TASKS, Reader, Reading
from hart.analysis.figures_runs import Group, Source
from hart.analysis.figures_style import (
    COLUMN,
    PAGE,
    PALETTE,
    SHADES,
    SIGNED,
    Drawing,
    NotDrawable,
    Numbers,
    heat_map,
    looks,
    panels,
)  # fmt: skip
from hart.errors import HartError
from hart.peft.base import STACKS

ABREAST = 4
"""The most matrices side by side on a page."""
SHARES = ("predecessor", "two predecessors", "itself", "the rest")


def _readings(groups: Sequence[Group], reader: Reader) -> tuple[list[tuple[Group, list[Reading]]], list[str]]:
    """Readings of each group's models, and remarks about models that could not be read.

    Raises:
        NotDrawable: there is no model, or none that generates weights from tasks.
        HartError: no model could be loaded.
    """
    found: list[tuple[Group, list[Reading]]] = []
    failed: list[Exception] = []
    for group in groups:
        made = []
        for source in group.sources:
            if source.model is None:
                continue  # `find_sources` has already remarked on it
            try:
                made.append(reader.read(source))
            except (NotDrawable, HartError) as error:
                failed.append(error)
        if made:
            found.append((group, made))
    if not found:
        raise failed[0] if failed else NotDrawable("needs a run that has saved a model")
    return found, [f"left out: {error}" for error in failed]


def _stacks(readings: Iterable[Reading]) -> dict[str, int]:
    """Stack → its position in a figure, for stacks of any of the main models (a decoder-only one has no encoder)."""
    having = {stack for reading in readings for stack in reading.stacks}
    return {stack: at for at, stack in enumerate(each for each in STACKS if each in having)}


def fig1_attention(groups: Sequence[Group], reader: Reader) -> Drawing:
    """Attention between the states of layers in the hypernetwork's last decoder layer (Fig. 1).

    It is the mean over heads, tasks, rows of a state, and seeds of a group. A row sums to 1 over all stacks together; a
    panel shows one stack, so with two stacks its rows sum to less.

    Raises:
        NotDrawable: no model has the scheme bidirectional or causal.
    """
    found, remarks = _readings(groups, reader)
    shown = [(group, [each for each in made if each.attention is not None]) for group, made in found]
    shown = [(group, made) for group, made in shown if made]
    if not shown:
        raise NotDrawable("needs a model with scheme bidirectional or causal; others have no attention between layers")
    stacks = _stacks(made[0] for _, made in shown)
    figure, axes = panels(len(shown), len(stacks), width=2.15 * len(stacks) + 0.6, height=0.3 + 2.9 * len(shown))
    _hide_unused(axes, [made[0] for _, made in shown], stacks)
    cells: list[list[Any]] = []
    numbers: list[list[Any]] = []
    for row, (group, made) in zip(axes, shown, strict=True):
        mean = np.mean([each.attention for each in made if each.attention is not None], axis=0)
        even = uniform_attention(made[0])
        top = max(mean[at, :depth, :depth].max() for at, depth in enumerate(made[0].depths))
        image: Any = None
        for at, (stack, depth) in enumerate(zip(made[0].stacks, made[0].depths, strict=True)):
            panel = row[stacks[stack]]
            seen = np.where(even[at] > 0, mean[at], np.nan)[:depth, :depth]
            image = heat_map(panel, seen, numbers=True, cmap=SHADES, vmin=0, vmax=top)
            shares, of_even = (attention_shares(map_[at], made[0], depth) for map_ in (mean, even))
            lines = [f"{name} {shares[name]:.2f} (uniform {of_even[name]:.2f})" for name in SHARES]
            panel.set(title=f"{group.label}: {stack}", ylabel=f"layer of the {stack}")
            panel.set_xlabel("\n".join(["attended layer", *lines]), fontsize=7)
            numbers += [[group.label, len(made), stack, name, shares[name], of_even[name]] for name in SHARES]
            cells += [
                [group.label, stack, layer + 1, other + 1, mean[at, layer, other], even[at, layer, other]]
                for layer in range(depth)
                for other in range(depth)
            ]
        figure.colorbar(image, ax=list(row), label="attention", shrink=0.6, pad=0.02).outline.set_visible(False)
    tasks = shown[0][1][0].tasks
    remarks = [
        f"mean over heads, rows of a state and {tasks} tasks of the test split, last layer of the hypernetwork's "
        "decoder",
        "below each map: share of a layer's attention, mean over all layers but the first; in parentheses that of "
        "uniform attention; the rest lies on other layers" + (" and on the other stack" if len(stacks) > 1 else ""),
        *remarks,
    ]
    columns = ["run", "stack", "layer", "attended_layer", "attention", "uniform"]
    tables = {
        "": Numbers(columns, cells),
        "shares": Numbers(["run", "seeds", "stack", "attended", "share", "uniform_share"], numbers),
    }
    return Drawing(figure, tables, remarks)


def _hide_unused(axes: np.ndarray, readings: Sequence[Reading], stacks: Mapping[str, int]) -> None:
    """Hide the panels `[readings, stacks]` of stacks that a main model lacks."""
    for row, reading in zip(axes, readings, strict=True):
        for stack in stacks.keys() - set(reading.stacks):
            row[stacks[stack]].set_axis_off()


def uniform_attention(reading: Reading) -> np.ndarray:
    """Attention maps `[S, L, L]` of layers that attend equally to all positions visible to them."""
    count, size = len(reading.stacks), reading.cosines.shape[-1]
    visible = np.ones((size, size))
    if reading.scheme == "causal":
        step = np.argsort(_order(reading, size))
        visible = (step[:, None] >= step[None, :]).astype(float)
    return np.broadcast_to(visible / (count * visible.sum(axis=1, keepdims=True)), (count, size, size))


def attention_shares(attention: np.ndarray, reading: Reading, depth: int) -> dict[str, float]:
    """Shares of a layer's attention, mean over all layers but the first in the order of generation.

    Args:
        attention: attention map of one stack, `[L, L]`.
        depth: number of layers of the stack.

    Returns:
        Shares of the total attention, which includes that to the other stack. "two predecessors" includes the
        predecessor (the second layer has only this one); "the rest" is the attention to all other positions.

    Raises:
        NotDrawable: the stack has fewer than two layers.
    """
    order = [layer for layer in _order(reading, attention.shape[-1]) if layer < depth]
    by_step = attention[np.ix_(order, order)]
    if depth < 2:
        raise NotDrawable("needs main models of two layers or more")
    itself = float(np.diag(by_step)[1:].mean())
    first = float(np.diag(by_step, -1).mean())
    second = float(np.diag(by_step, -2).sum()) / (depth - 1)
    values = (first, first + second, itself, 1 - first - second - itself)
    return dict(zip(SHARES, values, strict=True))


def _order(reading: Reading, size: int) -> Sequence[int]:
    return reading.layer_of_step or range(size)


def states_cosine(groups: Sequence[Group], reader: Reader) -> Drawing:
    """Cosines between the states of all pairs of layers, and of consecutive layers (not in the paper).

    They are means over tasks and seeds. A recursion that reaches a fixed point has a cosine of 1 from some layer on.

    Raises:
        NotDrawable: no model has states.
    """
    found, remarks = _readings(groups, reader)
    stacks = _stacks(made[0] for _, made in found)
    figure, matrices, lines = _matrices_and_lines(len(found), len(stacks))
    _hide_unused(matrices, [made[0] for _, made in found], stacks)
    look = looks([group.label for group in groups])
    cells: list[list[Any]] = []
    image: Any = None
    for column, (group, made) in enumerate(found):
        mean = np.mean([each.cosines for each in made], axis=0)
        style = look[group.label]
        matrices[column, 0].set_title(group.label, fontsize=7)
        for at, (stack, depth) in enumerate(zip(made[0].stacks, made[0].depths, strict=True)):
            panel, line = matrices[column, stacks[stack]], lines[stacks[stack]]
            matrix = mean[at, :depth, :depth]
            image = heat_map(panel, matrix, numbers=len(found) < ABREAST, cmap=SIGNED, vmin=-1, vmax=1)
            panel.set_xlabel(f"{stack} layer")
            if column % _abreast(len(found)) == 0:
                panel.set_ylabel(f"{stack} layer")
            each = np.array([np.diag(one.cosines[at, :depth, :depth], 1) for one in made])
            layers = np.arange(2, depth + 1)
            line.plot(layers, each.mean(axis=0), marker="o", markersize=2, label=group.label, **style)
            if len(made) > 1:
                low, high = each.min(axis=0), each.max(axis=0)
                line.fill_between(layers, low, high, color=style["color"], alpha=0.2, linewidth=0)
            cells += [
                [group.label, len(made), stack, row + 1, col + 1, value] for (row, col), value in np.ndenumerate(matrix)
            ]
    for stack, line in zip(stacks, lines, strict=True):
        line.set(xlabel=f"{stack} layer", ylabel="cosine with the\nlayer below")
        line.set_ylim(min(0, line.get_ylim()[0]), 1.05)
        line.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(*lines[-1].get_legend_handles_labels(), loc="outside upper center", ncols=min(ABREAST, len(found)))
    figure.colorbar(image, ax=matrices.ravel().tolist(), label="cosine", shrink=0.6, pad=0.02, aspect=30)
    tasks = found[0][1][0].tasks
    several = ", and over seeds (bands: lowest to highest)" if any(len(made) > 1 for _, made in found) else ""
    if any(made[0].states is None for _, made in found):
        remarks.append("in scheme shared all layers have one state, so all cosines are 1")
    remarks = [f"mean over {tasks} tasks of the test split{several}", *remarks]
    columns = ["run", "seeds", "stack", "layer", "other_layer", "cosine"]
    return Drawing(figure, {"": Numbers(columns, cells)}, remarks)


def _matrices_and_lines(groups: int, stacks: int) -> tuple[Figure, np.ndarray, list[Axes]]:
    """A figure with matrices `[groups, stacks]`, up to four groups side by side, above one line plot per stack."""
    columns = _abreast(groups)
    blocks = -(-groups // columns)
    side = (PAGE - 0.8) / ABREAST if columns == ABREAST else 1.9
    width = max(COLUMN, side * columns + 0.8)
    figure = Figure(figsize=(width, (side + 0.25) * stacks * blocks + 2.0), layout="constrained")
    # A number of grid units that both kinds of rows divide.
    grid = figure.add_gridspec(stacks * blocks + 1, columns * stacks)
    matrices = [
        [
            figure.add_subplot(grid[group // columns * stacks + at, _span(group % columns, stacks)])
            for at in range(stacks)
        ]
        for group in range(groups)
    ]
    lines = [figure.add_subplot(grid[-1, _span(at, columns)]) for at in range(stacks)]
    return figure, np.array(matrices), lines


def _abreast(groups: int) -> int:
    """Groups per row, so that rows are evenly filled: five groups make rows of three and two."""
    return -(-groups // -(-groups // ABREAST))


def _span(at: int, units: int) -> slice:
    return slice(at * units, (at + 1) * units)


def fig5_tsne(groups: Sequence[Group], reader: Reader) -> Drawing:
    """t-SNE of the states of layers for several tasks and demonstration sets, by layer and by task (Fig. 5, right).

    Each group has one map per stack, made by scikit-learn with a fixed random state from its first seed. Silhouettes
    (−1 to 1) measure how well the states of a layer, or of a task, are separated from the others, in the map and in the
    space of states.

    Raises:
        NotDrawable: no model has states that differ by layer.
        HartError: scikit-learn is not installed.
    """
    if importlib.util.find_spec("sklearn") is None:
        raise HartError("scikit-learn is not installed; pip install 'hart-hypernet[figures]'")
    found, remarks = _readings(groups, reader)
    shown = [(group, made[0]) for group, made in found if made[0].states is not None]
    if not shown:
        raise NotDrawable("needs a model whose layers have states of their own; in scheme shared all have one")
    if any(len(made) > 1 for _, made in found):
        remarks.append("of several seeds the first")
    stacks = _stacks(reading for _, reading in shown)
    width = PAGE * len(stacks) / 2
    figure, axes = panels(len(shown), 2 * len(stacks), width=width, height=0.5 + 1.8 * len(shown))
    for part in (axes[:, ::2], axes[:, 1::2]):
        _hide_unused(part, [reading for _, reading in shown], stacks)
    points: list[list[Any]] = []
    numbers: list[list[Any]] = []
    for row, (group, reading) in zip(axes, shown, strict=True):
        for at, stack in enumerate(reading.stacks):
            pair = row[2 * stacks[stack] : 2 * stacks[stack] + 2]
            if at == 0:
                pair[0].set_ylabel(group.label)
            _map(pair, group.label, reading, at, stack, points, numbers)
    first = shown[0][1]
    names = [task.removeprefix("procedural_").replace("_", " ") for task in first.names]
    handles = [
        axes[0, -1].plot([], [], "o", markersize=3, color=PALETTE[at % len(PALETTE)])[0] for at in range(len(names))
    ]
    figure.legend(handles, names, loc="outside upper center", ncols=2, fontsize=6)
    assert first.states is not None
    remarks = [
        f"{first.states.shape[0]} tasks of the test split, {first.states.shape[1]} demonstration sets each; left panels"
        " are coloured by layer (dark: the first), right ones by task; s: silhouette in the map (in the states' space)",
        *remarks,
    ]
    tables = {
        "": Numbers(["run", "stack", "task", "demonstration_set", "layer", "x", "y"], points),
        "silhouettes": Numbers(["run", "stack", "by", "space", "silhouette"], numbers),
    }
    return Drawing(figure, tables, remarks)


def _map(
    pair: Sequence[Axes],
    label: str,
    reading: Reading,
    at: int,
    stack: str,
    points: list[list[Any]],
    numbers: list[list[Any]],
) -> None:
    """Draw the map of one stack's states twice, coloured by layer and by task; returns its rows of the tables."""
    from sklearn.manifold import TSNE
    from sklearn.metrics import silhouette_score

    assert reading.states is not None
    states = reading.states[:, :, at, : reading.depths[at]]  # [tasks, sets, layers, m·d]
    flat = states.reshape(-1, states.shape[-1])
    task, drawn, layer = (each.ravel() for each in np.indices(states.shape[:3]))
    perplexity = min(30.0, (len(flat) - 1) / 3)
    places = TSNE(init="pca", perplexity=perplexity, random_state=0).fit_transform(flat)
    colours = np.array(PALETTE)[task % len(PALETTE)]
    looks: tuple[dict[str, Any], ...] = ({"c": layer, "cmap": SHADES}, {"c": colours})
    for panel, by, kinds, look in zip(pair, ("layer", "task"), (layer, task), looks, strict=True):
        panel.scatter(places[:, 0], places[:, 1], s=4, linewidths=0, **look)
        panel.set(xticks=[], yticks=[])
        panel.spines[:].set_visible(True)
        panel.set_box_aspect(1)
        values = {}
        for space, where in (("map", places), ("states", flat)):
            some = 1 < len(set(kinds.tolist())) < len(kinds)
            values[space] = float(silhouette_score(where, kinds)) if some else float("nan")
            numbers.append([label, stack, by, space, values[space]])
        panel.set_title(f"{stack}, by {by}", fontsize=7)
        said = f"s = {values['map']:.2f} ({values['states']:.2f})".replace("-", "−")
        panel.set_xlabel(said, fontsize=7)
    rows = zip(task, drawn, layer, places, strict=True)
    points += [[label, stack, reading.names[t], s + 1, depth + 1, *place] for t, s, depth, place in rows]


def passes(sources: Sequence[Source], reader: Reader) -> int:
    """The most tasks that will be read, for a progress bar."""
    return sum(reader.max_tasks + SCATTERED_TASKS * SCATTERED_SETS for source in sources if source.model is not None)
