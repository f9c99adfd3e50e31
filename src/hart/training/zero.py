"""DeepSpeed's configuration, from training.deepspeed or `accelerate launch`, in agreement with the run's.

Values "auto" in DeepSpeed's file are filled in from the `training` section; other values must agree with it.
"""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from hart.errors import HartError
from hart.runtime.files import read_json
from hart.runtime.launch import announce_alone, is_one_of_several
from hart.training.config import TrainingConfig


def read_deepspeed(path: Path) -> dict[str, Any]:
    """DeepSpeed's configuration from the file of training.deepspeed.

    Raises:
        HartError: there is no such file, or it is not a JSON object.
    """
    settings = read_json(path, "the JSON file of training.deepspeed")
    if not isinstance(settings, dict):
        raise HartError(f"{path}: training.deepspeed must be a JSON object, see configs/deepspeed")
    return settings


def deepspeed_plugin(config: TrainingConfig, passes: int) -> DeepSpeedPlugin | None:
    """accelerate's plugin if training.deepspeed or `accelerate launch` requests DeepSpeed, else None.

    Args:
        passes: number of forward and backward passes per step.

    Raises:
        HartError: DeepSpeed is not installed, or refuses its file.
    """
    if config.deepspeed is None and os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() != "true":
        return None
    if not importlib.util.find_spec("deepspeed"):
        raise HartError("training.deepspeed: DeepSpeed is not installed; pip install 'hart-hypernet[deepspeed]'")
    if config.deepspeed is not None:
        read_deepspeed(Path(config.deepspeed))
    if not is_one_of_several():
        announce_alone()
    with refusals(config):
        return DeepSpeedPlugin(
            hf_ds_config=config.deepspeed,
            gradient_accumulation_steps=passes,
            gradient_clipping=config.max_grad_norm or 0.0,
            zero3_init_flag=False,
        )


def agree(accelerator: Accelerator, config: TrainingConfig, micro: int, passes: int) -> None:
    """Fill in open values of DeepSpeed's configuration, and check that the others agree with the run's configuration.

    Raises:
        HartError: the two contradict each other.
    """
    from deepspeed.utils import logger

    logger.setLevel("WARNING")
    unset_hf_deepspeed_config()  # transformers would load models sharded; here the engine shards them later
    with refusals(config):
        accelerator.deepspeed_plugin.deepspeed_config_process(
            **{
                "train_micro_batch_size_per_gpu": micro,
                "gradient_accumulation_steps": passes,
                "train_batch_size": config.batch_size,
                "gradient_clipping": config.max_grad_norm or 0.0,
                "bf16.enabled": config.bf16,
                "fp16.enabled": False,
                "optimizer.params.lr": config.learning_rate,
                "optimizer.params.betas": [config.adam_beta1, config.adam_beta2],
                "optimizer.params.eps": config.adam_epsilon,
                "optimizer.params.weight_decay": config.weight_decay,
                "scheduler.params.warmup_min_lr": 0,
                "scheduler.params.warmup_max_lr": config.learning_rate,
                "scheduler.params.warmup_num_steps": max(1, config.warmup_steps),
                "scheduler.params.total_num_steps": config.max_steps,
            }
        )
    if accelerator.deepspeed_plugin.zero_stage == 0:
        where = config.deepspeed or "accelerate launch"
        raise HartError(f"{where}: DeepSpeed's stage 0 divides nothing; take stage 1 to 3, or leave DeepSpeed out")


@contextmanager
def refusals(config: TrainingConfig) -> Iterator[None]:
    """A context in which DeepSpeed's errors about its configuration become a `HartError` of one line."""
    try:
        yield
    except (ValueError, AssertionError) as error:
        reason = " ".join(str(error).split())
        raise HartError(f"{config.deepspeed or 'accelerate launch'}: DeepSpeed refuses it ({reason})") from error
