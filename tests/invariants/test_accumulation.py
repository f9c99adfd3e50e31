"""The division of a global batch into passes and workers changes no number and no example."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hart.data.collections import load_tasks
from hart.data.sampling import TrainingDataset
from hart.model.hart_model import HartModel
from hart.training.config import RunConfig
from hart.training.loop import Loop
from hart.training.run_folder import RunFolder, read_metrics
from hart.training.train import train

Build = Callable[..., RunConfig]

BATCH = 8
WEIGHT_TOLERANCE = 1e-4
"""A tenth of one step of Adam at the learning rate of these runs: rounding may turn none of its signs."""


def trained(config: RunConfig) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    final = train(config, quiet=True)
    return read_metrics(final.parent / "metrics.jsonl"), load_file(final / "model.safetensors")


@pytest.mark.parametrize(
    ("model", "training"),
    [
        ({}, {}),
        ({}, {"queries_per_task": 2}),
        ({}, {"queries_per_task": 2, "pairing": "task"}),
        ({"scheme": {"name": "shared"}}, {}),
        ({"peft": []}, {}),
        ({"peft": []}, {"pairing": "task"}),
    ],
    ids=["hart", "two queries share a pass", "pairs of a task", "shared", "fusion alone", "fusion alone, by task"],
)
def test_accumulated_passes_equal_one_pass(run_config: Build, model: dict, training: dict):
    # Without dropout, whose draws follow the passes.
    settings = {"model": {"dropout": 0.0, **model}, "alpha": 5.0, "batch_size": BATCH, **training}
    rows, weights = trained(run_config("whole", **settings))
    lengths = {len(label) for label in labels(run_config("look", **settings))}
    assert len(lengths) > 1, "targets of one length cannot show a mean of means"
    # As many passes as there can be: one row of the hypernetwork in each.
    smallest = training.get("queries_per_task", 1)
    other_rows, other_weights = trained(run_config("cut", micro_batch_size=smallest, **settings))
    for row, other in zip(rows, other_rows, strict=True):
        for name in ("loss", "prediction_loss", "consistency_loss", "grad_norm"):
            assert other[name] == pytest.approx(row[name], rel=1e-4, abs=1e-6), (row["step"], name)
    for name, values in weights.items():
        torch.testing.assert_close(other_weights[name], values, rtol=0, atol=WEIGHT_TOLERANCE)
    moved = rows[-1]["consistency_loss"]
    assert moved > 0 if model.get("peft", True) else moved == 0


def loop_of(config: RunConfig) -> Loop:
    system = HartModel.from_config(config.model, config.data)
    dataset = TrainingDataset(
        load_tasks(config.data, "train"),
        system.main.tokenizer,
        system.input_format,
        length=config.training.max_steps * config.training.batch_size,
        seed=config.training.seed,
    )
    return Loop(system, dataset, [], config.training, RunFolder(config), quiet=True)


def labels(config: RunConfig) -> list[list[int]]:
    dataset = loop_of(config).dataset
    assert isinstance(dataset, TrainingDataset)
    return [dataset[i]["labels"] for i in range(BATCH)]


def passes(config: RunConfig) -> list[dict[str, Tensor]]:
    """The batches of a run as the training loop gets them."""
    return [dict(batch) for batch in loop_of(config).batches()]


def test_number_of_workers_does_not_change_the_batches(run_config: Build):
    alone = passes(run_config("alone", max_steps=2))
    helped = passes(run_config("helped", max_steps=2, num_workers=2))
    assert len(alone) == len(helped) == 2
    for batch, other in zip(alone, helped, strict=True):
        assert batch.keys() == other.keys()
        assert all(torch.equal(batch[name], other[name]) for name in batch)


def test_cut_into_passes_does_not_change_the_examples_of_a_step(run_config: Build):
    def steps(micro: int) -> list[list[tuple[int, int]]]:
        cut = passes(run_config(f"in-{micro}", max_steps=3, micro_batch_size=micro))
        examples = [
            pair for batch in cut for pair in zip(batch["slots"].tolist(), batch["task_index"].tolist(), strict=True)
        ]
        assert all(len(batch["slots"]) == micro for batch in cut)
        return [examples[i : i + BATCH] for i in range(0, len(examples), BATCH)]

    assert steps(BATCH) == steps(4) == steps(1)
    assert [slot for step in steps(2) for slot, _ in step] == list(range(3 * BATCH))


def test_seed_decides_the_examples(run_config: Build):
    one, same, other = (
        passes(run_config(f"{name}", max_steps=1, seed=seed))[0]["query_ids"].tolist()
        for name, seed in (("one", 0), ("same", 0), ("other", 1))
    )
    assert one == same != other


def test_run_is_repeatable(run_config: Build, tmp_path: Path):
    (rows, weights), (again, other) = trained(run_config("one")), trained(run_config("two"))
    assert [row["loss"] for row in rows] == [row["loss"] for row in again]
    assert all(torch.equal(other[name], values) for name, values in weights.items())
