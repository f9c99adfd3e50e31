"""The trainer of all systems: a transformers Trainer with the two losses of HART, and checkpoints that are whole.

Examples come in the order of the data set, so that the global batch of step t is examples t·B to (t+1)·B − 1 however
it is cut into processes and accumulation steps. What the processes of a run hold together is the matter of
`hart.training.sharding`.
"""

import dataclasses
import errno
import itertools
import math
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainerCallback
from transformers.integrations import TensorBoardCallback
from transformers.trainer import SCHEDULER_NAME
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import rotate_checkpoints

from hart.data.collate import Collator
from hart.data.sampling import TrainingDataset
from hart.data.segments import SegmentDataset
from hart.data.tasks import Task
from hart.errors import HartError
from hart.evaluation.predictors import evaluate_model
from hart.model.hart_model import HartModel
from hart.runtime.files import seal
from hart.runtime.ranks import together
from hart.training.arguments import optimizer_used, training_arguments, wants_fsdp
from hart.training.config import TrainingConfig
from hart.training.losses import ConsistencyState, prediction_loss
from hart.training.run_folder import RunFolder
from hart.training.sharding import (
    FSDP,
    REPLICATED,
    ZERO,
    layout_of,
    load_divided_optimizer,
    save_divided_optimizer,
    shard,
    trained_weights,
    undivided,
    write_layout,
)

CONSISTENCY_FILE = "consistency.safetensors"


class HartTrainer(Trainer):
    """Trainer whose loss is L_pred + α·L_cst, whose checkpoints are written whole or not at all.

    Examples come in the order of the data set, so that the global batch of step t is examples t·B to (t+1)·B − 1
    however it is cut into processes and accumulation steps.

    Args:
        system: what is trained.
        dataset: training examples.
        validation: tasks for evaluation during training.
        config: the `training` section.
        run: where metrics, checkpoints and the best model go.
        quiet: no progress bar.
    """

    def __init__(
        self,
        system: HartModel,
        dataset: TrainingDataset | SegmentDataset,
        validation: Sequence[Task],
        config: TrainingConfig,
        run: RunFolder,
        *,
        quiet: bool = False,
    ) -> None:
        self.system, self.config, self.run, self.validation = system, config, run, validation
        self.consistency = ConsistencyState()
        self._sums: dict[str, Tensor] = {}
        self._step_tasks: list[Tensor] = []
        self._steps_since_log, self._since = 0, time.monotonic()
        self._step_times = 0.0
        self._evaluated: tuple[int, dict[str, float]] | None = None
        super().__init__(
            model=system,
            args=training_arguments(config, run.checkpoints, evaluate=bool(validation), quiet=quiet),
            train_dataset=dataset,
            eval_dataset=dataset if validation else None,
            data_collator=Collator(system.main.tokenizer.pad_token_id, queries_per_task=config.queries_per_task),
        )
        self.layout = layout_of(self.accelerator, fsdp=wants_fsdp(config))
        self.optimizer_used = optimizer_used(config, self.args)
        if self.layout == FSDP:
            # The Trainer's own words for a model that is divided already: wrap it in nothing.
            self.is_distributed_loading_by_transformers = True
            system.__dict__["_is_fsdp_managed_module"] = True
        # Losses below are divided by the tokens of the whole batch here, not by the Trainer.
        self.model_accepts_loss_kwargs = True
        self.pop_callback(PrinterCallback)
        self.pop_callback(ProgressCallback)
        self.add_callback(_EndOfStep(self.consistency, self))
        if not quiet:
            self.add_callback(_ProgressBar())
        if config.tensorboard and self.is_world_process_zero():
            from torch.utils.tensorboard import SummaryWriter  # an import of seconds

            self.add_callback(TensorBoardCallback(SummaryWriter(str(run.path / "tensorboard"))))

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        # FSDP moves each part when it divides it, so the whole need not fit.
        if not wants_fsdp(self.config):
            super()._move_model_to_device(model, device)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """L_pred + α·L_cst of one micro-batch, scaled so that the micro-batches of a step add up.

        L_pred is the mean over the target tokens of the global batch, L_cst the mean over its rows. Gradients are
        averaged over the processes, each with the same number of rows: so each takes its tokens' sum, divided by the
        tokens of all and times the number of processes, and the mean over its own rows.

        Raises:
            HartError: here or in another process, the loss is not finite or, where weights are not divided, anything
                else went wrong.
        """
        if self.layout in (FSDP, f"{ZERO}-3"):
            # Processes give each other weights in the pass: one that fails in it cannot tell, and its launcher does.
            loss, output = self._pass_loss(model, inputs, num_items_in_batch)
            with together():
                self._check_finite(loss)
        else:
            with together():
                loss, output = self._pass_loss(model, inputs, num_items_in_batch)
                self._check_finite(loss)
        return (loss, output) if return_outputs else loss

    def _pass_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], num_items_in_batch: Tensor | int | None
    ) -> tuple[Tensor, Any]:
        # Rows of the consistency loss are hypernetwork passes: one for each group of queries of a task.
        shared = self.config.queries_per_task
        slots = inputs.pop("slots")[::shared] % self.config.batch_size // shared
        self._step_tasks.append(inputs.pop("task_index"))
        output = model(**inputs)
        total, count = prediction_loss(output.logits, inputs["labels"])
        tokens = count if num_items_in_batch is None else num_items_in_batch
        prediction = total / tokens * self.args.world_size
        # Recorded also with α = 0: the value shows how far the states move without regularisation (Fig. 5).
        consistency = self.consistency.loss(output.states, slots)
        consistency = consistency / self.current_gradient_accumulation_steps
        loss = prediction + self.config.alpha * consistency
        self._record(prediction_loss=prediction, consistency_loss=consistency)
        return loss, output

    def _check_finite(self, loss: Tensor) -> None:
        if not torch.isfinite(loss):
            self._stop_at_bad(loss.detach(), "loss", self._step_tasks[-1:])

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """The passes of a step; a failure to make them, in any process, ends all before they wait for each other."""
        with together():
            batches = list(itertools.islice(epoch_iterator, num_batches))
        return super().get_batch_samples(iter(batches), num_batches, device)

    def _record(self, **values: Tensor) -> None:
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.detach()

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Stops if the loss is finite but its gradient is not: before the optimizer step, so that no weight is spoilt.

        DeepSpeed has taken its step by the time it tells the norm (which bfloat16 skips then, float32 does not). The
        run ends with it, and nothing of it is saved. The norm is that of all processes, so all of them stop.
        """
        norm = super()._get_grad_norm(model, grad_norm)
        if not math.isfinite(norm):
            self._stop_at_bad(norm, "norm of the gradient", self._step_tasks)
        return norm

    def _stop_at_bad(self, value: Any, what: str, task_index: Sequence[Tensor]) -> None:
        dataset = self.train_dataset
        assert isinstance(dataset, TrainingDataset | SegmentDataset)
        names = sorted({dataset.tasks[i].label for part in task_index for i in part.tolist()})
        # A checkpoint of the step before holds the very weights that gave this value.
        checkpoint = self.run.last_checkpoint(before=self.state.global_step)
        raise HartError(
            f"step {self.state.global_step + 1}: the {what} is {float(value)} on a batch of the tasks "
            f"{', '.join(names)}; last good checkpoint: {checkpoint or 'none yet'}; look at these tasks, or start "
            "in a new training.output_dir with a lower training.learning_rate"
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._steps_since_log:
            steps = self._steps_since_log
            gathered = {
                name: self.accelerator.reduce(value, "mean").item() / steps for name, value in self._sums.items()
            }
            logs |= gathered | {"seconds_per_step": self._step_times / steps}
            self._sums, self._steps_since_log, self._step_times = {}, 0, 0.0
        super().log(logs, start_time)
        row = {k: v for k, v in logs.items() if k != "epoch"}
        with together():
            if self.is_world_process_zero() and "train_runtime" not in row:
                self.run.append_metrics({"step": self.state.global_step, **row})

    def end_of_step(self) -> None:
        now = time.monotonic()
        self._step_times += now - self._since
        self._since = now
        self._steps_since_log += 1
        self._step_tasks = []

    def start_clock(self) -> None:
        """Time spent before the first step, or in evaluation and saving, belongs to no step."""
        self._since = time.monotonic()

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Scores on the validation tasks; the best model so far goes to `best/`.

        By ROUGE-L, where it is equal by exact match (the answers may be in a script that ROUGE-L does not see), or by
        accuracy.
        """
        if self._evaluated and self._evaluated[0] == self.state.global_step:
            return self._evaluated[1]  # the Trainer asks a second time at the end of the run
        count = self.config.eval_instances
        shortened = [dataclasses.replace(task, instances=task.instances[:count]) for task in self.validation]
        with undivided(self.system, self.model_wrapped, self.layout):
            summary = evaluate_model(self.system, shortened, quiet=self._evaluated is not None).summary
        scores = list(summary.values())
        metrics = {f"eval_{name}": value for name, value in summary.items()}
        self.system.train()
        self.log(dict(metrics))
        # Part of a checkpoint as it stands; of an earlier version the first score alone.
        state: Any = self.state
        best = [state.best_metric] if isinstance(state.best_metric, float) else state.best_metric
        if best is None or scores > best:
            # Not best_global_step: the Trainer would take it for the name of a checkpoint to keep.
            state.best_metric = scores
            self.save_to(self.run.best)
        self._evaluated = self.state.global_step, metrics
        self.start_clock()
        return metrics

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        assert isinstance(self.train_dataset, TrainingDataset | SegmentDataset)
        return SequentialSampler(self.train_dataset)

    def save_to(self, folder: Path) -> None:
        """Save the model as it is now; all processes together, the first one writes."""
        weights = None if self.layout == REPLICATED else trained_weights(self.system)
        with together():
            if self.is_world_process_zero():
                self.system.save_pretrained(folder, weights=weights)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The part of a checkpoint that is a model folder."""
        assert output_dir is not None
        weights = None if self.layout == REPLICATED else trained_weights(self.system)
        with self._writing():
            if self.is_world_process_zero():
                # Not save_pretrained, which replaces the folder: other processes put their random states there.
                folder = Path(output_dir)
                folder.mkdir(parents=True, exist_ok=True)
                self.system.write(folder, weights=weights)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.layout == REPLICATED:
            with self._writing():
                super()._save_optimizer_and_scheduler(output_dir)
            return
        save_divided_optimizer(self, self.layout, Path(output_dir))
        with self._writing():
            if self.is_world_process_zero():
                assert self.lr_scheduler is not None
                torch.save(self.lr_scheduler.state_dict(), Path(output_dir, SCHEDULER_NAME))

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.run.checkpoints / ".partial")

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write everything beside the checkpoints, then move it among them in one step."""
        partial = self.run.checkpoints / ".partial"
        checkpoint = self.run.checkpoints / f"checkpoint-{self.state.global_step}"
        # Each process has the states of its own rows; a row finds its partner by its slot, whoever kept it.
        state = self.consistency.state_dict()
        rows = {name: self.accelerator.gather(values) for name, values in state.items()}
        first = self.is_world_process_zero()
        try:
            with self._writing():
                super()._save_checkpoint(model, trial)
                if first:
                    tensors = {k: v.cpu().contiguous() for k, v in rows.items()}
                    save_file(tensors, partial / checkpoint.name / CONSISTENCY_FILE)
                    write_layout(partial / checkpoint.name, self.layout, self.optimizer_used)
            with self._writing():
                if first:
                    seal(partial / checkpoint.name)
                    shutil.rmtree(checkpoint, ignore_errors=True)
                    os.replace(partial / checkpoint.name, checkpoint)
                    rotate_checkpoints(str(self.run.checkpoints), self.config.keep_checkpoints)
        finally:
            if first:
                shutil.rmtree(partial, ignore_errors=True)
        self.start_clock()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Within, a part of a checkpoint is written; all processes together, and a failure of one is one of all.

        What a full disk raises becomes one line; torch and safetensors say it in their own ways.
        """
        checkpoint = self.run.checkpoints / f"checkpoint-{self.state.global_step}"
        with together():
            try:
                yield
            except (OSError, RuntimeError, SafetensorError, HartError) as error:
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                # torch names no cause; most often the disk is full.
                cause = error.__cause__ if isinstance(error, HartError) else error
                full = getattr(cause, "errno", None) in (None, errno.ENOSPC, errno.EDQUOT)
                advice = "free some space" if full and self.run.checkpoints.is_dir() else "see to that"
                raise HartError(
                    f"{checkpoint}: cannot be written ({reason}); {advice} and start the command again, "
                    "it goes on from the checkpoint before"
                ) from error

    def go_on(self, checkpoint: Path | None) -> None:
        """Train to the end, from a checkpoint that `check_layout` lets pass or from the start."""
        if checkpoint is not None:
            # Here, while the weights are whole; what divides them comes later.
            self.system.load_trained(checkpoint)
            self.consistency.load_state_dict(load_file(checkpoint / CONSISTENCY_FILE))
        self.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Nothing: `go_on` has."""

    @contextmanager
    def _defer_fsdp_gradient_reduction(self) -> Iterator[None]:
        """Within, gradients stay where they are: more micro-batches of the step follow."""
        system: Any = self.system
        system.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            system.set_requires_gradient_sync(True)

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        if self.layout == FSDP:
            shard(self.system, bf16=self.config.bf16)
        if self.layout == REPLICATED or resume_from_checkpoint is None:
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        load_divided_optimizer(self, self.layout, Path(resume_from_checkpoint))
        assert self.lr_scheduler is not None
        self.lr_scheduler.load_state_dict(torch.load(Path(resume_from_checkpoint, SCHEDULER_NAME), weights_only=True))
        return prepared


class _EndOfStep(TrainerCallback):
    """The states of a finished optimizer step become the previous ones; before anything is saved."""

    def __init__(self, consistency: ConsistencyState, trainer: HartTrainer) -> None:
        self.consistency, self.trainer = consistency, trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # A continued run has this command's intervals, not those that its checkpoint was written with.
        state.compute_steps(args, state.max_steps)
        self.trainer.start_clock()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.consistency.advance()
        self.trainer.end_of_step()


class _ProgressBar(ProgressCallback):
    """Steps, time left, and the latest losses behind the bar instead of a line for each log."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if self.training_bar is None or not logs:
            return
        short = {
            "prediction_loss": "L_pred",
            "consistency_loss": "L_cst",
            "eval_rouge_l": "ROUGE-L",
            "eval_accuracy": "accuracy",
        }
        shown = {short[k]: f"{v:.3f}" for k, v in logs.items() if k in short}
        if shown:
            self.training_bar.set_postfix(shown)
