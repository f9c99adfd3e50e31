"""The paper's results, Tables 2 to 7, and the mapping from configurations to their rows.

Numbers are percent: ROUGE-L on Super-NaturalInstructions, accuracy on P3. The averages of T0-3B and HINT in Table 5
are not the means of their eight columns; they include a ninth task, StoryCloze.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hart.errors import HartError, suggestion

P3_COLUMNS = ("ANLI", "HSwag", "CB", "COPA", "RTE", "WiC", "WSC", "WGD")
"""Columns of Tables 4 and 5 before the average, in order."""
AVERAGE = "Avg."


@dataclass(frozen=True)
class PaperRow:
    """A row of a table: its label, its numbers, and the corresponding system of this repository (empty if none)."""

    label: str
    values: tuple[float, ...]
    system: str


@dataclass(frozen=True)
class PaperTable:
    """A table of results.

    Attributes:
        columns: heading and collection of each column of numbers.
        size: size of the base, "large" or "xl".
    """

    number: int
    title: str
    columns: tuple[tuple[str, str], ...]
    size: str
    rows: tuple[PaperRow, ...]

    def row(self, label: str) -> PaperRow:
        """The row with this label.

        Raises:
            HartError: the table has no such row.
        """
        found = next((row for row in self.rows if row.label == label), None)
        if found is None:
            advice = suggestion(label, [row.label for row in self.rows])
            raise HartError(f"Table {self.number} of the paper has no row {label}; {advice}")
        return found


_SNI = (("ROUGE-L", "sni"),)
_P3 = tuple((name, "p3") for name in (*P3_COLUMNS, AVERAGE))


def _rows(*rows: tuple[str, str, tuple[float, ...]]) -> tuple[PaperRow, ...]:
    return tuple(PaperRow(label, values, system) for label, system, values in rows)


TABLES: dict[int, PaperTable] = {
    table.number: table
    for table in (
        PaperTable(
            2,
            "T5-Large on Super-NaturalInstructions",
            _SNI,
            "large",
            _rows(
                ("FT-Zero-Shot", "ft_zero_shot", (40.6,)),
                ("FT-Few-Shot", "ft_few_shot", (47.6,)),
                ("Tk-Instruct", "tk_instruct", (48.0,)),
                ("Prefix-Tuning", "prefix_tuning", (42.6,)),
                ("LoRA", "lora", (42.9,)),
                ("HyperTuning-PT", "hypertuning_pt", (43.5,)),
                ("HyperTuning", "hypertuning", (45.2,)),
                ("HART", "hart", (46.8,)),
                ("HART-FLAN-T5-Large", "hart_flan", (49.6,)),
            ),
        ),
        PaperTable(
            3,
            "T5-XL on Super-NaturalInstructions",
            _SNI,
            "xl",
            _rows(
                ("FT-Zero-Shot", "ft_zero_shot", (46.6,)),
                ("FT-Few-Shot", "ft_few_shot", (54.0,)),
                ("Tk-Instruct", "tk_instruct", (54.3,)),
                ("HINT", "hint", (53.2,)),
                ("Prefix-Tuning", "prefix_tuning", (47.1,)),
                ("LoRA", "lora", (47.7,)),
                ("HyperTuning-PT", "hypertuning_pt", (48.6,)),
                ("HyperTuning", "hypertuning", (48.8,)),
                ("HART", "hart", (50.4,)),
            ),
        ),
        PaperTable(
            4,
            "T5-Large on P3",
            _P3,
            "large",
            _rows(
                ("FT-Zero-Shot", "ft_zero_shot", (33.4, 28.0, 63.0, 77.9, 71.1, 50.8, 61.0, 53.4, 54.8)),
                ("FT-Few-Shot", "ft_few_shot", (35.3, 27.5, 68.6, 70.5, 75.2, 51.7, 62.1, 52.2, 55.4)),
                ("Prefix-Tuning", "prefix_tuning", (33.1, 26.1, 53.9, 67.8, 60.5, 49.8, 54.7, 51.4, 49.7)),
                ("LoRA", "lora", (31.8, 26.3, 48.6, 61.4, 71.3, 51.5, 63.0, 51.1, 50.6)),
                ("HyperTuning-PT", "hypertuning_pt", (33.4, 32.3, 60.1, 73.9, 71.5, 51.1, 63.0, 51.1, 54.6)),
                ("HyperTuning", "hypertuning", (33.4, 28.5, 59.4, 68.6, 67.9, 50.6, 62.8, 52.9, 53.0)),
                ("HART", "hart", (33.6, 28.4, 70.2, 70.1, 72.2, 50.3, 62.3, 53.0, 55.0)),
            ),
        ),
        PaperTable(
            5,
            "T5-XL on P3",
            _P3,
            "xl",
            _rows(
                ("T0-3B", "", (33.4, 27.3, 45.4, 72.8, 64.6, 50.6, 64.9, 50.9, 54.9)),
                ("FT-Zero-Shot", "ft_zero_shot", (39.9, 29.4, 64.5, 88.0, 80.8, 51.7, 60.7, 57.9, 59.1)),
                ("FT-Few-Shot", "ft_few_shot", (37.9, 30.9, 67.6, 90.5, 76.6, 51.2, 63.3, 61.1, 59.9)),
                ("HINT", "hint", (41.6, 30.3, 76.0, 88.8, 84.2, 51.4, 59.5, 60.1, 65.4)),
                ("Prefix-Tuning", "prefix_tuning", (38.3, 31.2, 61.4, 82.4, 78.6, 52.6, 57.0, 54.3, 57.0)),
                ("LoRA", "lora", (37.3, 27.7, 54.2, 77.5, 74.6, 53.9, 58.3, 51.6, 54.4)),
                ("HyperTuning-PT", "hypertuning_pt", (38.7, 33.6, 69.6, 88.4, 79.5, 53.1, 57.6, 56.6, 59.6)),
                ("HyperTuning", "hypertuning", (36.8, 26.6, 54.6, 79.4, 76.8, 52.3, 54.8, 50.8, 54.0)),
                ("HART", "hart", (37.8, 28.5, 66.7, 80.8, 79.4, 50.5, 59.5, 57.1, 57.6)),
            ),
        ),
        PaperTable(
            6,
            "ablation, T5-Large",
            (("S-NI, ROUGE-L", "sni"), ("P3, accuracy", "p3")),
            "large",
            _rows(
                ("HyperTuning-PT", "hypertuning_pt", (43.5, 54.6)),
                ("- Continual Pre-training", "hypertuning_no_pretraining", (25.3, 50.9)),
                ("+ Fusion-in-Decoder (HyperTuning)", "hypertuning", (45.2, 53.0)),
                ("+ Autoregressive Parameter Generation", "hart_no_consistency", (46.4, 54.3)),
                ("+ Local Consistency Regularization (HART)", "hart", (46.8, 55.0)),
            ),
        ),
        PaperTable(
            7,
            "dependency between layers, T5-Large, without consistency loss",
            (("S-NI, ROUGE-L", "sni"),),
            "large",
            _rows(
                ("N/A (HyperTuning)", "hypertuning", (45.2,)),
                ("Depend on one random, fixed layer", "hart_random_order", (45.5,)),
                ("Depend on the next layer", "hart_top_down", (45.8,)),
                ("Depend on the previous layer (HART)", "hart_no_consistency", (46.4,)),
            ),
        ),
    )
}
WITHOUT_DATA = (6, 7)
"""Tables about the method, not about a collection: runs on the procedural collection are compared with them, too."""


def check_places(places: Iterable[Mapping[str, Any]]) -> None:
    """Check the tables and rows that `paper:` of a study names.

    Raises:
        HartError: the paper has no such table, or the table no such row.
    """
    for place in places:
        if place["table"] not in TABLES:
            raise HartError(f"the paper has no Table {place['table']} of results; choose one of 2 to 7")
        TABLES[place["table"]].row(place["row"])


def places_of(config: Mapping[str, Any]) -> list[tuple[int, str]]:
    """Tables and rows of the paper that match a run's configuration; empty if none match.

    Args:
        config: "section.field" → value, for all fields.
    """
    system, collection, size = system_of(config), config["data.collection"], size_of(config)
    return [
        (table.number, row.label)
        for table in TABLES.values()
        for row in table.rows
        if row.system == system
        and table.size == size
        and (collection in {each for _, each in table.columns} or table.number in WITHOUT_DATA)
    ]


def size_of(config: Mapping[str, Any]) -> str:
    """Size of the paper's base that a run is compared with: "xl" for XL bases, "large" for all others."""
    return "xl" if "xl" in str(config["model.base"]).lower().replace("_", "-").split("/")[-1].split("-") else "large"


def system_of(config: Mapping[str, Any]) -> str:
    """The paper's system that a configuration describes, derived from its fields alone; empty if it is none."""
    if str(config["data.collection"]).endswith("_segments") or config["distillation.teacher"]:
        return ""  # a first stage, or a teacher, which the paper does not have
    kinds = [kind["kind"] for kind in config["model.peft"]]
    weights, reader = config["model.weights"], config["data.demonstrations_to"]
    if weights == "none":
        few = "tk_instruct" if config["data.explanations"] else "ft_few_shot"
        return "ft_zero_shot" if reader == "nowhere" else few
    if weights == "learned":
        known = {("prefix",): "prefix_tuning", ("lora",): "lora"}
        return known.get(tuple(kinds), "") if reader == "main" else ""
    scheme = {"order": "bottom_up", "history": "all", "feedback": "state", "step_embeddings": False}
    scheme |= config["model.scheme"]
    if scheme["name"] == "component":
        return "hint" if config["model.train_main"] and config["model.fusion"] else ""
    if kinds != ["prefix"] or config["model.train_main"]:
        return ""
    if scheme["name"] == "shared":
        return _hypertuning(config)
    if scheme["name"] != "autoregressive" or not config["model.fusion"]:
        return ""
    if scheme["history"] != "all" or scheme["feedback"] != "state" or scheme["step_embeddings"]:
        return ""
    if config["training.alpha"] and config["training.pairing"] != "slots":
        return ""  # differs from §3.2
    if config["training.alpha"]:
        flan = "flan" in str(config["model.hypernetwork_init"]).lower()
        return ("hart_flan" if flan else "hart") if scheme["order"] == "bottom_up" else ""
    orders = {"bottom_up": "hart_no_consistency", "top_down": "hart_top_down", "random": "hart_random_order"}
    return orders.get(str(scheme["order"]), "")


def _hypertuning(config: Mapping[str, Any]) -> str:
    if config["training.alpha"]:
        return ""
    if config["model.fusion"]:
        return "hypertuning"
    return "hypertuning_pt" if config["model.init_from"] else "hypertuning_no_pretraining"
