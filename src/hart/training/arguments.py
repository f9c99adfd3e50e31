"""From the `training` section of a configuration to the arguments of the transformers Trainer."""

import importlib.util
import logging
import math
import os
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from hart.errors import HartError
from hart.runtime.files import read_json
from hart.runtime.launch import announce_alone
from hart.training.config import TrainingConfig

logger = logging.getLogger(__name__)


def wants_fsdp(config: TrainingConfig) -> bool:
    """Whether the configuration or `accelerate launch` asks for FSDP.

    hart divides the weights itself (`hart.training.sharding.shard`), so accelerate is not told: its own way of doing
    so would divide layers that a generation scheme runs in parts, and knows no CPU.
    """
    asked = os.environ.pop("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if asked:
        os.environ[_FSDP_ASKED] = "true"
    return config.fsdp or _FSDP_ASKED in os.environ


_FSDP_ASKED = "HART_USE_FSDP"


def optimizer_used(config: TrainingConfig, arguments: TrainingArguments) -> str:
    """The optimizer that a run really has, in the words of training.optimizer; one of DeepSpeed's file by its type."""
    if config.deepspeed is not None and "optimizer" in (settings := read_deepspeed(Path(config.deepspeed))):
        return f"DeepSpeed's {settings['optimizer'].get('type')}"
    return "adamw_8bit" if arguments.optim == "adamw_bnb_8bit" else "adamw"


def optimizer_name(wanted: str, *, fsdp: bool = False) -> str:
    """The Trainer's name of the optimizer; plain AdamW, said aloud, where 8-bit states cannot be had."""
    if wanted == "adamw_8bit" and fsdp:
        logger.warning(
            "training.optimizer is adamw_8bit, whose states FSDP cannot divide: using plain AdamW (DeepSpeed can)"
        )
    elif wanted == "adamw_8bit":
        if importlib.util.find_spec("bitsandbytes"):
            return "adamw_bnb_8bit"
        logger.warning(
            "training.optimizer is adamw_8bit but bitsandbytes is not installed: using plain AdamW "
            "(pip install 'hart-hypernet[bnb]' for the paper's 8-bit Adam)"
        )
    return "adamw_torch"


def read_deepspeed(path: Path) -> dict[str, Any]:
    """DeepSpeed's configuration, as a file of training.deepspeed.

    Raises:
        HartError: no such file, or no JSON object.
    """
    settings = read_json(path, "the JSON file that training.deepspeed must be")
    if not isinstance(settings, dict):
        raise HartError(f"{path}: training.deepspeed must be a JSON object, see configs/deepspeed")
    return settings


def _check_deepspeed(path: Path, world: int) -> None:
    """What DeepSpeed would say later, and in many lines."""
    if not importlib.util.find_spec("deepspeed"):
        raise HartError("training.deepspeed: DeepSpeed is not installed; pip install 'hart-hypernet[deepspeed]'")
    read_deepspeed(path)
    if world == 1:
        announce_alone()


def _line(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error).splitlines()[0]


def training_arguments(config: TrainingConfig, checkpoints: Path, *, evaluate: bool, quiet: bool) -> TrainingArguments:
    """What the Trainer is told.

    Args:
        config: the `training` section.
        checkpoints: folder of the checkpoints.
        evaluate: whether there are validation tasks.
        quiet: no progress bar.

    Raises:
        HartError: the batch cannot be cut into passes as asked for.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    micro = config.micro_batch_size or math.ceil(config.batch_size / world)
    if config.batch_size % (micro * world):
        raise HartError(
            f"training.batch_size: {config.batch_size} is not divisible by {world} processes times "
            f"micro_batch_size {micro}; choose sizes that divide it"
        )
    if micro % config.queries_per_task:
        raise HartError(
            f"training.queries_per_task: {config.queries_per_task} does not divide the {micro} queries "
            "of one pass; choose micro_batch_size or batch_size accordingly"
        )
    if config.deepspeed is not None:
        _check_deepspeed(Path(config.deepspeed), world)
    try:
        arguments = _arguments(config, checkpoints, micro, world, evaluate=evaluate, quiet=quiet)
    except (ValueError, AssertionError) as error:
        if config.deepspeed is None:
            raise
        raise HartError(f"{config.deepspeed}: DeepSpeed refuses it ({_line(error)})") from error
    # One process drives one device. With more in sight, the Trainer would split each batch between them by threads
    # (DataParallel), of which the blocks bound to the main model know nothing.
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
    return arguments


def _arguments(
    config: TrainingConfig, checkpoints: Path, micro: int, world: int, *, evaluate: bool, quiet: bool
) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(checkpoints),
        max_steps=config.max_steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=config.batch_size // (micro * world),
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.schedule,
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        adam_beta1=config.adam_beta1,
        adam_beta2=config.adam_beta2,
        adam_epsilon=config.adam_epsilon,
        max_grad_norm=config.max_grad_norm or 0.0,
        optim=optimizer_name(config.optimizer, fsdp=wants_fsdp(config)),
        seed=config.seed,
        bf16=config.bf16,
        deepspeed=config.deepspeed,
        use_cpu=not torch.cuda.is_available(),
        logging_steps=config.log_every,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if evaluate else "no",
        eval_steps=config.eval_every or None,
        save_steps=config.save_every,
        save_total_limit=None,
        dataloader_num_workers=config.num_workers,
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        label_names=["labels"],
        # Every weight of the hypernetwork is used in every pass.
        ddp_find_unused_parameters=False,
        report_to=[],
        disable_tqdm=quiet,
    )
