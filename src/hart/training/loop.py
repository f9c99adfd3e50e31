"""The training loop (§3, App. 8.1.3), in the order in which it runs.

Examples are in the order of the data set: the global batch of step t is examples t·B to (t+1)·B − 1, for any number of
processes and passes. accelerate places, wraps and averages; `hart.training.sharding` handles sharded weights and
states.
"""

import dataclasses
import math
import signal
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DeepSpeedPlugin,
    DistributedDataParallelKwargs,
    GradientAccumulationPlugin,
    ProjectConfiguration,
    send_to_device,
    set_seed,
)
from torch import Tensor
from torch.utils.data import DataLoader

from hart.data.collate import IGNORED_LABEL, Collator
from hart.data.sampling import Examples
from hart.data.tasks import Task
from hart.errors import HartError
from hart.evaluation.run import evaluate_model
from hart.evaluation.states import batch_measures, collapses
from hart.model.hart_model import HartModel
from hart.model.modes import evaluating
from hart.runtime.ranks import anywhere, rank, together, world_size
from hart.training.checkpoints import load_states, load_weights, save_checkpoint
from hart.training.config import TrainingConfig
from hart.training.consistency import make_consistency
from hart.training.distillation import Distillation
from hart.training.losses import prediction_loss
from hart.training.optimizer import make_optimizer, make_schedule, optimizer_used, schedule_of_deepspeed
from hart.training.reporting import Report, check_trackers
from hart.training.run_card import run_card
from hart.training.run_folder import RunFolder
from hart.training.sharding import FSDP, REPLICATED, ZERO, layout_of, shard, trained_weights, undivided, wants_fsdp
from hart.training.zero import agree, deepspeed_plugin, refusals


class Loop:
    """Training of a system with L_pred + α·L_cst, and optionally a teacher's loss.

    Args:
        system: the system to train.
        dataset: examples of the whole run.
        validation: tasks for evaluation during training.
        config: the `training` section.
        run: the run's folder, for metrics, checkpoints and the best model.
        distillation: the teacher, if there is one; the examples then have its input.
        quiet: show neither progress bar nor lines.

    Attributes:
        step: number of completed optimizer steps.
        best: scores of the model in `best/`, in order of priority; None before the first evaluation.
        layout: layout of weights and states over the processes, see `hart.training.sharding`.
        optimizer_used: the actual optimizer, as a value of training.optimizer.
        collapses: descriptions of the collapses of layer states at the last metrics.

    Raises:
        HartError: the batch cannot be divided as configured, a library is missing, DeepSpeed refuses its configuration,
            or the base is the teacher and its weights are sharded.
    """

    def __init__(
        self,
        system: HartModel,
        dataset: Examples,
        validation: Sequence[Task],
        config: TrainingConfig,
        run: RunFolder,
        *,
        distillation: Distillation | None = None,
        quiet: bool = False,
    ) -> None:
        self.system, self.dataset, self.validation, self.config, self.run = system, dataset, validation, config, run
        self.micro, self.passes = cut(config, world_size())
        check_trackers(config.trackers)
        fsdp, plugin = wants_fsdp(config), deepspeed_plugin(config, self.passes)
        self.optimizer_used = optimizer_used(config, plugin, fsdp=fsdp)
        self.accelerator = _accelerator(config, plugin, self.passes, run.path)
        if plugin is not None:
            agree(self.accelerator, config, self.micro, self.passes)
        self.layout = layout_of(self.accelerator, fsdp=fsdp)
        self.distillation = distillation
        if distillation is not None:
            distillation.place(self.accelerator.device, divided=self.layout in (FSDP, f"{ZERO}-3"))
        self.report = Report(self.accelerator, config, run, quiet=quiet)
        shape = system.main.shape
        self.layers = shape.depths
        self.consistency = make_consistency(config.pairing, len(dataset.tasks), self.layers)
        self.collapses: list[str] = []
        self.step = 0
        self.best: list[float] | None = None
        self.model: Any = system
        self.optimizer: Any
        self.schedule: Any
        self._seen: list[Tensor] = []
        self._states: Tensor | None = None

    def fit(self, checkpoint: Path | None, told: Sequence[int]) -> None:
        """Train to the end or to a signal, from the start or from a checkpoint that `check_layout` accepts.

        Args:
            told: the list of received signals (`hart.runtime.launch.on_sigterm`): after the first one, the current step
                is finished, a checkpoint is saved, and training stops.
        """
        config, accelerator = self.config, self.accelerator
        batches = self.prepare(checkpoint)
        while self.step < config.max_steps:
            with together():  # if one process cannot make its examples, all end instead of waiting for it
                passes = send_to_device(list(islice(batches, self.passes)), accelerator.device)
            rate = self.optimizer.param_groups[0]["lr"]  # DeepSpeed may step its own schedule in the backward pass
            tokens = accelerator.reduce(sum((each["labels"] != IGNORED_LABEL).sum() for each in passes))
            for batch in passes:
                with accelerator.accumulate(self.model):  # processes exchange gradients only in the last pass
                    self.exchange()
                    accelerator.backward(self.loss(batch, tokens))
            norm = self.clip()
            self.optimizer.step()
            if not accelerator.optimizer_step_was_skipped:
                self.schedule.step()
            self.optimizer.zero_grad()
            self.end_step(tokens)

            # A signal may reach processes at different times: they stop together. It is read once per step, as it may
            # arrive at any moment; a later one takes effect after the next step.
            stopping = anywhere(bool(told))
            if self.step == 1 or self.step % config.log_every == 0:
                self.report.losses(self.step, grad_norm=norm, learning_rate=rate, **self.measures())
            if self.validation and self.due(config.eval_every):
                self.evaluate()
            if self.due(config.save_every) or stopping:
                save_checkpoint(self)
                self.report.start_clock()
            if stopping:
                return

    def due(self, every: int) -> bool:
        """Whether an event of every `every` steps, and of the last step, is due."""
        return self.step % every == 0 or self.step == self.config.max_steps

    def batches(self) -> DataLoader[Any]:
        """The passes of this process, from the next step to the last; passes are dealt to the processes in turn."""
        stride = self.micro * world_size()
        first = self.step * self.config.batch_size + rank() * self.micro
        # Ranges, not lists: a run has millions of examples.
        passes: Any = [range(at, at + self.micro) for at in range(first, len(self.dataset), stride)]
        return DataLoader(
            self.dataset,  # type: ignore[arg-type]
            batch_sampler=passes,
            collate_fn=self.collator(),
            num_workers=self.config.num_workers,
            worker_init_fn=_leave_signals_to_the_run,
            pin_memory=torch.cuda.is_available(),
        )

    def collator(self) -> Collator:
        """The collator of this run's examples."""
        return Collator(
            self.system.main.tokenizer.pad_token_id,
            queries_per_task=self.config.queries_per_task,
            demo_pad_token_id=self.system.reader.pad_token_id,
        )

    def prepare(self, checkpoint: Path | None) -> Iterator[dict[str, Tensor]]:
        """Place, wrap and shard model and optimizer, load a checkpoint, and return the iterator of coming batches."""
        config, accelerator = self.config, self.accelerator
        line = self.description()
        if checkpoint is not None:
            load_weights(self, checkpoint)  # before weights are sharded
        set_seed(config.seed)
        if self.layout == FSDP:
            shard(self.system, bf16=config.bf16)
        optimizer = make_optimizer(self.system, config, self.optimizer_used)
        schedule = schedule_of_deepspeed(optimizer, config, accelerator.deepspeed_plugin)
        if self.layout == FSDP:  # sharded already: only wrapped in autocast
            self.model = accelerator.prepare_model(self.system, device_placement=False, evaluation_mode=True)
            self.optimizer = accelerator.prepare(optimizer)
        elif schedule is not None:
            with refusals(config):
                self.model, self.optimizer, self.schedule = accelerator.prepare(self.system, optimizer, schedule)
        else:
            with refusals(config) if accelerator.deepspeed_plugin else nullcontext():
                self.model, self.optimizer = accelerator.prepare(self.system, optimizer)
        if schedule is None:
            self.schedule = make_schedule(config)(self.optimizer)
        self.model.train()
        if self.distillation is not None and checkpoint is None and self.layout not in (FSDP, f"{ZERO}-3"):
            with together(), accelerator.autocast():
                if rank() == 0:
                    self.distillation.warn_if_worse(self.dataset, self.collator(), self.micro)
        batches = iter(self.batches())  # draws a random number
        if checkpoint is not None:
            load_states(self, checkpoint)
        self.report.begin(self.step, line)
        return batches

    def exchange(self) -> None:
        """Let FSDP sum gradients over the processes only in the last pass of a step, as `accumulate` does elsewhere."""
        if self.layout == FSDP:
            self.model.set_requires_gradient_sync(self.accelerator.sync_gradients)

    def loss(self, batch: dict[str, Tensor], tokens: Tensor) -> Tensor:
        """The loss of one pass, scaled so that the mean over all passes and processes is that of the step.

        Args:
            tokens: number of target tokens of the global batch.

        Raises:
            HartError: in any process, the loss is not finite or (unless weights are sharded) another error occurred.
        """
        # If processes exchange weights in the pass, a failed one cannot tell the others; its launcher ends them.
        apart = self.layout in (FSDP, f"{ZERO}-3")
        made = self._pass_loss(dict(batch), tokens) if apart else None
        with together():
            loss = self._pass_loss(dict(batch), tokens) if made is None else made
            if not torch.isfinite(loss):
                self._stop_at_bad(loss.item(), "loss", self._seen[-1:])
        return loss

    def _pass_loss(self, batch: dict[str, Tensor], tokens: Tensor) -> Tensor:
        # A row of the consistency loss is a task in the batch, shared by a group of queries.
        shared = self.config.queries_per_task
        slots = batch.pop("slots")[::shared] % self.config.batch_size // shared
        self._seen.append(batch.pop("task_index"))
        lesson = None
        if self.distillation is not None:
            with self.accelerator.autocast():
                lesson = self.distillation.lesson(batch)
        with nullcontext() if lesson is None else lesson.watching():
            output = self.model(**batch)
        self._states = output.states.detach()
        tasks, kept = self._seen[-1][::shared], self._without_dropout(batch)
        total, _ = prediction_loss(output.logits, batch["labels"])
        # The mean over the tokens of the global batch, to which passes contribute unequally; rows are equal per pass.
        share = self.accelerator.num_processes * self.passes
        prediction = total / tokens * share
        taught = {}
        if lesson is not None:
            sums = lesson.losses(output.logits, batch["labels"])
            taught = {name: value / tokens * share for name, value in sums.items()}
        # Also recorded with α = 0: it shows how far the states move without regularisation (Fig. 5).
        consistency = self.consistency.loss(output.states, slots, tasks, kept=kept)
        on_targets = prediction if self.distillation is None else self.distillation.weighted(prediction, taught)
        loss = on_targets + self.config.alpha * consistency
        self.report.add_pass(loss=loss, prediction_loss=prediction, consistency_loss=consistency, **taught)
        return loss

    @torch.no_grad()
    def _without_dropout(self, batch: dict[str, Tensor]) -> Tensor | None:
        """The states to keep, from a separate pass without dropout; None if those of the training pass are used."""
        network = self.system.hypernetwork
        if self.config.previous_dropout or network is None or not network.dropout_rate:
            return None
        with evaluating(network, self.system.main), self.accelerator.autocast():
            states: Tensor = network(batch["demo_ids"], batch["demo_mask"]).states
        return states

    def clip(self) -> float:
        """Clip the gradient to training.max_grad_norm, and return its norm before clipping, over all processes.

        It runs before the optimizer's step, so that a gradient that is not finite changes no weight. DeepSpeed reports
        the norm after its step; the run then ends without saving the step.
        """
        norm = float(self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm or math.inf))
        if not math.isfinite(norm):
            self._stop_at_bad(norm, "norm of the gradient", self._seen)
        return norm

    def end_step(self, tokens: Tensor) -> None:
        """End a step: its states become the previous states."""
        self.consistency.advance(self.accelerator.gather)
        self.report.add_step(tokens)
        self._seen = []
        self.step += 1

    def measures(self) -> dict[str, float]:
        """`batch_measures` of the last pass's layer states, as means over the processes; updates `collapses`."""
        assert self._states is not None
        network = self.system.hypernetwork
        one = network is not None and network.one_state
        found = batch_measures(self._states, self.layers, one_state=one)
        means = {name: float(self.accelerator.reduce(value, "mean")) for name, value in found.items()}
        # Rows of one task are all alike where it is well learned; text to pre-train on is one task without instances.
        one_task = len(self.dataset.tasks) == 1 and bool(self.dataset.tasks[0].instances)
        between = means.get("row_variance") if len(self._states) > 1 and not one_task else None
        self.collapses = collapses(means.get("layer_cosine"), between)
        return means

    def evaluate(self) -> None:
        """Score the validation tasks, and save the model in `best/` if it is the best so far.

        The criterion is ROUGE-L, at a tie exact match (ROUGE-L ignores some scripts), or accuracy.
        """
        count = self.config.eval_instances
        shortened = [dataclasses.replace(task, instances=task.instances[:count]) for task in self.validation]
        with undivided(self.system, self.model, self.layout):
            summary = evaluate_model(self.system, shortened, quiet=self.best is not None).summary
        self.model.train()
        self.report.scores(self.step, summary)
        scores = list(summary.values())
        if self.best is None or scores > self.best:
            self.best = scores
            self.save_to(self.run.best)
        self.report.start_clock()

    def keep_teacher(self) -> None:
        """Write the teacher's cached answers, if there is a cache; each process writes its own."""
        with together():
            if self.distillation is not None:
                self.distillation.flush()

    def save_to(self, folder: Path) -> None:
        """Save the current model; called by all processes together, written by the first."""
        weights = None if self.layout == REPLICATED else trained_weights(self.system)
        with together():
            if rank() == 0:
                about = run_card(self.run.config, self.dataset.tasks, self.run.metrics, self.step, world_size())
                self.system.save_pretrained(folder, weights=weights, about=about)

    def description(self) -> str:
        """One line: base, tasks, parameters, devices, precision."""
        sizes = [(each.numel(), each.requires_grad) for each in self.system.parameters()]
        trained, all_of_them = sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes)
        return (
            f"training {trained:,} of {all_of_them:,} parameters on {len(self.dataset.tasks)} tasks for the base "
            f"{self.system.main.identity['base']}: {self.config.max_steps} steps of {self.config.batch_size} queries, "
            f"{'bfloat16' if self.config.bf16 else 'float32'}, {world_size()} × {self.accelerator.device.type} "
            f"({self.layout})"
        )

    def _stop_at_bad(self, value: float, what: str, task_index: Sequence[Tensor]) -> None:
        names = sorted({self.dataset.tasks[i].label for part in task_index for i in part.tolist()})
        # A checkpoint of the previous step has the weights that gave this value.
        checkpoint = self.run.last_checkpoint(before=self.step)
        raise HartError(
            f"step {self.step + 1}: the {what} is {value} on a batch of the tasks "
            f"{', '.join(names)}; last good checkpoint: {checkpoint or 'none yet'}; look at these tasks, or start "
            "in a new training.output_dir with a lower training.learning_rate"
        )


def _leave_signals_to_the_run(_: int) -> None:
    """Let data workers ignore signals to the process group (Slurm, Ctrl-C); they end after the run has saved."""
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, signal.SIG_IGN)


def cut(config: TrainingConfig, processes: int) -> tuple[int, int]:
    """The number of queries per pass, and of passes per step.

    Raises:
        HartError: the batch cannot be divided into passes as configured.
    """
    micro = config.micro_batch_size or math.ceil(config.batch_size / processes)
    if config.batch_size % (micro * processes):
        raise HartError(
            f"training.batch_size: {config.batch_size} is not divisible by {processes} processes times "
            f"micro_batch_size {micro}; choose sizes that divide it"
        )
    if micro % config.queries_per_task:
        raise HartError(
            f"training.queries_per_task: {config.queries_per_task} does not divide the {micro} queries "
            "of one pass; choose micro_batch_size or batch_size accordingly"
        )
    return micro, config.batch_size // (micro * processes)


def _accelerator(config: TrainingConfig, plugin: DeepSpeedPlugin | None, passes: int, folder: Path) -> Accelerator:
    # accelerate's state belongs to the process, and an earlier run in it may have had another layout.
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState(cpu=not torch.cuda.is_available())
    with refusals(config) if plugin else nullcontext():
        return Accelerator(
            mixed_precision="bf16" if config.bf16 else "no",
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=passes, sync_with_dataloader=False),
            deepspeed_plugin=plugin,
            # Gradients are views of the exchanged buckets, without a second copy.
            kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
            log_with=[*config.trackers] or None,
            project_config=ProjectConfiguration(str(folder), logging_dir=str(folder / "tensorboard")),
        )
