"""Training against an explicit loop, the files of a run, and its ends."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from hart.data.collate import Collator
from hart.data.collections import load_tasks
from hart.data.sampling import TrainingDataset
from hart.data.tasks import Task
from hart.errors import HartError
from hart.model.hart_model import HartModel
from hart.training import loop as module
from hart.training.config import RunConfig
from hart.training.estimate import estimate
from hart.training.loop import Loop
from hart.training.run_folder import RunFolder, read_metrics
from hart.training.train import train, training_examples

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
        system.input_format,
        length=options.max_steps * options.batch_size,
        seed=options.seed,
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


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("alpha", [0.0, ALPHA])
def test_training_is_the_plain_loop(run_config: Build, alpha: float, groups: int):
    """With alpha = 0 the plain loop has no consistency term at all."""
    shown = {"demonstration_groups": groups, "num_demonstrations": 2 // groups}
    config = run_config(alpha=alpha, model={"dropout": 0.0}, data=shown)
    losses, weights = by_hand(config, with_term=alpha > 0)
    final = train(config, quiet=True)
    logged = rows(final.parent)
    assert [row["prediction_loss"] for row in logged] == pytest.approx([prediction for prediction, _ in losses])
    # Means of squares of small differences; torch 2.8 rounds them otherwise than 2.13.
    wanted = pytest.approx([consistency for _, consistency in losses], rel=1e-5)
    assert [row["consistency_loss"] for row in logged] == wanted
    found = load_file(final / "model.safetensors")
    for name, values in weights.items():
        torch.testing.assert_close(found[name], values)


def test_states_of_a_further_pass_carry_no_dropout(run_config: Build):
    """With a rate of zero both passes are the same; with another, L_cst moves, and nothing else is drawn."""

    def losses(name: str, dropout: float, **options: Any) -> list[tuple[float, float]]:
        config = run_config(name, alpha=0.0, model={"dropout": dropout}, **options)
        logged = rows(train(config, quiet=True).parent)
        return [(row["prediction_loss"], row["consistency_loss"]) for row in logged]

    assert losses("a", 0.0) == losses("b", 0.0, previous_dropout=False)
    kept, clean = losses("c", 0.3), losses("d", 0.3, previous_dropout=False)
    assert [prediction for prediction, _ in kept] == [prediction for prediction, _ in clean]
    assert all(without < with_it for (_, with_it), (_, without) in zip(kept[1:], clean[1:], strict=True))


def test_averages_over_devices_are_those_of_the_whole_batch(run_config: Build, monkeypatch: pytest.MonkeyPatch):
    """Two processes with four rows each and different numbers of target tokens: the mean of their gradients is that of
    one process with eight rows."""
    config = run_config(alpha=ALPHA, model={"dropout": 0.0})
    system = HartModel.from_config(config.model, config.data, seed=0)
    dataset = training_examples(config, load_tasks(config.data, "train"), system.main.tokenizer)
    collate = Collator(system.main.tokenizer.pad_token_id)
    processes = 1
    monkeypatch.setattr(Accelerator, "num_processes", property(lambda _: processes))

    def gradient(rows: range) -> list[Tensor]:
        """Of a second step of these rows, as one process has it; the first step was on other examples."""
        one = Loop(system, dataset, [], config.training, RunFolder(config), quiet=True)
        steps = [[dataset[step * 8 + row] for row in range(8)] for step in range(2)]
        for step in steps:
            tokens = torch.tensor(sum(len(example["labels"]) for example in step))
            batch = collate([step[row] for row in rows])
            loss = one.loss(batch, tokens)
            one.consistency.advance(lambda rows: rows)
        weights = list(system.hypernetwork.parameters())
        return list(torch.autograd.grad(loss, weights))

    whole = gradient(range(8))
    processes = 2
    parts = [gradient(range(4)), gradient(range(4, 8))]
    for expected, one, other in zip(whole, *parts, strict=True):
        torch.testing.assert_close((one + other) / 2, expected, rtol=1e-4, atol=1e-6)


def test_what_is_optional_is_not_imported() -> None:
    """accelerate has some of its names only where DeepSpeed is installed."""
    code = "import sys; sys.modules.update(deepspeed=None, bitsandbytes=None, peft=None); import hart.training.train"
    subprocess.run([sys.executable, "-c", code], check=True)


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
    final = train(run_config(trackers=["tensorboard"], keep_checkpoints=1), quiet=True)
    names = {path.name for path in final.parent.iterdir()}
    assert names == {
        ".lock",
        "config.yaml",
        "run.json",
        "metrics.jsonl",
        "steps.csv",
        "checkpoints",
        "final",
        "tensorboard",
    }
    assert [path.name for path in (final.parent / "checkpoints").iterdir()] == [f"checkpoint-{STEPS}"]
    assert any(path.name.startswith("events") for path in (final.parent / "tensorboard").rglob("*"))


def test_a_checkpoint_is_a_model_that_can_be_loaded(run_config: Build):
    final = train(run_config(), quiet=True)
    checkpoint = final.parent / "checkpoints" / f"checkpoint-{STEPS}"
    assert (checkpoint / "random_0.safetensors").exists(), "what is no weight lies beside them"
    made, expected = (HartModel.from_pretrained(folder).hypernetwork for folder in (checkpoint, final))
    assert made is not None and expected is not None
    for value, other in zip(made.parameters(), expected.parameters(), strict=True):
        assert torch.equal(value, other)


def test_evaluation_logs_scores_and_keeps_the_best_model(run_config: Build, monkeypatch: pytest.MonkeyPatch):
    scores = iter([20.0, 30.0, 10.0, 30.0])
    asked: list[list[int]] = []

    def evaluated_by(_: HartModel, tasks: list[Task], **__: object) -> SimpleNamespace:
        asked.append([len(task.instances) for task in tasks])
        return SimpleNamespace(summary={"rouge_l": next(scores), "exact_match": 0.0})

    monkeypatch.setattr(module, "evaluate_model", evaluated_by)
    config = run_config(eval_every=1, eval_instances=3, save_every=1, keep_checkpoints=9, data={"validation_tasks": 1})
    run = train(config, quiet=True).parent
    evaluated = [row for row in rows(run) if "eval_rouge_l" in row]
    assert [(row["step"], row["eval_rouge_l"]) for row in evaluated] == [(1, 20), (2, 30), (3, 10), (4, 30)]
    assert asked == [[3]] * STEPS
    best = load_file(run / "best" / "model.safetensors")
    of_step_2 = load_file(run / "checkpoints" / "checkpoint-2" / "model.safetensors")
    assert all(torch.equal(best[name], values) for name, values in of_step_2.items())


def test_equal_rouge_is_decided_by_exact_match_also_after_going_on(run_config: Build, monkeypatch: pytest.MonkeyPatch):
    """Answers in a script that ROUGE-L does not see score 0 for ever."""
    scores = iter([(0.0, 1.0), (0.0, 5.0), (0.0, 5.0), (0.0, 3.0), (0.0, 5.0), (0.0, 4.0)])

    def evaluated_by(_: HartModel, tasks: list[Task], **__: object) -> SimpleNamespace:
        return SimpleNamespace(summary=dict(zip(("rouge_l", "exact_match"), next(scores), strict=True)))

    monkeypatch.setattr(module, "evaluate_model", evaluated_by)
    config = run_config(eval_every=1, save_every=1, keep_checkpoints=9, data={"validation_tasks": 1})
    run = train(config, quiet=True).parent

    def is_of_step(step: int) -> bool:
        best = load_file(run / "best" / "model.safetensors")
        then = load_file(run / "checkpoints" / f"checkpoint-{step}" / "model.safetensors")
        return all(torch.equal(best[name], values) for name, values in then.items())

    assert is_of_step(2)
    for folder in ("final", "checkpoints/checkpoint-4", "checkpoints/checkpoint-3"):
        shutil.rmtree(run / folder)
    train(config, quiet=True)
    assert is_of_step(2), "the score of step 2 is part of its checkpoint"


def test_no_validation_tasks_mean_no_evaluation(run_config: Build, caplog: pytest.LogCaptureFixture):
    """`--data.validation_tasks 0` trains on all tasks, whatever else a configuration says."""
    run = train(run_config(eval_every=1), quiet=True).parent
    assert not any("eval_rouge_l" in row for row in rows(run)) and not (run / "best").exists()
    told = [record.getMessage() for record in caplog.records if "validation_tasks" in record.getMessage()]
    assert len(told) == 1 and "training.eval_every 1 has no validation tasks, so nothing is evaluated" in told[0]


@pytest.mark.parametrize(
    ("model", "others"),
    [
        ({"fusion": False, "peft": [{"kind": "prefix", "length": 0}]}, {}),
        (
            {"weights": "learned", "fusion": False, "peft": [{"kind": "prefix", "length": 0}]},
            {"data": {"demonstrations_to": "main"}, "alpha": 0.0},
        ),
    ],
    ids=["generated", "learned"],
)
def test_a_run_that_would_train_nothing_is_refused_before_it_begins(run_config: Build, tmp_path: Path, model, others):
    config = run_config(model=model, **others)
    with pytest.raises(HartError, match=r"^model.peft: its kinds have no rows.*give a prefix a length of 1 or more"):
        train(config, quiet=True)
    assert not (tmp_path / "run").exists()
    with pytest.raises(HartError, match="^model.peft: its kinds have no rows"):
        estimate(config)


def test_a_prefix_of_no_rows_beside_something_to_train_is_taken(run_config: Build):
    none = {"kind": "prefix", "length": 0}
    train(run_config("fusion", max_steps=1, model={"peft": [none]}), quiet=True)
    train(run_config("lora", max_steps=1, model={"fusion": False, "peft": [none, {"kind": "lora"}]}), quiet=True)


# --- stopping --------------------------------------------------------------------------------------------


def spoil(monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    """Sets a weight to `value` when step `POISONED` begins."""
    loss = Loop.loss

    def spoilt(self: Loop, *args: Any) -> Any:
        if self.step == POISONED - 1:
            with torch.no_grad():
                self.system.hypernetwork.encoder.final_layer_norm.weight.fill_(value)
        return loss(self, *args)

    monkeypatch.setattr(Loop, "loss", spoilt)


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
    original = module.prediction_loss
    calls = iter(range(STEPS))

    def steep(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        total, count = original(logits, labels)
        # The square root is 0 at 0, its slope there is infinite.
        return total + ((logits[0, 0, 0] * 0).abs().sqrt() if next(calls) == POISONED - 1 else 0), count

    monkeypatch.setattr(module, "prediction_loss", steep)
    message = rf"^step {POISONED}: the norm of the gradient is nan on a batch of the tasks .*checkpoint-2;"
    with pytest.raises(HartError, match=message):
        train(run_config(max_grad_norm=clipped), quiet=True)


@pytest.mark.parametrize(
    ("place", "error"),
    [
        ("hart.training.checkpoints.save_file", SafetensorError("IoError: No space left on device")),
        ("hart.training.checkpoints.os.replace", OSError(28, "No space left on device")),
        ("hart.model.hart_model.Path.write_text", OSError(28, "No space left on device")),
        ("torch.save", RuntimeError("PytorchStreamWriter failed writing file: No space left on device")),
    ],
)
def test_failed_save_keeps_the_checkpoints_before(run_config: Build, monkeypatch, place: str, error: Exception):
    def full(*_: Any, **__: Any) -> None:
        raise error

    save = module.save_checkpoint

    def save_on_full_disk(loop: Loop) -> None:
        with monkeypatch.context() as patch:
            if loop.step == POISONED:
                patch.setattr(place, full)
            save(loop)

    with monkeypatch.context() as patch:
        patch.setattr(module, "save_checkpoint", save_on_full_disk)
        with pytest.raises(HartError, match="checkpoint-4: cannot be written .*No space left.*previous checkpoint"):
            train(run_config(), quiet=True)
    run = RunFolder(run_config())
    assert [path.name for path in run.checkpoints.iterdir()] == ["checkpoint-2"]
    assert train(run_config(), quiet=True) == run.final


def test_a_batch_that_cannot_be_cut_is_refused_before_anything_is_loaded(run_config: Build, tmp_path: Path):
    config = run_config(batch_size=6, queries_per_task=4, data={"dir": str(tmp_path / "none")})
    with pytest.raises(HartError, match="queries_per_task: 4 does not divide the 6 queries of one pass"):
        train(config, quiet=True)


def test_other_configuration_is_refused_before_anything_is_loaded(run_config: Build, monkeypatch):
    RunFolder(run_config())
    monkeypatch.setattr(HartModel, "from_config", None)
    with pytest.raises(HartError, match=r"training.learning_rate was 0.001 and is 0.01"):
        train(run_config(learning_rate=0.01), quiet=True)
