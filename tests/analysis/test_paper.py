"""The paper's numbers, and the configuration of each row."""

from pathlib import Path

import pytest

from hart.analysis.paper import TABLES, check_places, places_of, size_of, system_of
from hart.errors import HartError
from hart.training.config import load

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FILES = sorted(path for scale in ("mini", "t5-large", "t5-xl") for path in (CONFIGS / scale).glob("*.yaml"))
OTHERS = ("bidirectional", "hart_causal", "hart_lora", "hart_mixed", "hart_mini", "hart_own", "hart_procedural")


def flat(path: Path) -> dict:
    tree = load(path).to_dict()
    return {f"{section}.{name}": value for section, fields in tree.items() for name, value in fields.items()}


def test_averages_are_means_of_their_columns_but_for_two() -> None:
    off = [
        (table.number, row.label)
        for table in (TABLES[4], TABLES[5])
        for row in table.rows
        if abs(sum(row.values[:-1]) / 8 - row.values[-1]) > 0.1
    ]
    assert off == [(5, "T0-3B"), (5, "HINT")]
    assert all(len(row.values) == len(table.columns) for table in TABLES.values() for row in table.rows)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_file_is_the_system_that_its_name_says(path: Path) -> None:
    name = path.stem.removesuffix("_sni").removesuffix("_p3")
    expected = "" if name.startswith(OTHERS) or name.endswith("_pretrain") else name
    assert system_of(flat(path)) == expected
    assert size_of(flat(path)) == ("xl" if path.parent.name == "t5-xl" else "large")


@pytest.mark.parametrize(
    ("file", "places"),
    [
        ("t5-large/hart_sni", [(2, "HART"), (6, "+ Local Consistency Regularization (HART)")]),
        ("t5-xl/hart_p3", [(5, "HART")]),
        ("t5-xl/hint_sni", [(3, "HINT")]),
        ("t5-large/hart_flan_sni", [(2, "HART-FLAN-T5-Large")]),
        ("mini/hart_random_order_sni", [(7, "Depend on one random, fixed layer")]),
        ("mini/bidirectional_sni", []),
    ],
)
def test_where_a_run_belongs(file: str, places: list[tuple[int, str]]) -> None:
    assert places_of(flat(CONFIGS / f"{file}.yaml")) == places


def test_what_the_paper_has_not() -> None:
    assert system_of({**flat(CONFIGS / "mini/hart_sni.yaml"), "distillation.teacher": "base"}) == ""
    check_places([{"table": 2, "row": "HART"}])
    with pytest.raises(HartError, match="the paper has no Table 9 of results"):
        check_places([{"table": 9, "row": "HART"}])
    with pytest.raises(HartError, match="Table 2 of the paper has no row HARP; did you mean HART?"):
        check_places([{"table": 2, "row": "HARP"}])
