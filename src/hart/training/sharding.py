"""Sharding of weights and optimizer states over the processes of a run, and checkpoints of them.

Layouts. *Replicated*: each process holds everything (one process; DDP). ZeRO (DeepSpeed) shards the optimizer states
(stage 1), also the gradients (2), also the weights (3). FSDP shards all three. The paper trains with DeepSpeed (§4.1).
The layout is chosen by the launcher (`accelerate launch`) or by training.deepspeed and training.fsdp.

In every layout, a checkpoint has the complete trained weights, as a model folder; only the optimizer states are written
in the layout of the run.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from hart.errors import HartError
from hart.model.hart_model import HartModel
from hart.peft.modules import layers
from hart.runtime.ranks import rank, world_size
from hart.training.config import TrainingConfig
from hart.training.optimizer import ADAMW, EIGHT_BIT, MUON

LAYOUT_FILE = "layout.json"
FORMAT = 2
"""Version of the checkpoint format. Format 1, that of transformers' Trainer, had no number."""
OPTIMIZER_FILE = "optimizer.pt"
REPLICATED, FSDP, ZERO = "replicated", "fsdp", "zero"
_FSDP_ASKED = "HART_USE_FSDP"


def wants_fsdp(config: TrainingConfig) -> bool:
    """Whether the configuration or `accelerate launch` requests FSDP.

    hart shards the weights itself (`shard`) and does not pass the request to accelerate, which would shard layers that
    a generation scheme runs in parts, and does not support CPUs.
    """
    if os.environ.pop("ACCELERATE_USE_FSDP", "false").lower() == "true":
        os.environ[_FSDP_ASKED] = "true"
    return config.fsdp or _FSDP_ASKED in os.environ


def layout_of(accelerator: Accelerator, *, fsdp: bool) -> str:
    """The layout of a run: `replicated`, `zero-1` to `zero-3` or `fsdp`."""
    if accelerator.deepspeed_plugin is not None:
        return f"{ZERO}-{accelerator.deepspeed_plugin.zero_stage}"
    return FSDP if fsdp and world_size() > 1 else REPLICATED


def shard(system: HartModel, *, bf16: bool) -> None:
    """Shard the weights over the processes with FSDP, layer by layer; a layer is gathered only while it runs.

    The layers of the hypernetwork's decoder and the embeddings belong to the root unit, which stays gathered from the
    forward to the backward pass: FSDP gathers weights when a module is called, but a generation scheme runs the
    decoder's parts itself, L times (`hart.hypernetwork.decoding`).

    Args:
        bf16: gather weights in bfloat16; gradients are summed in float32.

    Raises:
        HartError: this version of PyTorch does not support it.
    """
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    if not hasattr(FSDPModule, "reset_iter_state"):
        raise HartError("training.fsdp needs PyTorch 2.13 or newer; training.deepspeed works with this one")
    system.main.keep_fingerprint()
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if bf16 else MixedPrecisionPolicy()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    mesh = torch.distributed.init_device_mesh(device, (world_size(),))
    units = [layer for stack in system.main.shape.stacks for layer in layers(system.main.model, stack)]
    if system.hypernetwork is not None:
        if system.hypernetwork.config.has_own_encoder:
            units += system.hypernetwork.encoder.block
        units += system.hypernetwork.heads.heads()
    for unit in units:
        fully_shard(unit, mesh=mesh, mp_policy=policy)
    fully_shard(system, mesh=mesh, mp_policy=policy)


def trained_weights(module: nn.Module) -> dict[str, Tensor]:
    """Name → complete value of each trained parameter, on the CPU; in float32 if the optimizer has a float32 copy.

    All processes must call it together; if weights are sharded, only the first process gets them. A parameter of two
    modules has one name.
    """
    from torch.distributed.tensor import DTensor

    whole: dict[str, Tensor] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        divided = True
        if isinstance(parameter, DTensor):
            value = parameter.full_tensor()
        elif hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping"):
            from deepspeed.utils import safe_get_full_fp32_param

            # With bf16, DeepSpeed trains the optimizer's float32 copy.
            value = safe_get_full_fp32_param(parameter)
        else:
            value, divided = parameter, False
        if not divided or rank() == 0:
            whole[name] = value.detach().cpu()
        del value
    return whole


@contextmanager
def undivided(system: HartModel, engine: Any, layout: str) -> Iterator[None]:
    """A context in which each process holds all weights and can use the system alone, without gradients.

    All processes must enter and leave together.

    Args:
        engine: DeepSpeed's engine, if it is used.
    """
    if layout == FSDP:
        from torch.distributed.fsdp import FSDPModule

        units = [module for module in system.modules() if isinstance(module, FSDPModule)]
        for unit in units:
            unit.set_reshard_after_forward(False, recurse=False)
            unit.unshard()
        try:
            yield
        finally:
            for unit in units:
                # FSDP's own setting: the root stays gathered until the backward pass.
                unit.set_reshard_after_forward(unit is not system, recurse=False)
            # This shards the weights again, and forgets forward passes without a backward pass.
            units[0].reset_iter_state()
    else:
        whole: Any = nullcontext()
        if layout == f"{ZERO}-3":
            import deepspeed

            whole = deepspeed.zero.unwrap_model_for_generation(engine)
        with whole:
            yield


def save_optimizer(model: Any, optimizer: Optimizer, layout: str, folder: Path) -> None:
    """Write the optimizer's states; all processes together.

    Args:
        model: the result of `Accelerator.prepare`, which is DeepSpeed's engine if it is used.
        optimizer: without accelerate's wrapper.
    """
    if layout.startswith(ZERO):
        model.save_checkpoint(str(folder), exclude_frozen_parameters=True)
        return
    if layout == FSDP:
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        states = get_optimizer_state_dict(model, optimizer, options=options)
    else:
        states = optimizer.state_dict()
    if rank() == 0:
        torch.save(states, folder / OPTIMIZER_FILE)


def load_optimizer(model: Any, optimizer: Optimizer, layout: str, folder: Path) -> None:
    """Load the optimizer's states that `save_optimizer` wrote."""
    if layout.startswith(ZERO):
        # Not strict, as the file lacks frozen weights.
        model.load_checkpoint(str(folder), load_module_strict=False, load_lr_scheduler_states=False)
        return
    states = torch.load(folder / OPTIMIZER_FILE, map_location="cpu", weights_only=True, mmap=layout == FSDP)
    if layout == FSDP:
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

        set_optimizer_state_dict(model, optimizer, states, options=StateDictOptions(full_state_dict=True))
    else:
        optimizer.load_state_dict(states)


def write_layout(folder: Path, layout: str, optimizer: str) -> None:
    """Write layout, number of processes and optimizer of a checkpoint's optimizer states into its folder."""
    said = {"format": FORMAT, "layout": layout, "world_size": world_size(), "optimizer": optimizer}
    (folder / LAYOUT_FILE).write_text(json.dumps(said) + "\n", encoding="utf-8")


def check_layout(folder: Path, layout: str, optimizer: str) -> str | None:
    """Check that a run with this layout and optimizer can be resumed from a checkpoint; returns what it loses, if any.

    Args:
        optimizer: the actual optimizer, as a value of training.optimizer.

    Raises:
        HartError: the run cannot be resumed; the message has the reason.
    """
    try:
        saved = json.loads((folder / LAYOUT_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        saved = {}
    instead = "or take a new training.output_dir and the checkpoint as model.init_from"
    if saved.get("format") != FORMAT:
        raise HartError(
            f"{folder}: the checkpoint is of an incompatible version of hart; continue with that version, {instead}"
        )
    before, processes, states = saved["layout"], saved["world_size"], saved["optimizer"]
    if before != layout:
        raise HartError(
            f"{folder}: its optimizer states are divided as {before} and this run has {layout}; start it with "
            f"{before}, {instead}"
        )
    if states != optimizer:
        how = {EIGHT_BIT: "install bitsandbytes again"} | {
            name: f"set training.optimizer to {name}" for name in (ADAMW, MUON)
        }
        raise HartError(
            f"{folder}: its optimizer states belong to {states}, and this run has {optimizer}; "
            f"{how.get(states, 'start it with the same optimizer')}, {instead}"
        )
    if processes == world_size():
        return None
    if layout.startswith(ZERO):
        raise HartError(
            f"{folder}: DeepSpeed has divided its optimizer states among {processes} processes and this run has "
            f"{world_size()}; start it with {processes}, {instead}"
        )
    return f"written by {processes} processes and continued by {world_size()}: same examples, other draws of dropout"
