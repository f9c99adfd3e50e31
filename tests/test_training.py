"""Training: against a loop written out by hand, what it leaves, and how it stops."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from hart import trainer
from hart.config import RunConfig
from hart.data.collate import Collator
from hart.data.sampling import TrainingDataset
from hart.data.tasks import Task
from hart.errors import HartError
from hart.run_folder import RunFolder, read_metrics
from hart.system import HartModel
from hart.task_collections import load_tasks
from hart.trainer import HartTrainer
from hart.training import train

Build = Callable[..., RunConfig]

STEPS = 4
ALPHA = 3.0
POISONED = 4
"""The step at which something goes wrong; the checkpoint before it is of step 2."""


def rows(run: Path) -> list[dict[str, Any]]:
    return read_metrics(run / "metrics.jsonl")


def by_hand(config: RunConfig, *, with_term: bool) -> tuple[list[tuple[float, float]], dict[str, Tensor]]:
    """(L_pred, L_cst) of each step and the final weights of a plain loop; without dropout."""
    options = config.training
    system = HartModel.from_config(config.model, config.data, seed=options.seed).train()
    dataset = TrainingDataset(
        load_tasks(config.data, "train"),
        system.main.tokenizer,
        length=options.max_steps * options.batch_size,
        seed=options.seed,
        lengths=system.input_format.lengths,
    )
    collate = Collator(system.main.tokenizer.pad_token_id)
    weights = list(system.hypernetwork.parameters())
    optimizer = torch.optim.AdamW(weights, lr=options.learning_rate, weight_decay=0.0)
    losses, previous = [], None
    for step in range(options.max_steps):
        batch = collate([dataset[step * options.batch_size + i] for i in range(options.batch_size)])
        made = system.hypernetwork(batch["demo_ids"], batch["demo_mask"])
        output = system.main(
            batch["query_ids"],
            batch["query_mask"],
            labels=batch["labels"],
            blocks=made.blocks,
            peft=system.hypernetwork.kinds,
            memory=made.memory,
            memory_mask=made.memory_mask,
        )
        prediction = F.cross_entropy(output.logits.flatten(0, 1), batch["labels"].flatten())
        consistency = torch.zeros(()) if previous is None else F.mse_loss(made.states, previous)
        previous = made.states.detach()
        (prediction + options.alpha * consistency if with_term else prediction).backward()
        nn.utils.clip_grad_norm_(weights, options.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * (1 - step / options.max_steps)
        optimizer.step()
        optimizer.zero_grad()
        losses.append((prediction.item(), consistency.item()))
    return losses, system.hypernetwork.state_dict()


@pytest.mark.parametrize("alpha", [0.0, ALPHA])
def test_training_is_the_plain_loop(run_config: Build, alpha: float):
    """With alpha = 0 the plain loop has no consistency term at all."""
    config = run_config(alpha=alpha, model={"dropout": 0.0})
    losses, weights = by_hand(config, with_term=alpha > 0)
    final = train(config, quiet=True)
    logged = rows(final.parent)
    assert [row["prediction_loss"] for row in logged] == pytest.approx([prediction for prediction, _ in losses])
    assert [row["consistency_loss"] for row in logged] == pytest.approx([consistency for _, consistency in losses])
    found = load_file(final / "model.safetensors")
    for name, values in weights.items():
        torch.testing.assert_close(found[name], values)


@pytest.mark.parametrize("pairing", ["slots", "mean"])
def test_losses_are_logged_apart_and_add_up(run_config: Build, pairing: str):
    config = run_config(alpha=ALPHA, log_every=2, consistency_pairing=pairing, micro_batch_size=4)
    logged = rows(train(config, quiet=True).parent)
    assert [row["step"] for row in logged] == [1, 2, 4]
    for row in logged:
        assert row["loss"] == pytest.approx(row["prediction_loss"] + ALPHA * row["consistency_loss"])
        assert row["seconds_per_step"] > 0
    assert logged[0]["consistency_loss"] == 0 < logged[1]["consistency_loss"]


def test_rows_of_longer_intervals_are_means_of_the_steps(run_config: Build):
    each = rows(train(run_config("each"), quiet=True).parent)
    pairs = rows(train(run_config("pairs", log_every=2), quiet=True).parent)
    for name in ("loss", "prediction_loss", "consistency_loss"):
        mean = (each[2][name] + each[3][name]) / 2
        assert pairs[-1][name] == pytest.approx(mean)


def test_main_model_stays_bit_identical_and_gets_no_gradient(run_config: Build, monkeypatch: pytest.MonkeyPatch):
    systems: list[HartModel] = []
    original = HartModel.from_config.__func__  # type: ignore[attr-defined]

    def keep(cls: type[HartModel], *args: Any, **kwargs: Any) -> HartModel:
        systems.append(original(cls, *args, **kwargs))
        return systems[-1]

    monkeypatch.setattr(HartModel, "from_config", classmethod(keep))
    config = run_config(weight_decay=0.1)
    final = train(config, quiet=True)
    (trained,) = systems
    fresh = original(HartModel, config.model, config.data)
    expected = fresh.main.model.state_dict()
    assert all(torch.equal(values, expected[name]) for name, values in trained.main.model.state_dict().items())
    assert all(parameter.grad is None for parameter in trained.main.parameters())
    before, after = fresh.hypernetwork.state_dict(), load_file(final / "model.safetensors")
    # The table's rows of tokens that never occur are decayed, so all has moved.
    assert not any(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("model", [{"peft": []}, {"fusion": False}, {"scheme": {"name": "shared"}}], ids=str)
def test_every_variant_trains_and_adapts(run_config: Build, toy_data_dir: Path, model: dict):
    final = train(run_config(model=model), quiet=True)
    assert all(torch.isfinite(values).all() for values in load_file(final / "model.safetensors").values())
    loaded = HartModel.from_pretrained(final)
    task = Task.from_file(toy_data_dir / "tasks" / "last.json")
    assert len(loaded.generate(["one two"], loaded.adapt(task), max_new_tokens=2)) == 1


def test_bfloat16_step_is_close_to_a_float32_one(run_config: Build):
    plain = rows(train(run_config("fp32", max_steps=1, model={"dropout": 0.0}), quiet=True).parent)
    half = train(run_config("bf16", max_steps=1, bf16=True, model={"dropout": 0.0, "dtype": "bfloat16"}), quiet=True)
    relative = torch.finfo(torch.bfloat16).eps
    assert rows(half.parent)[0]["loss"] == pytest.approx(plain[0]["loss"], rel=4 * relative)
    assert {values.dtype for values in load_file(half / "model.safetensors").values()} == {torch.float32}


def test_gradient_checkpointing_changes_no_loss(run_config: Build):
    model = {"dropout": 0.0}
    plain = rows(train(run_config("plain", max_steps=2, model=model), quiet=True).parent)
    saving = run_config("saving", max_steps=2, model=model | {"gradient_checkpointing": True})
    for row, other in zip(plain, rows(train(saving, quiet=True).parent), strict=True):
        assert other["loss"] == pytest.approx(row["loss"], rel=1e-4)


# --- what a run leaves -----------------------------------------------------------------------------------


def test_folder_of_a_run(run_config: Build):
    final = train(run_config(tensorboard=True, keep_checkpoints=1), quiet=True)
    names = {path.name for path in final.parent.iterdir()}
    assert names == {"config.yaml", "metrics.jsonl", "checkpoints", "final", "tensorboard"}
    assert [path.name for path in (final.parent / "checkpoints").iterdir()] == [f"checkpoint-{STEPS}"]
    assert any(path.name.startswith("events") for path in (final.parent / "tensorboard").iterdir())


def test_evaluation_logs_scores_and_keeps_the_best_model(run_config: Build, monkeypatch: pytest.MonkeyPatch):
    scores = iter([20.0, 30.0, 10.0, 30.0])
    asked: list[list[int]] = []

    def evaluated_by(_: HartModel, tasks: list[Task]) -> SimpleNamespace:
        asked.append([len(task.instances) for task in tasks])
        return SimpleNamespace(summary={"rouge_l": next(scores), "exact_match": 0.0})

    monkeypatch.setattr(trainer, "evaluate_model", evaluated_by)
    config = run_config(eval_every=1, eval_instances=3, save_every=1, keep_checkpoints=9, data={"validation_tasks": 1})
    run = train(config, quiet=True).parent
    evaluated = [row for row in rows(run) if "eval_rouge_l" in row]
    assert [(row["step"], row["eval_rouge_l"]) for row in evaluated] == [(1, 20), (2, 30), (3, 10), (4, 30)]
    assert asked == [[3]] * STEPS
    best = load_file(run / "best" / "model.safetensors")
    of_step_2 = load_file(run / "checkpoints" / "checkpoint-2" / "model.safetensors")
    assert all(torch.equal(best[name], values) for name, values in of_step_2.items())


def test_progress_bar_shows_the_losses(run_config: Build, capsys: pytest.CaptureFixture[str]):
    train(run_config(), quiet=False)
    shown = capsys.readouterr().err
    assert "L_pred=" in shown and "L_cst=" in shown and f"{STEPS}/{STEPS}" in shown


def test_8_bit_adam_trains_and_goes_on_where_it_was(run_config: Build):
    pytest.importorskip("bitsandbytes")
    final = train(run_config(optimizer="adamw_8bit"), quiet=True)
    whole = load_file(final / "model.safetensors")
    last = final.parent / "checkpoints" / f"checkpoint-{STEPS}"
    state = torch.load(last / "optimizer.pt", weights_only=True)["state"]
    moments = {part.dtype for values in state.values() for part in values["__bnb_optimizer_quant_state__"].values()}
    assert torch.uint8 in moments, "no moment is kept in 8 bits"
    shutil.rmtree(final)
    shutil.rmtree(last)
    again = load_file(train(run_config(optimizer="adamw_8bit"), quiet=True) / "model.safetensors")
    assert all(torch.equal(again[name], values) for name, values in whole.items())


# --- stopping --------------------------------------------------------------------------------------------


def spoil(monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    """Sets a weight to `value` when step `POISONED` begins."""
    step = HartTrainer.training_step

    def spoilt(self: HartTrainer, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == POISONED - 1:
            with torch.no_grad():
                self.system.hypernetwork.encoder.final_layer_norm.weight.fill_(value)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(HartTrainer, "training_step", spoilt)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_loss_that_is_not_finite_stops_the_run(run_config: Build, monkeypatch: pytest.MonkeyPatch, value: float):
    spoil(monkeypatch, value)
    with pytest.raises(HartError, match=rf"^step {POISONED}: the loss is nan on a batch of the tasks ") as stopped:
        train(run_config(batch_size=16), quiet=True)
    assert "first, reverse, twice; last good checkpoint: " in str(stopped.value)
    assert "checkpoint-2;" in str(stopped.value) and "\n" not in str(stopped.value)
    assert not RunFolder(run_config(batch_size=16)).final.exists()


def test_absurd_learning_rate_stops_the_run_before_it_has_a_checkpoint(run_config: Build):
    """The checkpoint of the step before holds the weights that gave the bad loss, so it is not called good."""
    config = run_config(learning_rate=9e17, save_every=1)
    with pytest.raises(HartError, match=r"^step 2: the loss is .*; last good checkpoint: none yet; .* lower"):
        train(config, quiet=True)


@pytest.mark.parametrize("clipped", [1.0, None])
def test_gradient_that_is_not_finite_spoils_no_weight(run_config: Build, monkeypatch, clipped: float | None):
    original = trainer.prediction_loss
    calls = iter(range(STEPS))

    def steep(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        total, count = original(logits, labels)
        # The square root is 0 at 0, its slope there is infinite.
        return total + ((logits[0, 0, 0] * 0).abs().sqrt() if next(calls) == POISONED - 1 else 0), count

    monkeypatch.setattr(trainer, "prediction_loss", steep)
    message = rf"^step {POISONED}: the norm of the gradient is nan on a batch of the tasks .*checkpoint-2;"
    with pytest.raises(HartError, match=message):
        train(run_config(max_grad_norm=clipped), quiet=True)


@pytest.mark.parametrize(
    ("place", "error"),
    [
        ("hart.trainer.save_file", SafetensorError("IoError: No space left on device")),
        ("hart.trainer.os.replace", OSError(28, "No space left on device")),
        ("hart.system.Path.write_text", OSError(28, "No space left on device")),
        ("torch.save", RuntimeError("PytorchStreamWriter failed writing file: No space left on device")),
    ],
)
def test_failed_save_keeps_the_checkpoints_before(run_config: Build, monkeypatch, place: str, error: Exception):
    def full(*_: Any, **__: Any) -> None:
        raise error

    save = HartTrainer._save_checkpoint

    def save_on_full_disk(self: HartTrainer, *args: Any) -> None:
        with monkeypatch.context() as patch:
            if self.state.global_step == POISONED:
                patch.setattr(place, full)
            save(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(HartTrainer, "_save_checkpoint", save_on_full_disk)
        with pytest.raises(HartError, match="checkpoint-4: cannot be written .*No space left.*checkpoint before"):
            train(run_config(), quiet=True)
    run = RunFolder(run_config())
    assert [path.name for path in run.checkpoints.iterdir()] == ["checkpoint-2"]
    assert train(run_config(), quiet=True) == run.final


def test_other_configuration_is_refused_before_anything_is_loaded(run_config: Build, monkeypatch):
    RunFolder(run_config())
    monkeypatch.setattr(HartModel, "from_config", None)
    with pytest.raises(HartError, match=r"training.learning_rate was 0.001 and is 0.01"):
        train(run_config(learning_rate=0.01), quiet=True)
