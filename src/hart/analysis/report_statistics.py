"""How sure a difference between two systems is: paired by task and seed, both of which are samples.

Scores of both systems are s[seed, task], on the same tasks and with the same seeds, so what a task is like and what a
seed did to the data cancels out of d = s − s'. All seeds answer the same tasks: d is crossed, and its entries are not
independent. One that treats them as seeds × tasks independent numbers is too sure. Two questions are answered apart:

- *Would other seeds say the same, on these tasks?* One number for each seed, the mean of d over tasks; their mean has
  Student's t interval with one degree of freedom less than seeds, and the p-value of the paired t test.
- *Would other seeds and other tasks say the same?* Seeds, tasks and what is left of d each add to the variance of the
  mean: V = V(seeds) + V(tasks) − V(rest), as the first two both hold the third, and at least the larger of these two.
  The interval and the p-value are Student's with this V and Satterthwaite's degrees of freedom. (Clark's quasi-F for
  subjects × items. With one seed, tasks alone count: it is the paired t test over tasks.)

In simulations with 8 to 119 tasks the 95 % interval over both held the true difference in 92 to 99 % of the cases with
three seeds or five, whatever of d was the seeds' and the tasks' part, and in 86 to 98 % with two. No p-value is
corrected for the number of rows that are compared.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

CONFIDENCE = 0.95
ALIKE = 1e-9
"""Points by which numbers that are the same may differ in rounding."""

Scores = NDArray[np.float64]
Interval = tuple[float, float]


@dataclass(frozen=True)
class Difference:
    """Of two systems, in points; what too few seeds or tasks, or differences without variance, cannot say is None.

    Attributes:
        mean: weighted over tasks, as the score itself.
        over_seeds: Student's t interval of the means of seeds.
        seeds_p: of the paired t test over seeds.
        over_both: interval over seeds and tasks.
        both_p: of the test over seeds and tasks.
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
        scores: `[seeds, tasks]`.
        others: of the system that it is compared with, the same seeds and tasks.
        weights: `[tasks]`, of each task in the score: its instances, or 1 of each column of P3.
    """
    differences, weights = scores - others, weights / weights.sum()
    seeds, tasks = differences.shape
    by_seed = differences @ weights
    mean, too_few = float(by_seed.mean()), (None, None)
    over_seeds = students(mean, by_seed.var(ddof=1) / seeds, seeds - 1) if seeds > 1 else too_few
    over_both = students(mean, *crossed_variance(differences, weights)) if tasks > 1 else too_few
    return Difference(mean, seeds, tasks, *over_seeds, *over_both)


def students(mean: float, variance: float, freedom: float) -> tuple[Interval | None, float | None]:
    """Student's interval and two-sided p-value of a mean with this variance; None where it has none."""
    error = variance**0.5
    if error < ALIKE:
        return None, None
    half = error * float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom))
    return (mean - half, mean + half), 2 * float(stats.t.sf(abs(mean) / error, freedom))


def crossed_variance(differences: Scores, weights: Scores) -> tuple[float, float]:
    """Variance of the weighted mean of `[seeds, tasks]`, both drawn at random, and its degrees of freedom.

    Args:
        weights: `[tasks]`, their sum 1. Equal ones give the mean squares of the two-way analysis of variance.
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
    if whole <= max(of_seeds, of_tasks):  # one of the two adds nothing
        return (of_seeds, seeds - 1) if of_seeds > of_tasks else (of_tasks, tasks - 1)
    parts = of_seeds**2 / (seeds - 1) + of_tasks**2 / (tasks - 1) + of_rest**2 / ((seeds - 1) * (tasks - 1))
    return whole, whole**2 / parts


def mean_and_deviation(values: list[float]) -> tuple[float, float | None]:
    """Mean, and standard deviation over seeds (of a sample: n − 1); None of one value."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None
