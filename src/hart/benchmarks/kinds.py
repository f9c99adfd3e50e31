"""Speed of a LoRA per row of a batch: generated LoRA against PEFT's mixed batches of loaded adapters."""

from collections.abc import Iterator
from typing import Any

import torch

from hart.benchmarks import Figure, Settings, compare
from hart.benchmarks.models import main_model, random_adaptation, stock_model, t5_config, twin
from hart.errors import HartError
from hart.peft.base import Blocks

RANK, TASKS = 16, 16


@torch.no_grad()
def lora_per_row(settings: Settings) -> Iterator[Figure]:
    """A forward pass of 16 rows, each with its own LoRA of rank 16 on queries and values of self-attention.

    PEFT has the same matrices as 16 adapters, named per row. The logits are checked to agree.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise HartError("lora: needs the package peft (pip install peft)") from None
    model = stock_model(t5_config(settings.shape or "t5-large"), settings.device, settings.torch_dtype)
    main = main_model(model)
    kind = {"kind": "lora", "rank": RANK, "alpha": RANK, "targets": ["q", "v"]}
    adaptation = random_adaptation(main, TASKS, 0, peft=[kind])
    lora = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=r".*SelfAttention\.[qv]")
    names = [f"task{row}" for row in range(TASKS)]
    loaded: Any = get_peft_model(twin(model), lora, adapter_name=names[0])
    for name in names[1:]:
        loaded.add_adapter(name, lora)
    for row, name in enumerate(names):
        _load(loaded, name, adaptation.blocks, row)
    loaded.eval()
    ids = torch.randint(3, 1000, (TASKS, settings.scaled(96)), device=settings.device)
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "decoder_input_ids": ids[:, : settings.scaled(16)],
        "use_cache": False,
    }

    def generated() -> torch.Tensor:
        with main.binding(adaptation.blocks, adaptation.kinds, batch=TASKS):
            return main.model(**inputs).logits

    def mixed() -> torch.Tensor:
        return loaded(**inputs, adapter_names=names).logits

    torch.testing.assert_close(generated(), mixed(), rtol=1e-2, atol=1e-2)
    yield compare(
        f"LoRA per row, {TASKS} tasks in a batch",
        "peft, adapters mixed in a batch",
        {"generated": generated, "peft": mixed},
        settings,
        target=("≥", 1.0),
    )


def _load(loaded: Any, name: str, blocks: Blocks, row: int) -> None:
    """Copy row `row` of generated LoRA into PEFT's adapter of that name."""
    for stack in ("encoder", "decoder"):
        layers = getattr(loaded.base_model.model, stack).block
        for index, block in enumerate(layers):
            for target in "qv":
                module = getattr(block.layer[0].SelfAttention, target)
                module.lora_A[name].weight.copy_(blocks[f"lora.{stack}.{target}.a"][row, index])
                module.lora_B[name].weight.copy_(blocks[f"lora.{stack}.{target}.b"][row, index].T)
