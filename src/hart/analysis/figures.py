"""The paper's figures from the user's own runs: `hart figures` (Figures 1, 3, 4, 5, and cosines between layers).

`figures_runs` finds runs and groups those that differ only in the seed, `figures_curves` draws losses,
`figures_reading` has models read tasks, `figures_states` draws their states and attention, and `figures_style` has the
style of all figures and writes their files. docs/figures.md describes each figure.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hart.analysis import figures_curves, figures_states
from hart.analysis.figures_reading import Reader
from hart.analysis.figures_runs import Group, find_sources, group_sources, without_repeated_seeds
from hart.analysis.figures_style import FORMATS, Drawing, NotDrawable, save, styled
from hart.errors import HartError
from hart.runtime.files import check_file_target

Draw = Callable[[Sequence[Group], Reader], Drawing]

FIGURES: dict[str, Draw] = {
    "fig1_attention": figures_states.fig1_attention,
    "fig3_autoregression": lambda groups, reader: figures_curves.fig3_autoregression(groups),
    "fig4_consistency": lambda groups, reader: figures_curves.fig4_consistency(groups),
    "fig5_consistency_loss": lambda groups, reader: figures_curves.fig5_consistency_loss(groups),
    "fig5_tsne": figures_states.fig5_tsne,
    "states_cosine": figures_states.states_cosine,
}
"""Name of a figure and its files → function that draws it."""


@dataclass(frozen=True)
class Outcome:
    """One figure: its files and remarks, or the reason why it was not made (`problem`)."""

    name: str
    paths: tuple[Path, ...] = ()
    remarks: tuple[str, ...] = ()
    problem: str = ""


def find_groups(runs: Sequence[str]) -> tuple[list[Group], list[str]]:
    """The groups of runs at the paths, and remarks about them; see `find_sources` and `group_sources`.

    Raises:
        HartError: as `find_sources`.
    """
    sources, remarks = find_sources(runs)
    sources, repeated = without_repeated_seeds(sources)
    return group_sources(sources), [*remarks, *repeated]


def make_figures(
    groups: Sequence[Group], folder: Path, reader: Reader, *, formats: Sequence[str] = FORMATS
) -> Iterator[Outcome]:
    """Draw and write each figure in turn.

    Args:
        folder: folder of the files; created if missing, existing files are replaced.
        formats: "png", "svg" or both.

    Raises:
        HartError: a file cannot be written. A figure that cannot be drawn gives an outcome with a `problem`.
    """
    for name in FIGURES:
        check_file_target(folder / f"{name}.csv")
    for name, draw in FIGURES.items():
        with styled():
            try:
                drawing = draw(groups, reader)
            except (NotDrawable, HartError) as error:
                yield Outcome(name, problem=str(error))
                continue
            paths = save(drawing, name, folder, formats)
        yield Outcome(name, tuple(paths), tuple(drawing.remarks))
