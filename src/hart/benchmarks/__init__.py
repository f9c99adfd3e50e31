"""The benchmarks of `hart bench`: measured speed ratios with their targets and limits (docs/performance.md).

Each benchmark is a function of `Settings` that yields `Figure`s, listed in `benchmarks`. Weights are random, since the
time of a pass does not depend on them; benchmarks that need text (evaluation, data) use the bundled model and real
tasks.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Literal

import torch

from hart.benchmarks.measuring import Counter, Run, alternate, count, ratios

MIB = 1024**2


@dataclass(frozen=True)
class Settings:
    """Settings of the benchmarks.

    Fields:
        shape: one of `hart.benchmarks.models.SHAPES`; None: the benchmark's own.
        batch: batch sizes; None: the benchmark's own.
        tokens: number of tokens of the demonstrations; queries and answers are proportional to it (`scaled`).
        repeats: number of timed repeats of each pair, after a warm-up.
        device, dtype: device and type of weights.
        data_dir: a clone of Super-NaturalInstructions for the benchmarks that read text; None: the bundled tasks.
        plots: folder for plots.
    """

    shape: str | None = None
    batch: tuple[int, ...] | None = None
    tokens: int = 1024
    repeats: int = 5
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"
    data_dir: Path | None = None
    plots: Path | None = None

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    def scaled(self, tokens: int) -> int:
        """A length given for demonstrations of 1024 tokens, scaled to the number of tokens in these settings."""
        return max(2, tokens * self.tokens // 1024)

    def to_dict(self) -> dict[str, Any]:
        return {key: str(value) if isinstance(value, Path) else value for key, value in asdict(self).items()}


@dataclass(frozen=True)
class Figure:
    """One measured ratio: a row of the table.

    Fields:
        name: name of the measurement; in a file, a figure replaces an earlier one of the same name.
        against: the alternative that it is compared with.
        repeats: the ratio in each repeat, or a single value.
        unit: unit of the value.
        target: target of the value, e.g. `("≤", 1.05)`; None: it has no target.
        limit: theoretical bound of the value, in words with a number.
        variants: timed variant → its median seconds, counted GFLOP and peak memory.
        notes: further numbers.
    """

    name: str
    against: str
    repeats: Sequence[float]
    limit: str
    target: tuple[Literal["≤", "≥"], float] | None = None
    unit: Literal["×", "%", ""] = "×"
    variants: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def value(self) -> float:
        """Median of the repeats."""
        return median(self.repeats)

    @property
    def quartiles(self) -> tuple[float, float] | None:
        """Lower and upper quartile of the repeats; None for fewer than four repeats."""
        if len(self.repeats) < 4:
            return None
        lower, _, upper = quantiles(self.repeats, n=4, method="inclusive")
        return lower, upper

    @property
    def met(self) -> bool | None:
        if self.target is None:
            return None
        sign, bound = self.target
        return self.value <= bound if sign == "≤" else self.value >= bound

    def to_dict(self) -> dict[str, Any]:
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        return {"value": self.value, "quartiles": self.quartiles, "met": self.met, **own}


Benchmark = Callable[[Settings], Iterator[Figure]]


def summary(
    times: Mapping[str, list[float]], counts: Mapping[str, Counter] | None = None
) -> dict[str, dict[str, float]]:
    """`Figure.variants` from the seconds of each repeat and from counts."""
    found: dict[str, dict[str, float]] = {}
    for name, values in times.items():
        found[name] = {"seconds": median(values)}
        if counts and name in counts:
            found[name] |= {"gflop": counts[name].flops / 1e9, "peak_mib": counts[name].peak / MIB}
    return found


def measure(variants: Mapping[str, Run], settings: Settings) -> tuple[dict[str, list[float]], dict[str, Counter]]:
    """The seconds of each variant in each repeat, and the counts of a warm-up pass before them."""
    counts = {name: count(run) for name, run in variants.items()}
    return alternate(variants, settings.repeats, settings.device, warm_up=False), counts


def compare(
    name: str,
    against: str,
    variants: Mapping[str, Run],
    settings: Settings,
    *,
    target: tuple[Literal["≤", "≥"], float],
    limit: str = "",
    notes: Mapping[str, Any] | None = None,
) -> Figure:
    """The figure of two variants, ours first: the ratio of their times, or its inverse for a target with `≥`.

    The default `limit` is the ratio of their FLOPs.
    """
    times, counts = measure(variants, settings)
    ours, other = variants
    over, under = (ours, other) if target[0] == "≤" else (other, ours)
    return Figure(
        name,
        against,
        ratios(times, over, under),
        limit or f"{counts[over].flops / counts[under].flops:.3f}× by products",
        target,
        variants=summary(times, counts),
        notes=notes or {},
    )


def benchmarks() -> dict[str, Benchmark]:
    """Every benchmark by the name on the command line, in the order of the table."""
    # Imported here, because the files import the names above.
    from hart.benchmarks import answering, decoder_only, generating, growth, kinds, prefixes, text, training

    return {
        "hypernetwork": generating.hypernetwork_pass,
        "steps": generating.cached_steps,
        "training": training.training_step,
        "prefix": prefixes.against_stock,
        "prefix-peft": prefixes.against_peft,
        "in-context": answering.against_in_context,
        "mixed-tasks": answering.mixed_tasks,
        "half": answering.in_half_precision,
        "lora": kinds.lora_per_row,
        "decoder-only": decoder_only.decoder_only,
        "evaluation": text.evaluation,
        "data": text.data_pipeline,
        "growth": growth.growth,
    }
