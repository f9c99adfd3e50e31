"""Speed of the main model with prefixes, against a stock `transformers` model and against PEFT's Prefix-Tuning."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import T5ForConditionalGeneration

from hart.benchmarks import Figure, Settings, compare
from hart.benchmarks.models import PREFIX_LENGTH, main_model, random_adaptation, stock_model, t5_config, twin
from hart.errors import HartError
from hart.peft import injection

LABELS, NEW_TOKENS = 32, 32


@torch.no_grad()
def against_stock(settings: Settings) -> Iterator[Figure]:
    """Forward pass and greedy generation with one set of prefixes in both stacks, against the stock model.

    The stock model has PyTorch's attention, its default. Queries have 384 tokens, answers 32.
    """
    model = stock_model(t5_config(settings.shape or "t5-large"), settings.device, settings.torch_dtype)
    main = main_model(model)
    adaptation = random_adaptation(main, 1, 0)
    for batch in settings.batch or (2,):
        inputs = _inputs(settings, batch)

        def adapted(use: Callable[[T5ForConditionalGeneration], Any], batch: int = batch) -> None:
            with main.binding(adaptation.blocks, adaptation.kinds, batch=batch):
                use(main.model)

        for what, use in _uses(settings, inputs).items():
            yield compare(
                f"main model with prefixes, {what}, batch {batch}",
                "stock transformers model",
                {"with prefixes": functools.partial(adapted, use), "stock": functools.partial(use, model)},
                settings,
                target=("≤", 1.05),
            )


@torch.no_grad()
def against_peft(settings: Settings) -> Iterator[Figure]:
    """Prefixes in the decoder only, against PEFT's Prefix-Tuning of a T5 with prefixes of the same length."""
    try:
        from peft import PrefixTuningConfig, TaskType, get_peft_model
    except ImportError:
        raise HartError("prefix-peft: needs the package peft (pip install peft)") from None
    config = t5_config(settings.shape or "t5-large")
    if config.num_heads * config.d_kv != config.d_model:
        raise HartError(f"prefix-peft: --shape {settings.shape}: PEFT's prefixes need heads · d_kv equal to d_model")
    model = stock_model(config, settings.device, settings.torch_dtype)
    main = main_model(model)
    blocks = random_adaptation(main, 1, 0).blocks
    tuning = PrefixTuningConfig(task_type=TaskType.SEQ_2_SEQ_LM, num_virtual_tokens=PREFIX_LENGTH)
    tuned = get_peft_model(twin(model), tuning).eval().to(settings.device, settings.torch_dtype)
    sites: list[Any] = injection.sites(main.model, "decoder", "self_attention")
    keys, values = blocks["prefix.decoder.key"], blocks["prefix.decoder.value"]
    bindings: dict[injection.Site, injection.Binding] = {
        site: injection.ExtraKeyValues.from_blocks(keys[:, i], values[:, i], main.shape.num_heads)
        for i, site in enumerate(sites)
    }
    for batch in settings.batch or (2,):
        for what, use in _uses(settings, _inputs(settings, batch)).items():
            ours = functools.partial(_within, bindings, functools.partial(use, main.model))
            yield compare(
                f"prefixes in the decoder, {what}, batch {batch}",
                "peft PrefixTuning",
                {"hart": ours, "peft": functools.partial(use, tuned)},
                settings,
                target=("≤", 1.0),
            )


def _within(bindings: dict[injection.Site, injection.Binding], use: Callable[[], Any]) -> None:
    with injection.binding(bindings):
        use()


def _inputs(settings: Settings, batch: int) -> dict[str, Tensor]:
    ids = torch.randint(3, 1000, (batch, settings.scaled(384)), device=settings.device)
    labels = torch.randint(3, 1000, (batch, settings.scaled(LABELS)), device=settings.device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "decoder_input_ids": labels}


def _uses(settings: Settings, inputs: dict[str, Tensor]) -> dict[str, Callable[[Any], Any]]:
    """Name → use of a model: its forward pass, and its greedy generation."""

    def forward(model: Any) -> None:
        model(**inputs, use_cache=False)

    def generate(model: Any) -> None:
        given = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        model.generate(**given, max_new_tokens=settings.scaled(NEW_TOKENS))

    return {"forward": forward, "generate": generate}
