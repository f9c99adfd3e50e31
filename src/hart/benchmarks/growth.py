"""Growth of the cost: seconds and FLOPs against layers, tokens of demonstrations, prefix length, batch and tasks.

Exponents are fitted to the logarithms by least squares. At small sizes, constant costs lower the exponent; the plots
show all sizes.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from statistics import linear_regression, median

import torch

from hart.benchmarks import Figure, Settings
from hart.benchmarks.measuring import Run, alternate, count
from hart.benchmarks.models import (
    hypernetwork,
    main_model,
    random_adaptation,
    random_queries,
    stock_model,
    t5_config,
)
from hart.evaluation.plots import plot_growth

QUERIES = 16


@torch.no_grad()
def growth(settings: Settings) -> Iterator[Figure]:
    """The pass of HART's hypernetwork along each axis, and answering 16 queries of an increasing number of tasks."""
    found: dict[str, dict[str, list[float]]] = {}
    for axis, (sizes, build) in _axes(settings).items():
        runs = {str(size): build(size) for size in sizes}
        flops = [float(count(run).flops) for run in runs.values()]
        times = alternate(runs, settings.repeats, settings.device, warm_up=False)
        seconds = [median(times[name]) for name in runs]
        fitted = [exponent(sizes, seconds), exponent(sizes, flops)]
        found[axis] = {"sizes": list(map(float, sizes)), "seconds": seconds, "flops": flops, "exponents": fitted}
        yield Figure(
            f"growth with {axis}",
            "exponent of the seconds",
            fitted[:1],
            f"{fitted[1]:.2f} is the exponent of the FLOPs",
            unit="",
            notes=found[axis],
        )
    if settings.plots is not None:
        plot_growth(found, settings.plots / "growth.svg")


def _axes(settings: Settings) -> dict[str, tuple[Sequence[int], Callable[[int], Run]]]:
    """Axis → its sizes, and the function that makes the run of one size."""
    shape = settings.shape or "t5-small"
    device, dtype, tokens = settings.device, settings.torch_dtype, settings.tokens

    def passing(*, layers: int = 8, tokens: int = tokens // 4, length: int = 32, batch: int = 1) -> Run:
        config = t5_config(shape, vocabulary=1000, num_layers=layers)
        network = hypernetwork(config, peft=[{"kind": "prefix", "length": length}], device=device, dtype=dtype)
        ids = torch.randint(1000, (batch, tokens), device=device)
        return lambda: network(ids, torch.ones_like(ids))

    def answering(tasks: int) -> Run:
        adaptation = random_adaptation(main, tasks, tokens // 4, max_target_length=settings.scaled(12))
        queries = random_queries(QUERIES, settings.scaled(96))
        return lambda: main.generate(queries, adaptation)

    main = main_model(stock_model(t5_config(shape), device, dtype))
    doubling = [2**power for power in range(5)]
    return {
        "layers": ([4 * each for each in doubling[:4]], lambda size: passing(layers=size)),
        "demonstrations' tokens": ([tokens // 8 * each for each in doubling], lambda size: passing(tokens=size)),
        "prefix length": ([8 * each for each in doubling], lambda size: passing(length=size)),
        "batch": (doubling, lambda size: passing(batch=size)),
        "tasks": (doubling, answering),
    }


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The exponent k of the power law c · size^k, fitted by least squares in logarithms."""
    return linear_regression([*map(math.log, sizes)], [*map(math.log, values)]).slope
