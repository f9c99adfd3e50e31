"""Every configuration in the repository loads, has fitting parts, and is documented."""

import json
from pathlib import Path

import pytest
import yaml

from hart.hypernetwork.network import HyperNetwork
from hart.model.hart_model import HartModel
from hart.training.blueprint import base_config, build
from hart.training.config import RunConfig, json_schema, load
from hart.training.estimate import estimate

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
SCHEMA = CONFIGS / "schema.json"
# accelerate/ and deepspeed/ hold files of those tools, studies/ lists of rows.
FILES = sorted(p for p in CONFIGS.rglob("*.yaml") if not {"accelerate", "deepspeed", "studies"} & set(p.parts))
DECODER_ONLY = ("qwen3-0.6b", "llama-3.2-1b")  # of the hub
MINI = [path for path in FILES if path.parent.name == "mini"]
DOCUMENTATION = (CONFIGS.parent / "docs" / "systems.md").read_text(encoding="utf-8")


def named(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


@pytest.fixture(params=FILES, ids=named)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_it_loads_and_its_run_is_called_after_it(path: Path) -> None:
    config = load(path)
    assert config.training.output_dir == f"runs/{named(path)}"
    assert (
        f"hart train {path.relative_to(CONFIGS.parent)}" in path.read_text(encoding="utf-8")
        or "quickstart" in path.read_text()
    )


def test_it_builds_without_weights(path: Path) -> None:
    parts = build(load(path))
    assert all(parameter.is_meta for parameter in parts.main.parameters())


def test_pre_training_and_fine_tuning_make_the_same_system(path: Path) -> None:
    config = load(path)
    if config.model.init_from is None:
        return
    first = load(path.parent / f"{Path(config.model.init_from).parent.name}.yaml")
    assert first.training.output_dir + "/final" == config.model.init_from and first.data.segments
    assert config.model.changed(init_from=None) == first.model


def test_systems_are_documented(path: Path) -> None:
    if path.stem not in ("hart_procedural", "hart_mini", "hart_own"):
        assert f"`{path.stem}`" in DOCUMENTATION


def without_effect(config: RunConfig) -> set[str]:
    """Fields that change nothing in such a system, whatever their value."""
    model, data = config.model, config.data
    reader, collection = data.demonstrations_to, data.collection
    table = {
        "decoder_layers": model.weights != "generated" or model.scheme["name"] == "component",
        "scheme": model.weights != "generated",
        "dropout": model.weights != "generated",
        "num_demonstrations": reader == "nowhere" or data.segments,
        "demonstrations": reader == "nowhere" or data.segments,
        "explanations": reader == "nowhere" or data.segments,
        "max_demonstrations_length": reader == "nowhere",
        "max_query_length": reader == "main",
        "max_average_length": collection != "p3",
        "max_document_tokens": not data.segments,
        "hub_name": collection == "procedural",
        "max_train_instances": data.segments,
        "max_test_instances": data.segments,
        "task_sampling": data.segments,
        "eval_instances": not config.training.eval_every,
        "eval_every": not data.validation_tasks and collection != "procedural",
    }
    return {name for name, idle in table.items() if idle}


def test_no_file_has_a_field_without_effect(path: Path) -> None:
    config = load(path)
    given = config.model.model_fields_set | config.data.model_fields_set | config.training.model_fields_set
    assert not given & without_effect(config)


def test_editors_find_the_schema(path: Path) -> None:
    first, *_ = path.read_text(encoding="utf-8").splitlines()
    assert first == "# yaml-language-server: $schema=../schema.json"
    assert SCHEMA == path.parent.parent / "schema.json"


def test_the_schema_takes_it(path: Path) -> None:
    validator = pytest.importorskip("jsonschema_rs").validator_for(json.loads(json_schema()))
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert [str(error) for error in validator.iter_errors(content)] == []
    for wrong in (
        {"trainin": {}},
        {"training": {"max_step": 1}},
        {"training": {"max_steps": 0}},
        {"model": {"peft": [{"kind": "prefx"}]}},
        {"model": {"peft": [{"kind": "prefix", "rank": 1}]}},
        {"model": {"scheme": {"name": "shared", "row": 1}}},
    ):
        assert not validator.is_valid({**content, **wrong})


def test_the_schema_is_that_of_the_fields() -> None:
    assert SCHEMA.read_text(encoding="utf-8") == json_schema(), "run hart config schema --output configs/schema.json"
    for section in json.loads(json_schema())["$defs"].values():
        assert all(field.get("description") for field in section["properties"].values())


@pytest.mark.parametrize("path", MINI, ids=named)
def test_mini_files_make_real_systems(path: Path) -> None:
    config = load(path)
    model = config.model.changed(init_from=None)
    system = HartModel.from_config(model, config.data)
    trained = sum(parameter.numel() for parameter in system.parameters() if parameter.requires_grad)
    assert trained == estimate(config).trained
    assert sum(p.numel() for p in system.parameters()) == trained + estimate(config).frozen


def test_scales_differ_in_size_and_budget_only() -> None:
    for large in (path for path in FILES if path.parent.name == "t5-large"):
        xl = CONFIGS / "t5-xl" / large.name
        if not xl.exists():
            continue
        one, other = load(large), load(xl)
        assert one.data == other.data
        same = ("weights", "train_main", "tied_encoder", "scheme", "peft", "fusion", "decoder_layers")
        assert [getattr(one.model, name) for name in same] == [getattr(other.model, name) for name in same]
        assert (one.training.max_steps, other.training.max_steps) == (10_000, 20_000)


@pytest.mark.parametrize(("scale", "first", "second"), [("t5-large", 134, 101), ("t5-xl", 537, 403)])
def test_parameter_counts_of_the_appendix(scale: str, first: int, second: int) -> None:
    """App. 8.1.2: 4 shared first maps d → p·d and 4L second maps d → d; HyperTuning's first maps are d → d."""
    paths = (CONFIGS / scale / f"{name}_sni.yaml" for name in ("hart", "hypertuning"))
    hart, hypertuning = (build(load(path)).peft_source for path in paths)
    assert isinstance(hart, HyperNetwork) and isinstance(hypertuning, HyperNetwork)
    d, p, layers = hart.shape.d_model, 32, 24
    counts, others = hart.count_parameters(), hypertuning.count_parameters()
    assert counts["heads.first"] == 4 * p * d * d and round(counts["heads.first"] / 1e6) == first
    assert counts["heads.second"] == 4 * layers * d * d and round(counts["heads.second"] / 1e6) == second
    assert others["heads.first"] == 4 * d * d and others["heads.second"] == counts["heads.second"]
    assert (counts["scheme"], others["scheme"]) == (2 * d, 2 * p * d)
    assert all(counts[part] == others[part] for part in ("embedding", "encoder", "decoder", "heads.norm"))


@pytest.mark.parametrize("path", [p for p in FILES if p.parent.name in DECODER_ONLY], ids=named)
def test_a_folder_in_the_layout_of_the_hub_stands_for_a_base(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is known here of a base is what its config.json says, and its hypernetwork is another network."""
    config = load(path)
    known = estimate(config)
    for name in {config.model.base, config.model.hypernetwork_init} - {None}:
        base_config(name).save_pretrained(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hart.training.blueprint.KNOWN", {})
    found = estimate(config)
    assert found.frozen == known.frozen and found.flops == known.flops
    assert known.total_memory < 20, "GiB, of 24"
    assert estimate(config, devices=8, zero_stage=2).total_memory < known.total_memory
    # A folder without weights has no output matrix of its own to be seen; that is of T5 alone.
    assert found.parameters == known.parameters


def test_known_bases_have_their_published_sizes() -> None:
    sizes = {"small": 77, "base": 248, "large": 783, "xl": 2850, "xxl": 11135}
    for size, millions in sizes.items():
        config = RunConfig().changed(model={"base": f"google/t5-{size}-lm-adapt"})
        counts = estimate(config).parameters
        main = sum(count for name, count in counts.items() if name.startswith("main"))
        assert round(main / 1e6) == millions
        assert base_config(f"google/flan-t5-{size}").d_kv == 64
