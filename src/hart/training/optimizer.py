"""The optimizer and the schedule of its learning rate.

The optimizer is (8-bit) AdamW with decoupled weight decay (§4.1, App. 8.1.3), or Muon (ours): orthogonalised momentum
for linear maps, AdamW for all other parameters.
"""

import functools
import importlib.util
import logging
import re
from collections.abc import Callable
from typing import Any

import torch
from accelerate.utils import DeepSpeedPlugin
from accelerate.utils.deepspeed import DummyOptim, DummyScheduler
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

from hart.errors import HartError
from hart.training.config import TrainingConfig
from hart.training.muon import MuonAndAdamW

logger = logging.getLogger(__name__)

EIGHT_BIT = "adamw_8bit"
ADAMW = "adamw"
MUON = "muon"

_NOT_DECAYED = re.compile(r"bias|layernorm|rmsnorm|(^|\.)norm($|\.)|_norm($|\.)")
"""Names of parameters without weight decay: biases and the gains of norms."""


def optimizer_used(config: TrainingConfig, plugin: DeepSpeedPlugin | None, *, fsdp: bool) -> str:
    """The actual optimizer of a run, as a value of training.optimizer; an optimizer in DeepSpeed's file by its type.

    If 8-bit states are unavailable, it is plain AdamW, with a warning.

    Raises:
        HartError: Muon is requested with FSDP or DeepSpeed, which shard matrices.
    """
    if config.optimizer == MUON and (fsdp or plugin is not None):
        raise HartError(
            f"training.optimizer is muon, which needs whole matrices, and {'FSDP' if fsdp else 'DeepSpeed'} divides "
            "them among processes; set adamw, or use DDP"
        )
    if plugin is not None and "optimizer" in plugin.deepspeed_config:
        return f"DeepSpeed's {plugin.deepspeed_config['optimizer'].get('type')}"
    if config.optimizer == MUON:
        return MUON
    if config.optimizer == EIGHT_BIT and fsdp:
        logger.warning(
            "training.optimizer is adamw_8bit, whose states FSDP cannot divide: using plain AdamW (DeepSpeed can)"
        )
    elif config.optimizer == EIGHT_BIT:
        if importlib.util.find_spec("bitsandbytes"):
            return EIGHT_BIT
        logger.warning(
            "training.optimizer is adamw_8bit but bitsandbytes is not installed: using plain AdamW "
            "(pip install 'hart-hypernet[bnb]' for the paper's 8-bit Adam)"
        )
    return ADAMW


def make_optimizer(model: nn.Module, config: TrainingConfig, used: str) -> Optimizer | DummyOptim:
    """The optimizer of all trained parameters; a placeholder if DeepSpeed's file has its own optimizer.

    Args:
        used: the result of `optimizer_used`.
    """
    norms = {id(p) for module in model.modules() if isinstance(module, nn.LayerNorm) for p in module.parameters()}
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            exempt = id(parameter) in norms or _NOT_DECAYED.search(name.lower())
            (others if exempt else decayed).append(parameter)
    if used not in (EIGHT_BIT, ADAMW, MUON):
        return DummyOptim(decayed + others, lr=config.learning_rate, weight_decay=config.weight_decay)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    settings: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": (config.adam_beta1, config.adam_beta2),
        "eps": config.adam_epsilon,
    }
    if used == ADAMW:
        return torch.optim.AdamW(groups, **settings)
    if used == MUON:
        return MuonAndAdamW(linear_weights(model), groups, settings, config.muon_rate or config.learning_rate)
    return _eight_bit(model, groups, settings)


def linear_weights(model: nn.Module) -> list[nn.Parameter]:
    """The parameters for Muon: trained weights of `nn.Linear` modules that are not also embeddings.

    The heads' second maps (`hart.hypernetwork.heads.BlockHead`) and GPT-2's `Conv1D` are no such modules.
    """
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    weights = {id(module.weight): module.weight for module in model.modules() if isinstance(module, nn.Linear)}
    return [each for name, each in weights.items() if each.requires_grad and name not in tables]  # type: ignore[misc]


def _eight_bit(model: nn.Module, groups: list[dict[str, Any]], settings: dict[str, Any]) -> Optimizer:
    import bitsandbytes as bnb

    optimizer: Optimizer = bnb.optim.AdamW(groups, optim_bits=8, **settings)
    manager = bnb.optim.GlobalOptimManager.get_instance()
    for module in model.modules():
        # 8 bits represent the gradients of rare tokens' rows poorly.
        if isinstance(module, nn.Embedding):
            manager.register_module_override(module, "weight", {"optim_bits": 32})
    return optimizer


def make_schedule(config: TrainingConfig) -> Callable[[Optimizer], LRScheduler]:
    """A function that makes the learning-rate schedule of an optimizer."""
    return functools.partial(
        get_scheduler,
        config.schedule,
        num_warmup_steps=config.warmup_steps,
        num_training_steps=config.max_steps,
    )


def schedule_of_deepspeed(
    optimizer: Optimizer | DummyOptim, config: TrainingConfig, plugin: DeepSpeedPlugin | None
) -> DummyScheduler | None:
    """A placeholder for the schedule if DeepSpeed creates or steps it (its file has a schedule or an optimizer)."""
    if plugin is None or not {"optimizer", "scheduler"} & plugin.deepspeed_config.keys():
        return None
    own = None if "scheduler" in plugin.deepspeed_config else make_schedule(config)
    return DummyScheduler(optimizer, lr_scheduler_callable=own)
