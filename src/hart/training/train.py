"""Training a system (§3, App. 8.1.3): from a configuration to a saved model.

`train` loads tasks, builds system and examples, runs the loop (`hart.training.loop`) and saves. A frozen main model is
unchanged; checkpoints have the trained weights, optimizer, schedule, random states and the states of the previous
optimizer step, so that a resumed run repeats the uninterrupted one.
"""

import logging
from collections.abc import Sequence
from contextlib import ExitStack, closing, nullcontext
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from hart.data.collections import load_tasks
from hart.data.distractors import WithDistractors, read_distractors
from hart.data.input_format import InputFormat
from hart.data.lengths import without_long
from hart.data.sampling import Examples
from hart.data.tasks import Task
from hart.errors import HartError
from hart.model.hart_model import HartModel
from hart.runtime.launch import on_sigterm
from hart.runtime.ranks import from_first, join_to_train, rank, together, world_size
from hart.training.blueprint import check_positions, check_trains
from hart.training.config import RunConfig
from hart.training.distillation import make_distillation
from hart.training.distractors import base_answers, check_begun_with, encoded
from hart.training.loop import Loop, cut
from hart.training.run_folder import RunFolder, holding, undone_on_error
from hart.training.run_record import check_same, check_same_tasks, read_record, record_of, write_record
from hart.training.sharding import check_layout
from hart.training.stopping import Stopped, memory_error

logger = logging.getLogger(__name__)


def train(config: RunConfig, *, tasks: Sequence[Task] | None = None, quiet: bool = False) -> Path:
    """Train a system and return the folder of the saved model (`final/` in the run's folder).

    An interrupted run continues from its newest checkpoint. A complete run is left unchanged, provided that its tasks
    are still those that it was trained on; they are read to check.

    Args:
        tasks: training tasks, instead of those that `config.data` names.
        quiet: show no progress bar and, without a terminal, no progress lines.

    Raises:
        HartError: bad input (tasks, base, configuration, folder), a loss that is not finite, too little memory.
        hart.training.stopping.Stopped: SIGTERM or Ctrl-C arrived; a checkpoint was written, from which the same call
            continues. A second Ctrl-C raises KeyboardInterrupt at once.
    """
    # With several processes (torchrun) only the first one writes to the folder; an error of one ends all.
    join_to_train()
    owner, folder = rank() == 0, Path(config.training.output_dir)
    with ExitStack() as held:
        with together():
            if owner:
                RunFolder.check_free(folder)  # before the lock file is created
                held.enter_context(holding(folder))
        return _train(config, tasks, owner=owner, quiet=quiet)


def _train(config: RunConfig, tasks: Sequence[Task] | None, *, owner: bool, quiet: bool) -> Path:
    folder = Path(config.training.output_dir)
    with undone_on_error(folder) if owner else nullcontext():
        with together():
            run = RunFolder(config, owner=owner)
        if from_first(lambda: RunFolder.is_complete(folder)):
            if config.data.distractor_share:
                with together():
                    check_begun_with(config.data, folder)
            with together():
                if owner:
                    check_same_tasks(config, tasks, folder)
                    run.save_config()  # with the current paths of the same data
            logger.info("%s: the run is complete", run.path)
            return run.final
        with together():
            loop = _set_up(config, tasks, run, owner=owner, quiet=quiet)
        checkpoint = from_first(lambda: _to_go_on_from(run, loop))
        if config.data.distractor_share:
            loop.dataset = _with_distractors(config, loop, folder)
    with on_sigterm(interrupts=True) as told, closing(loop.report):
        try:
            loop.fit(checkpoint, told)
        except HartError as error:
            # An error of a data worker comes wrapped in the worker's traceback.
            raise HartError(
                str(error).rpartition(f"{HartError.__module__}.{HartError.__name__}: ")[2].strip()
            ) from error
        except (RuntimeError, MemoryError) as error:
            raise memory_error(error, config) or error from error
    if loop.step < config.training.max_steps:
        message = f"stopped by a signal after step {loop.step}, which is saved in {run.checkpoints}"
        raise Stopped(message, *told[:1])
    loop.keep_teacher()
    loop.save_to(run.final)
    for collapse in loop.collapses:
        logger.warning("%s; hart evaluate %s --diagnostics shows details", collapse, run.final)
    return run.final


def _set_up(config: RunConfig, tasks: Sequence[Task] | None, run: RunFolder, *, owner: bool, quiet: bool) -> Loop:
    """Build the loop of a run, with its system and its examples."""
    data, training = config.data, config.training
    cut(training, world_size())  # refused before data and a large base are read
    if training.num_threads:
        torch.set_num_threads(training.num_threads)
    if data.distractors is not None:
        read_distractors(data.distractors)  # checked before a large base is loaded
    if tasks is None and not data.segments:
        tasks = load_tasks(data, "train")
    if config.model.weights == "generated" and tasks and len(tasks) == 1:
        logger.warning(
            "%s is the only training task, so the hypernetwork cannot learn to adapt to other tasks",
            tasks[0].label,
        )
    evaluates = training.eval_every > 0
    if evaluates and not data.validation_tasks and not data.source.has_validation:
        logger.warning(
            "data.validation_tasks is 0: training.eval_every %d has no validation tasks, so nothing is evaluated "
            "during training and no best/ is kept",
            training.eval_every,
        )
        evaluates = False
    validation = load_tasks(data, "validation") if evaluates else []

    system = HartModel.from_config(config.model, data, seed=training.seed)
    check_trains(config.model, system.main.shape)
    check_positions(config, system.main.model)
    if data.source.limits_length and tasks:
        tasks, excluded = without_long(tasks, system.main.tokenizer, data.max_average_length)
        if owner and excluded:
            run.note_excluded(excluded, data.max_average_length)
    tokenizer = system.main.tokenizer
    reader = None if system.reader is tokenizer else system.reader
    distillation = make_distillation(config, system)
    dataset = training_examples(config, tasks, tokenizer, reader, distillation.form if distillation else None)
    loop = Loop(system, dataset, validation, training, run, distillation=distillation, quiet=quiet)
    if owner:
        run.record = record_of(config, system.main.identity, tasks, validation, loop.optimizer_used)
        if distillation is not None:
            run.record["teacher"] = distillation.fingerprint
    return loop


def _to_go_on_from(run: RunFolder, loop: Loop) -> Path | None:
    """The newest complete checkpoint, or None; metrics of later steps are removed.

    Raises:
        HartError: the run has another base or other data now, or cannot be resumed from the checkpoint.
    """
    checkpoint, before = run.last_checkpoint(), read_record(run.path)
    if checkpoint is not None:
        if before is not None:
            check_same(run.path, before, run.record)
        loss = check_layout(checkpoint, loop.layout, loop.optimizer_used)
        if loss is not None:
            logger.info("%s: %s", checkpoint, loss)
    run.save_config()
    write_record(run.path, run.record)
    run.rewind_metrics(int(checkpoint.name[11:]) if checkpoint else -1)
    return checkpoint


def _with_distractors(config: RunConfig, loop: Loop, folder: Path) -> Examples:
    """The examples of a run, a share of them with distractors; the base answers these in the first process."""
    main, data = loop.system.main, config.data
    answers = from_first(lambda: base_answers(main, data, folder, loop.accelerator.device))
    with together():
        pool = encoded(main, data, answers)
    return WithDistractors(loop.dataset, pool, share=data.distractor_share, seed=config.training.seed)


def training_examples(
    config: RunConfig,
    tasks: Sequence[Task] | None,
    tokenizer: PreTrainedTokenizerBase,
    reader: PreTrainedTokenizerBase | None = None,
    teacher: InputFormat | None = None,
) -> Examples:
    """The examples of a whole run, in the order of its steps: of `tasks`, or of text to pre-train on.

    Args:
        tokenizer: tokenizer of the main model.
        reader: tokenizer of the hypernetwork, if it differs.
        teacher: input format of a teacher, if there is one, which reads the task before each query.

    Raises:
        HartError: tasks or texts cannot be used.
    """
    data, training = config.data, config.training
    return data.source.examples(
        data,
        tasks or [],
        tokenizer,
        length=training.max_steps * training.batch_size,
        seed=training.seed,
        queries_per_task=training.queries_per_task,
        reader=reader,
        teacher=teacher,
    )
