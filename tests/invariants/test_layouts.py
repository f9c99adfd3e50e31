"""Two processes that divide weights and optimizer states train what one process trains: DeepSpeed's ZeRO and FSDP.

Each layout runs 20 steps through the real command, saves, loses its last checkpoint, goes on, and answers the test
task. Stated tolerance against one process: 1e-4 of each loss, a tenth of one step of Adam in each weight. Against
itself, uninterrupted: none.
"""

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from decoder_models import decoder_model
from forked import run_forked
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer

from hart.cli import main
from hart.data.tasks import Task
from hart.errors import HartError
from hart.evaluation.answers import Results
from hart.evaluation.run import evaluate_model
from hart.model.hart_model import HartModel
from hart.runtime.launch import run_hart
from hart.training.config import RunConfig
from hart.training.run_folder import read_metrics
from hart.training.sharding import FORMAT, check_layout, write_layout
from hart.training.train import train

Build = Callable[..., RunConfig]

REPOSITORY = Path(__file__).resolve().parents[2]
STEPS = 20
WEIGHT_TOLERANCE = 1e-4
SETTINGS: dict[str, Any] = {
    "max_steps": STEPS,
    "save_every": 10,
    "eval_every": 10,
    "eval_instances": 2,
    "alpha": 2.0,
    "num_threads": 1,
    "data": {"validation_tasks": 1, "max_target_length": 16},
    "model": {"dropout": 0.0},
}

needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None or shutil.which("g++") is None,
    reason="DeepSpeed and a C++ compiler are needed",
)
pytestmark = pytest.mark.skipif(
    torch.cuda.is_available() or not torch.distributed.is_gloo_available(), reason="for CPU processes with gloo"
)


def zero(stage: int) -> dict[str, Any]:
    return {"deepspeed": str(REPOSITORY / "configs" / "deepspeed" / f"zero{stage}.json")}


LAYOUTS = [
    pytest.param("zero-1", zero(1), marks=needs_deepspeed, id="zero-1"),
    pytest.param("zero-2", zero(2), marks=needs_deepspeed, id="zero-2"),
    pytest.param("zero-3", zero(3), marks=needs_deepspeed, id="zero-3"),
    pytest.param("fsdp", {"fsdp": True}, id="fsdp"),
]


@pytest.fixture(autouse=True)
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def whole(build_config: Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process, which accumulates its batch."""
    config = build_config(tmp_path_factory.mktemp("whole") / "run", micro_batch_size=2, **SETTINGS)
    return train(config, quiet=True).parent


def run_two(config: RunConfig) -> Path:
    run = Path(config.training.output_dir)
    config.save(run.with_suffix(".yaml"))
    run_forked(["train", str(run.with_suffix(".yaml")), "--device", "cpu"], 2)
    return run


def rows(run: Path) -> list[dict[str, Any]]:
    # Those of the states are of the last pass alone, of which processes have different rows.
    other = {"seconds_per_step", "layer_cosine", "stack_cosine", "row_variance"}
    return [{k: v for k, v in row.items() if k not in other} for row in read_metrics(run / "metrics.jsonl")]


def weights(run: Path) -> dict[str, Tensor]:
    return load_file(run / "final" / "model.safetensors")


def predictions(run: Path, data: Path) -> list[str]:
    results = evaluate_model(HartModel.from_pretrained(run / "final"), [Task.from_file(data / "tasks" / "last.json")])
    assert isinstance(results, Results)
    return [instance.prediction for task in results.tasks for instance in task.instances]


def assert_close(found: list[dict[str, Any]], expected: list[dict[str, Any]], rel: float = 1e-4) -> None:
    assert len(found) == len(expected)
    for row, other in zip(found, expected, strict=True):
        assert row == pytest.approx(other, rel=rel, abs=1e-6)


@pytest.mark.parametrize(("layout", "training"), LAYOUTS)
def test_equals_one_process_and_goes_on(
    run_config: Build, whole: Path, toy_data_dir: Path, layout: str, training: dict[str, Any]
):
    config = run_config("two", **SETTINGS, **training)
    run = run_two(config)
    checkpoint = run / "checkpoints" / f"checkpoint-{STEPS}"
    assert yaml.safe_load((checkpoint / "layout.json").read_text()) == {
        "format": FORMAT,
        "layout": layout,
        "world_size": 2,
        "optimizer": "adamw",
    }
    assert_close(rows(run), rows(whole))
    expected = weights(whole)
    assert weights(run).keys() == expected.keys()
    for name, values in weights(run).items():
        torch.testing.assert_close(values, expected[name], rtol=0, atol=WEIGHT_TOLERANCE)
    assert predictions(run, toy_data_dir) == predictions(whole, toy_data_dir)

    uninterrupted, before = rows(run), weights(run)
    for folder in (run / "final", run / "best", checkpoint):
        shutil.rmtree(folder)
    assert run_two(config) == run
    assert rows(run) == uninterrupted
    assert all(torch.equal(values, before[name]) for name, values in weights(run).items())
    first, last = ((r["eval_rouge_l"], r["eval_exact_match"]) for r in rows(run) if "eval_rouge_l" in r)
    assert (run / "best" / "model.safetensors").exists() == (last > first)


@pytest.mark.parametrize(("layout", "training"), [LAYOUTS[2], LAYOUTS[3]])
def test_a_trained_main_model_and_bf16(run_config: Build, layout: str, training: dict[str, Any]):
    """HINT's shape: both networks trained, one encoder in both; weights that DeepSpeed and FSDP hold in bfloat16."""
    settings: dict[str, Any] = {
        "model": {
            "dropout": 0.0,
            "train_main": True,
            "tied_encoder": True,
            "scheme": {"name": "component"},
            "peft": [{"kind": "prefix", "length": 4}, {"kind": "adapter", "bottleneck": 4}],
        },
        "max_steps": 3,
        "alpha": 0.0,
        "micro_batch_size": 2,
        "num_threads": 1,
    }
    # The same draws of the main model's dropout need the same processes.
    expected, run = run_two(run_config("replicated", **settings)), run_two(run_config("two", **settings, **training))
    assert_close(rows(run), rows(expected))
    low = run_two(run_config("low", **settings, **training, bf16=True))
    for row, other in zip(rows(low), rows(expected), strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=0.02)
    saved = load_file(low / "final" / "main" / "model.safetensors")
    assert {values.dtype for values in saved.values()} == {torch.float32}


@pytest.mark.parametrize(("layout", "training"), [LAYOUTS[2], LAYOUTS[3]])
@pytest.mark.parametrize("kind", ["generated", "memory", "tuned"])
def test_a_decoder_only_base(
    run_config: Build, tiny_base_dir: Path, tmp_path: Path, kind: str, layout: str, training: dict[str, Any]
):
    """Its layers are divided too, prefixes and LoRA act in them, its states are read, and what is saved is whole."""
    tuned = kind == "tuned"
    tokenizer = AutoTokenizer.from_pretrained(tiny_base_dir)
    decoder_model("llama", len(tokenizer)).save_pretrained(tmp_path / "llama")
    tokenizer.save_pretrained(tmp_path / "llama")
    peft = [{"kind": "prefix", "length": 4}, {"kind": "lora", "rank": 2, "targets": ["q", "v", "wi"]}]
    model: dict[str, Any] = {"base": str(tmp_path / "llama"), "fusion": False, "dropout": 0.0}
    if tuned:
        model |= {"weights": "none", "train_main": True, "peft": [], "dropout": None, "attention": "eager"}
    elif kind == "memory":
        model |= {"encoder": "main_model", "hypernetwork_width": 64, "peft": peft}
        model["memory_in_front"] = not training.get("fsdp")  # refused with it
    else:
        model |= {"hypernetwork_init": str(tiny_base_dir), "peft": peft}
    settings: dict[str, Any] = {
        **SETTINGS,
        "model": model,
        "data": {**SETTINGS["data"], "demonstrations_to": "main" if tuned else "hypernetwork"},
        "alpha": 0.0 if tuned else 2.0,
        "max_steps": 4,
        "save_every": 2,
        "eval_every": 4,
    }
    if tuned:  # dropout would differ; the same processes draw the same
        expected = run_two(run_config("one", **settings))
    else:
        expected = train(run_config("one", micro_batch_size=2, **settings), quiet=True).parent
    config = run_config("two", **settings, **training)
    run = run_two(config)
    assert_close(rows(run), rows(expected))
    file = Path("final") / ("main" if tuned else "") / "model.safetensors"
    saved, whole = load_file(run / file), load_file(expected / file)
    assert saved.keys() == whole.keys()
    for name, values in saved.items():
        torch.testing.assert_close(values, whole[name], rtol=0, atol=WEIGHT_TOLERANCE)
    before = rows(run)
    shutil.rmtree(run / "final")
    shutil.rmtree(run / "checkpoints" / "checkpoint-4")
    assert rows(run_two(config)) == before


def test_muon_where_each_process_holds_all(run_config: Build):
    """Two processes train as one does, and go on where they were; its products in bfloat16 round sums of gradients."""
    settings: dict[str, Any] = {**SETTINGS, "optimizer": "muon"}
    expected = train(run_config("one", **settings), quiet=True).parent
    config = run_config("two", **settings)
    run = run_two(config)
    before = rows(run)
    assert_close(before, rows(expected), rel=0.02)
    shutil.rmtree(run / "final")
    shutil.rmtree(run / "checkpoints" / f"checkpoint-{STEPS}")
    assert rows(run_two(config)) == before


@pytest.mark.parametrize(("layout", "training"), [LAYOUTS[2], LAYOUTS[3]])
def test_states_of_a_pass_without_dropout(run_config: Build, layout: str, training: dict[str, Any]):
    """The further pass meets divided weights; as many processes draw the same dropout."""
    settings: dict[str, Any] = {
        "model": {"dropout": 0.2},
        "max_steps": 4,
        "alpha": 2.0,
        "pairing": "task",
        "previous_dropout": False,
        "num_threads": 1,
        **training,
    }
    run = run_two(run_config("two", **settings))
    expected = rows(run)
    assert expected[-1]["consistency_loss"] > 0
    shutil.rmtree(run / "final")
    shutil.rmtree(run / "checkpoints" / "checkpoint-4")
    assert rows(run_two(run_config("two", **settings))) == expected


@needs_deepspeed
def test_8_bit_states_are_divided_too(run_config: Build):
    settings: dict[str, Any] = {"model": {"dropout": 0.0}, "max_steps": 3, "num_threads": 1, "alpha": 1.0}
    expected = train(run_config("one", optimizer="adamw_8bit", **settings), quiet=True).parent
    run = run_two(run_config("two", optimizer="adamw_8bit", **settings, **zero(2)))
    assert_close(rows(run), rows(expected), rel=1e-3)


def test_another_number_of_processes(run_config: Build):
    settings: dict[str, Any] = {"max_steps": 4, "num_threads": 1, "alpha": 1.0, "model": {"dropout": 0.0}}
    run = run_two(run_config("run", **settings))
    expected = rows(run)
    shutil.rmtree(run / "final")
    shutil.rmtree(run / "checkpoints" / "checkpoint-4")
    train(run_config("run", **settings), quiet=True)
    assert_close(rows(run), expected)


def test_a_checkpoint_of_another_layout_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_layout(tmp_path, "zero-2", "adamw")
    assert check_layout(tmp_path, "zero-2", "adamw") is None
    with pytest.raises(HartError, match="divided as zero-2 and this run has fsdp; start it with zero-2"):
        check_layout(tmp_path, "fsdp", "adamw")
    monkeypatch.setattr("hart.training.sharding.world_size", lambda: 4)
    with pytest.raises(HartError, match="among 1 processes and this run has 4; start it with 1"):
        check_layout(tmp_path, "zero-2", "adamw")
    monkeypatch.undo()
    write_layout(tmp_path, "fsdp", "adamw")
    monkeypatch.setattr("hart.training.sharding.world_size", lambda: 4)
    assert "written by 1 processes and continued by 4" in (check_layout(tmp_path, "fsdp", "adamw") or "")


@pytest.mark.parametrize("written", [None, {"layout": "replicated", "world_size": 1, "optimizer": "adamw"}])
def test_a_checkpoint_of_an_earlier_version_is_refused(tmp_path: Path, written: dict[str, Any] | None):
    if written is not None:
        (tmp_path / "layout.json").write_text(json.dumps(written))
    with pytest.raises(
        HartError, match="the checkpoint is of an incompatible version of hart; .* take a new training.output_dir"
    ):
        check_layout(tmp_path, "replicated", "adamw")


def test_the_evaluation_command_shares_out_tasks(
    run_config: Build, toy_data_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    final = train(run_config(max_steps=1), quiet=True)
    files = [f"--task={toy_data_dir / 'tasks' / name}.json" for name in ("last", "first", "twice")]
    words = ["evaluate", str(final), *files, "--device", "cpu", "--output"]
    run_hart([*words, str(tmp_path / "two.json")], 2)
    assert capfd.readouterr().out.count("results:") == 1, "the first process alone speaks"
    assert main([*words, str(tmp_path / "one.json")]) == 0
    one, two = (yaml.safe_load((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    assert one["tasks"] == two["tasks"] and len(two["tasks"]) == 3
