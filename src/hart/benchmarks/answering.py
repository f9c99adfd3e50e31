"""Speed of answering with finished adaptations: against demonstrations in every input, and with tasks in one batch."""

import functools
import math
from collections.abc import Iterator
from statistics import median

import torch

from hart.benchmarks import MIB, Figure, Settings, compare, measure, summary
from hart.benchmarks.measuring import Run, ratios
from hart.benchmarks.models import hypernetwork, main_model, random_adaptation, random_queries, stock_model, t5_config
from hart.model.adaptation import Adaptation
from hart.model.main_model import MainModel

QUERY, ANSWER = 96, 12
"""Tokens of query and answer; Super-NaturalInstructions' test tasks have 95 and 11 on average (1.35 tokens a word)."""


@torch.no_grad()
def against_in_context(settings: Settings) -> Iterator[Figure]:
    """Queries per second with a finished adaptation, and with demonstrations and query (1024 tokens) in every input.

    The hypernetwork reads the same demonstrations. All queries are of one task. Adapting is timed, too, for the number
    of queries after which it takes less time in total.
    """
    config = t5_config(settings.shape or "t5-large")
    main = main_model(stock_model(config, settings.device, settings.torch_dtype))
    network = hypernetwork(config, device=settings.device, dtype=settings.torch_dtype)
    query, answer = settings.scaled(QUERY), settings.scaled(ANSWER)
    demonstrations = settings.tokens - query
    adaptation = random_adaptation(main, 1, demonstrations, max_target_length=answer)
    kept = main.keep_memory(adaptation)
    task = torch.randint(1000, (1, demonstrations), device=settings.device)
    for batch in settings.batch or (8,):
        short, long = random_queries(batch, query), random_queries(batch, settings.tokens)
        variants: dict[str, Run] = {
            "in context": functools.partial(main.generate, long, max_new_tokens=answer),
            "adapted": functools.partial(main.generate, short, adaptation),
            "adapted, kept": functools.partial(main.generate, short, kept),
            "adapting": functools.partial(network, task, torch.ones_like(task)),
        }
        times, counts = measure(variants, settings)
        medians = {name: median(values) for name, values in times.items()}
        for name, least in (("adapted", 4.0), ("adapted, kept", 6.0)):
            saved = (medians["in context"] - medians[name]) / batch
            yield Figure(
                f"queries per second, {name}, batch {batch}",
                f"in context, {settings.tokens} tokens",
                ratios(times, "in context", name),
                f"{counts['in context'].flops / counts[name].flops:.1f}× by products",
                ("≥", least),
                variants=summary(times, counts),
                notes={
                    "query_tokens": query,
                    "answer_tokens": answer,
                    "queries_per_second": batch / medians[name],
                    "queries_per_second_in_context": batch / medians["in context"],
                    "break_even_queries": math.ceil(medians["adapting"] / saved) if saved > 0 else None,
                    "kept_mib": sum(part.numel() * part.element_size() for part in kept.kept or ()) / MIB,
                },
            )


@torch.no_grad()
def in_half_precision(settings: Settings) -> Iterator[Figure]:
    """Adapting and answering with weights in bfloat16 against float32; `settings.dtype` is ignored."""
    config = t5_config(settings.shape or "t5-large")
    task = torch.randint(1000, (1, settings.tokens), device=settings.device)
    query, answer = settings.scaled(QUERY), settings.scaled(ANSWER)
    adapting: dict[str, Run] = {}
    mains: dict[str, tuple[MainModel, Adaptation]] = {}
    for name in ("bfloat16", "float32"):
        dtype = getattr(torch, name)
        network = hypernetwork(config, device=settings.device, dtype=dtype)
        adapting[name] = functools.partial(network, task, torch.ones_like(task))
        main = main_model(stock_model(config, settings.device, dtype))
        adaptation = random_adaptation(main, 1, settings.tokens - query, max_target_length=answer)
        mains[name] = main, main.keep_memory(adaptation)
    yield _halved("adapting, batch 1", adapting, settings)
    for batch in settings.batch or (1, 8):
        queries = random_queries(batch, query)
        runs: dict[str, Run] = {
            name: functools.partial(main.generate, queries, kept) for name, (main, kept) in mains.items()
        }
        yield _halved(f"answering, batch {batch}", runs, settings)


def _halved(what: str, runs: dict[str, Run], settings: Settings) -> Figure:
    times, counts = measure(runs, settings)
    return Figure(
        f"{what}, in bfloat16",
        "in float32",
        ratios(times, "float32", "bfloat16"),
        "2× in bytes of weights",
        variants=summary(times, counts),
    )


@torch.no_grad()
def mixed_tasks(settings: Settings) -> Iterator[Figure]:
    """32 queries, two for each of 16 tasks, in one batch against task after task, with precomputed adaptations."""
    config = t5_config(settings.shape or "t5-large")
    main = main_model(stock_model(config, settings.device, settings.torch_dtype))
    tasks, each = 16, 2
    answer = settings.scaled(ANSWER)
    # The average length of a task of Super-NaturalInstructions (260 tokens); 16 memories of 1024 would be atypical.
    memory = settings.scaled(256)
    together = main.keep_memory(random_adaptation(main, tasks, memory, max_target_length=answer))
    apart = [together[row] for row in range(tasks)]
    queries = random_queries(tasks * each, settings.scaled(QUERY))

    def task_after_task() -> None:
        for row, adaptation in enumerate(apart):
            main.generate(queries[row * each : (row + 1) * each], adaptation)

    weights = sum(p.numel() * p.element_size() for p in main.model.decoder.parameters())
    yield compare(
        f"{tasks * each} queries of {tasks} tasks in one batch",
        "task after task",
        {"one batch": functools.partial(main.generate, queries, together), "task after task": task_after_task},
        settings,
        target=("≥", 2.0),
        limit=f"{tasks}× in decoding, whose {answer} steps read {weights / 1e9:.2f} GB of weights each; equal products",
        notes={"memory_tokens": memory, "query_tokens": settings.scaled(QUERY), "answer_tokens": answer},
    )
