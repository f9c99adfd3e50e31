"""Speed of decoder-only main models: generation with a LoRA per row, against demonstrations in context; adapting.

The main model is a Llama with the sizes of one stack of a T5 shape, and the hypernetwork is a T5 of that shape, which
generates LoRA, the kind that adapter servers support.
"""

import functools
import math
from collections.abc import Iterator
from statistics import median
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hart.benchmarks import Figure, Settings, compare, measure, summary
from hart.benchmarks.answering import ANSWER, QUERY
from hart.benchmarks.kinds import RANK, TASKS
from hart.benchmarks.measuring import Run, ratios
from hart.benchmarks.models import Numbers, hypernetwork, random_adaptation, random_queries, t5_config
from hart.errors import HartError
from hart.model.decoder_only import DecoderOnly
from hart.model.main_model import MainModel
from hart.peft.base import Blocks

LORA = {"kind": "lora", "rank": RANK, "alpha": RANK, "targets": ["q", "v"]}


@torch.no_grad()
def decoder_only(settings: Settings) -> Iterator[Figure]:
    """The figures for a Llama, by default of the size of T5-Base's decoder.

    They are generation for 16 tasks in one batch against PEFT's mixed batches, queries per second against
    demonstrations in every input, the hypernetwork's pass, and a memory in front of the tokens.
    """
    shape = settings.shape or "t5-base"
    stock = _llama(shape, settings)
    main = _main_model(stock)
    yield from _per_row(settings, main, stock)
    yield from _against_in_context(settings, main, shape)
    yield from _memory_in_front(settings, main)


def _per_row(settings: Settings, main: MainModel, stock: LlamaForCausalLM) -> Iterator[Figure]:
    """Generation with a LoRA per row, against PEFT with the same matrices as 16 adapters; the logits agree."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise HartError("decoder-only: needs the package peft (pip install peft)") from None
    query, answer = settings.scaled(QUERY), settings.scaled(ANSWER)
    adaptation = random_adaptation(main, TASKS, 0, peft=[LORA], max_target_length=answer)
    lora = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    names = [f"task{row}" for row in range(TASKS)]
    loaded: Any = get_peft_model(stock, lora, adapter_name=names[0])
    for name in names[1:]:
        loaded.add_adapter(name, lora)
    for row, name in enumerate(names):
        _load(loaded, name, adaptation.blocks, row)
    loaded.to(settings.device, settings.torch_dtype).eval()
    queries = random_queries(TASKS, query)
    ids = torch.tensor(queries, device=settings.device)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with main.binding(adaptation.blocks, adaptation.kinds, batch=TASKS):
        logits = main.model(**given, use_cache=False).logits
    torch.testing.assert_close(
        logits, loaded(**given, use_cache=False, adapter_names=names).logits, rtol=0.01, atol=0.01
    )
    yield compare(
        f"LoRA per row of a Llama, generate, {TASKS} tasks in a batch",
        "peft, adapters mixed in a batch",
        {
            "generated": functools.partial(main.generate, queries, adaptation, min_new_tokens=answer),
            "peft": functools.partial(
                loaded.generate,
                **given,
                adapter_names=names,
                max_new_tokens=answer,
                min_new_tokens=answer,
                do_sample=False,
                pad_token_id=0,
            ),
        },
        settings,
        target=("≥", 1.0),
        notes={"query_tokens": query, "answer_tokens": answer},
    )


def _against_in_context(settings: Settings, main: MainModel, shape: str) -> Iterator[Figure]:
    config = t5_config(shape)
    network = hypernetwork(config, peft=[LORA], main=main.shape, device=settings.device, dtype=settings.torch_dtype)
    query, answer = settings.scaled(QUERY), settings.scaled(ANSWER)
    adaptation = random_adaptation(main, 1, 0, peft=[LORA], max_target_length=answer)
    task = torch.randint(1000, (1, settings.tokens - query), device=settings.device)
    for batch in settings.batch or (8,):
        short, long = random_queries(batch, query), random_queries(batch, settings.tokens)
        options: dict[str, Any] = {"max_new_tokens": answer, "min_new_tokens": answer}
        variants: dict[str, Run] = {
            "in context": functools.partial(main.generate, long, **options),
            "adapted": functools.partial(main.generate, short, adaptation, **options),
            "adapting": functools.partial(network, task, torch.ones_like(task)),
        }
        times, counts = measure(variants, settings)
        medians = {name: median(values) for name, values in times.items()}
        saved = (medians["in context"] - medians["adapted"]) / batch
        yield Figure(
            f"queries per second of a Llama, adapted, batch {batch}",
            f"in context, {settings.tokens} tokens",
            ratios(times, "in context", "adapted"),
            f"{counts['in context'].flops / counts['adapted'].flops:.1f}× by products",
            ("≥", 4.0),
            variants=summary(times, counts),
            notes={
                "query_tokens": query,
                "answer_tokens": answer,
                "queries_per_second": batch / medians["adapted"],
                "queries_per_second_in_context": batch / medians["in context"],
                "break_even_queries": math.ceil(medians["adapting"] / saved) if saved > 0 else None,
            },
        )
        yield Figure(
            f"adapting a Llama, in queries in context of batch {batch}",
            "one of them",
            [batch * each for each in ratios(times, "adapting", "in context")],
            f"{batch * counts['adapting'].flops / counts['in context'].flops:.2f}× by products",
            variants=summary(times, counts),
        )


def _memory_in_front(settings: Settings, main: MainModel) -> Iterator[Figure]:
    """The time that a memory in front adds to generation, with its keys and values computed at each call or kept."""
    query, answer = settings.scaled(QUERY), settings.scaled(ANSWER)
    tokens = settings.tokens - query
    plain = random_adaptation(main, 1, 0, peft=[LORA], max_target_length=answer)
    memory = random_adaptation(main, 1, tokens, peft=[LORA], max_target_length=answer)
    options: dict[str, Any] = {"max_new_tokens": answer, "min_new_tokens": answer}
    for batch in settings.batch or (8,):
        queries = random_queries(batch, query)
        variants: dict[str, Run] = {
            "without": functools.partial(main.generate, queries, plain, **options),
            "memory": functools.partial(main.generate, queries, memory, **options),
            "kept": functools.partial(main.generate, queries, main.keep_memory(memory), **options),
        }
        times, counts = measure(variants, settings)
        for name, what in (("memory", "in front"), ("kept", "in front, keys and values kept")):
            yield Figure(
                f"a memory of {tokens} tokens {what}, a Llama's generate, batch {batch}",
                "the same LoRA alone",
                ratios(times, name, "without"),
                f"{counts[name].flops / counts['without'].flops:.2f}× by products",
                variants=summary(times, counts),
                notes={"query_tokens": query, "answer_tokens": answer},
            )


def _llama(shape: str, settings: Settings) -> LlamaForCausalLM:
    """A stock Llama in eval mode, with half as many key and value heads as query heads."""
    t5 = t5_config(shape)
    config = LlamaConfig(
        vocab_size=t5.vocab_size,
        hidden_size=t5.d_model,
        intermediate_size=t5.d_ff,
        num_hidden_layers=t5.num_layers,
        num_attention_heads=t5.num_heads,
        num_key_value_heads=max(1, t5.num_heads // 2),
        head_dim=t5.d_kv,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        tie_word_embeddings=True,
    )
    made: Any = LlamaForCausalLM(config)
    return made.to(settings.device, settings.torch_dtype).eval().requires_grad_(False)


def _main_model(stock: LlamaForCausalLM) -> MainModel:
    """A main model with the same weights in memory."""
    twin: Any = LlamaForCausalLM(stock.config)
    twin.to(stock.device, stock.dtype).eval()
    twin.load_state_dict(stock.state_dict(), assign=True)
    twin.tie_weights()
    main = DecoderOnly(twin, Numbers(), name="random")  # type: ignore[arg-type]
    main.freeze()
    return main


def _load(loaded: Any, name: str, blocks: Blocks, row: int) -> None:
    """Copy row `row` of generated LoRA into PEFT's adapter of that name."""
    for index, layer in enumerate(loaded.base_model.model.model.layers):
        for target in "qv":
            module = getattr(layer.self_attn, f"{target}_proj")
            module.lora_A[name].weight.copy_(blocks[f"lora.decoder.{target}.a"][row, index])
            module.lora_B[name].weight.copy_(blocks[f"lora.decoder.{target}.b"][row, index].T)
