"""Confidence intervals and p-values of a difference between two systems, paired by task and seed (both are samples).

Scores of both systems are s[seed, task], on the same tasks and with the same seeds, so effects of a task and of a
seed on the data cancel out of the difference d = s − s'. All seeds answer the same tasks: d is crossed, and its entries
are not independent. A test that treats them as seeds × tasks independent numbers is overconfident. There are two
separate questions:

- *Would other seeds give the same result on these tasks?* Each seed gives one number, the mean of d over tasks. The
  mean of these numbers has Student's t interval with one degree of freedom less than seeds, and the p-value of the
  paired t test.
- *Would other seeds and other tasks give the same result?* The variance of the mean has a part of the seeds, one of the
  tasks and a residual: V = V(seeds) + V(tasks) − V(rest), since each of the first two includes the residual; V is at
  least the larger of the two. The interval and the p-value are Student's with this V and Satterthwaite's degrees of
  freedom. (This is Clark's quasi-F for subjects × items. With one seed only the tasks count: it is the paired t test
  over tasks.)

In simulations with 8 to 119 tasks the 95 % interval over both contained the true difference in 92 to 99 % of the cases
with three or five seeds, whatever the parts of seeds and tasks in d, and in 86 to 98 % with two seeds. P-values are not
corrected for the number of rows that are compared.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

CONFIDENCE = 0.95
ALIKE = 1e-9
"""The largest rounding error, in points, between numbers that count as equal."""

Scores = NDArray[np.float64]
Interval = tuple[float, float]


@dataclass(frozen=True)
class Difference:
    """The difference of two systems, in points.

    Intervals and p-values are None if there are too few seeds or tasks, or if the differences have no variance.

    Attributes:
        mean: mean difference, weighted over tasks like the score itself.
        seeds, tasks: numbers of seeds and tasks.
        over_seeds: Student's t interval of the means of seeds.
        seeds_p: p-value of the paired t test over seeds.
        over_both: interval over seeds and tasks.
        both_p: p-value of the test over seeds and tasks.
    """

    mean: float
    seeds: int
    tasks: int
    over_seeds: Interval | None
    seeds_p: float | None
    over_both: Interval | None
    both_p: float | None


def paired(scores: Scores, others: Scores, weights: Scores) -> Difference:
    """The difference of two systems.

    Args:
        scores: scores of the first system, `[seeds, tasks]`.
        others: scores of the system that it is compared with, for the same seeds and tasks.
        weights: weight of each task in the score, `[tasks]`: its number of instances, or 1 for each column of P3.
    """
    differences, weights = scores - others, weights / weights.sum()
    seeds, tasks = differences.shape
    by_seed = differences @ weights
    mean, too_few = float(by_seed.mean()), (None, None)
    over_seeds = students(mean, by_seed.var(ddof=1) / seeds, seeds - 1) if seeds > 1 else too_few
    over_both = students(mean, *crossed_variance(differences, weights)) if tasks > 1 else too_few
    return Difference(mean, seeds, tasks, *over_seeds, *over_both)


def students(mean: float, variance: float, freedom: float) -> tuple[Interval | None, float | None]:
    """Student's interval and two-sided p-value of a mean with this variance; both None if the variance is 0."""
    error = variance**0.5
    if error < ALIKE:
        return None, None
    half = error * float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom))
    return (mean - half, mean + half), 2 * float(stats.t.sf(abs(mean) / error, freedom))


def crossed_variance(differences: Scores, weights: Scores) -> tuple[float, float]:
    """Variance of the weighted mean of crossed differences, with seeds and tasks random, and its degrees of freedom.

    Args:
        differences: `[seeds, tasks]`.
        weights: `[tasks]`, with the sum 1. Equal weights give the mean squares of the two-way analysis of variance.
    """
    seeds, tasks = differences.shape
    by_seed, by_task = differences @ weights, differences.mean(0)
    mean = by_seed.mean()
    squares = tasks / (tasks - 1) * weights**2
    of_tasks = float(squares @ (by_task - mean) ** 2)
    if seeds == 1:
        return of_tasks, tasks - 1
    of_seeds = float(by_seed.var(ddof=1) / seeds)
    rest = differences - by_task - by_seed[:, None] + mean
    of_rest = float(squares @ (rest**2).sum(0)) / (seeds * (seeds - 1))
    whole = of_seeds + of_tasks - of_rest
    if whole <= max(of_seeds, of_tasks):  # the smaller of the two adds nothing beyond the residual
        return (of_seeds, seeds - 1) if of_seeds > of_tasks else (of_tasks, tasks - 1)
    parts = of_seeds**2 / (seeds - 1) + of_tasks**2 / (tasks - 1) + of_rest**2 / ((seeds - 1) * (tasks - 1))
    return whole, whole**2 / parts


def mean_and_deviation(values: list[float]) -> tuple[float, float | None]:
    """Mean and standard deviation of a sample (n − 1); the deviation of a single value is None."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None
