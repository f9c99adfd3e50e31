"""Training a system (§3, App. 8.1.3): a transformers Trainer with the two losses of HART.

`train` goes from a configuration to a saved model: tasks, system, data set, trainer, model. A frozen main model stays
as it is; checkpoints hold what is trained, optimizer, schedule, random states and the states of the previous
optimizer step, so that a continued run repeats the uninterrupted one.
"""

import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from hart.config import RunConfig
from hart.data.lengths import without_long
from hart.data.p3_names import sampling_size
from hart.data.sampling import TrainingDataset
from hart.data.segments import DEFAULT_HUB_NAME as DEFAULT_TEXT
from hart.data.segments import SegmentDataset
from hart.data.tasks import Task
from hart.errors import HartError
from hart.input_format import InputFormat
from hart.run_folder import RunFolder
from hart.sharing import from_first, speaks_first
from hart.stopping import Stopped, memory_error, stopping_cleanly
from hart.system import HartModel
from hart.task_collections import load_tasks
from hart.trainer import HartTrainer

logger = logging.getLogger(__name__)


def train(config: RunConfig, *, tasks: Sequence[Task] | None = None, quiet: bool = False) -> Path:
    """Train a system and return the folder of the saved model (`final/` in the run's folder).

    A run that was interrupted goes on from its newest checkpoint; one that is complete is left as it is.

    Args:
        tasks: training tasks, instead of those that `config.data` names.
        quiet: no progress bar.

    Raises:
        HartError: bad input (tasks, base, configuration, folder), a loss that is not finite, too little memory.
        hart.stopping.Stopped: SIGTERM came; a checkpoint was written and the same call goes on from it.
    """
    # Of several processes (torchrun), the first one alone writes to the folder.
    owner = speaks_first()
    with _undone_on_error(Path(config.training.output_dir)) if owner else nullcontext():
        run = RunFolder(config, owner=owner)
        if (run.final / "config.json").exists():
            logger.info("%s: the run is complete", run.path)
            return run.final
        if config.training.num_threads:
            torch.set_num_threads(config.training.num_threads)
        if tasks is None and not config.data.segments:
            tasks = load_tasks(config.data, "train")
        validation = load_tasks(config.data, "validation") if config.training.eval_every else []

        system = HartModel.from_config(config.model, config.data, seed=config.training.seed)
        if config.data.collection == "p3" and tasks:
            tasks, excluded = without_long(tasks, system.main.tokenizer, config.data.max_average_length)
            if owner and excluded:
                run.note_excluded(excluded, config.data.max_average_length)
        dataset = training_examples(config, tasks, system.main.tokenizer)
        trainer = HartTrainer(system, dataset, validation, config.training, run, quiet=quiet)
    checkpoint = from_first(lambda: _to_go_on_from(run))
    with stopping_cleanly() as stop:
        trainer.add_callback(stop)
        try:
            trainer.go_on(checkpoint)
        except HartError as error:
            # From a data worker it comes wrapped in the worker's traceback.
            raise HartError(
                str(error).rpartition(f"{HartError.__module__}.{HartError.__name__}: ")[2].strip()
            ) from error
        except (RuntimeError, MemoryError) as error:
            raise memory_error(error, config) or error from error
    if stop.signalled and trainer.state.global_step < config.training.max_steps:
        raise Stopped(
            f"stopped by a signal after step {trainer.state.global_step}, which is saved in {run.checkpoints}"
        )
    trainer.save_to(run.final)
    return run.final


def _to_go_on_from(run: RunFolder) -> Path | None:
    """The newest whole checkpoint, with the metrics of what comes after it forgotten."""
    checkpoint = run.last_checkpoint()
    run.rewind_metrics(int(checkpoint.name[11:]) if checkpoint else -1)
    return checkpoint


def training_examples(
    config: RunConfig, tasks: Sequence[Task] | None, tokenizer: PreTrainedTokenizerBase
) -> TrainingDataset | SegmentDataset:
    """The examples of a whole run, in the order of its steps: of `tasks`, or of text to pre-train on.

    Raises:
        HartError: tasks or text that cannot be used.
    """
    data, training = config.data, config.training
    length, lengths = training.max_steps * training.batch_size, InputFormat.from_config(data).lengths
    if data.segments:
        return SegmentDataset(
            tokenizer,
            directory=None if data.dir is None else Path(data.dir),
            hub_name=data.hub_name or DEFAULT_TEXT,
            kind="four" if data.collection == "four_segments" else "three",
            length=length,
            seed=training.seed,
            lengths=lengths,
            max_document_tokens=data.max_document_tokens,
        )
    sizes = [sampling_size(each.name, len(each.instances)) for each in tasks or []] if data.collection == "p3" else None
    form = InputFormat.from_config(data)
    return TrainingDataset(
        tasks or [],
        tokenizer,
        length=length,
        seed=training.seed,
        lengths=lengths,
        task_sampling=data.task_sampling,
        sizes=sizes,
        demonstrations=data.demonstrations,
        demonstrations_to=data.demonstrations_to,
        queries_per_task=training.queries_per_task,
        input_eos=form.input_eos,
        **form.shown,
    )


@contextmanager
def _undone_on_error(folder: Path) -> Iterator[None]:
    """A folder that is new or empty is so again after an error, so that a corrected command can take it."""
    existed = folder.exists()
    try:
        occupied = existed and any(folder.iterdir())
    except OSError:  # a file, or unreadable: RunFolder says so
        occupied = True
    try:
        yield
    except BaseException:
        if not occupied:
            shutil.rmtree(folder, ignore_errors=True)
            if existed:
                folder.mkdir()
        raise
