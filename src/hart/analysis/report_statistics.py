"""How sure a difference between two systems is: paired by task and seed, both of which are samples.

Scores of both systems are s[seed, task], on the same tasks and with the same seeds, so what a task is like and what a
seed did to the data cancels out of d = s − s'. All seeds answer the same tasks: d is crossed, and its entries are not
independent. One that treats them as seeds × tasks independent numbers is too sure. Two questions are answered apart:

- *Would other seeds say the same, on these tasks?* One number for each seed, the mean of d over tasks; their mean has
  Student's t interval with one degree of freedom less than seeds, and the p-value of the paired t test.
- *Would other seeds and other tasks say the same?* The crossed bootstrap: seeds and tasks are drawn with replacement,
  independently of each other, and the mean of d over the drawn rows and columns is taken; the interval holds its
  middle 95 %. With few seeds it is too narrow (seeds drawn from two are often the same one): read it beside the
  interval over seeds. The p-value beside it is that of the permutation test over tasks: under the hypothesis that the
  two systems are alike, each task's scores (the mean over seeds, a task's seeds stay together) may be swapped.

No p-value is corrected for the number of rows that are compared.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 10_000

Scores = NDArray[np.float64]
Interval = tuple[float, float]


@dataclass(frozen=True)
class Difference:
    """Of two systems, in points; what too few seeds or tasks cannot say is None.

    Attributes:
        mean: weighted over tasks, as the score itself.
        over_seeds: Student's t interval of the means of seeds.
        seeds_p: of the paired t test over seeds.
        over_both: interval of the crossed bootstrap over seeds and tasks.
        tasks_p: of the permutation test over tasks.
    """

    mean: float
    seeds: int
    tasks: int
    over_seeds: Interval | None
    seeds_p: float | None
    over_both: Interval | None
    tasks_p: float | None


def paired(scores: Scores, others: Scores, weights: Scores) -> Difference:
    """The difference of two systems.

    Args:
        scores: `[seeds, tasks]`.
        others: of the system that it is compared with, the same seeds and tasks.
        weights: `[tasks]`, of each task in the score: its instances, or 1 of each column of P3.
    """
    seeds, tasks = scores.shape
    weights = weights / weights.sum()
    by_seed = (scores - others) @ weights
    over_seeds, seeds_p = None, None
    if seeds > 1 and np.ptp(by_seed) > 0:
        test = stats.ttest_rel(scores @ weights, others @ weights)
        low, high = test.confidence_interval(CONFIDENCE)
        over_seeds, seeds_p = (float(low), float(high)), float(test.pvalue)
    over_both, tasks_p = None, None
    if tasks > 1:
        over_both = crossed_bootstrap(scores - others, weights)
        tasks_p = permutation_p(scores.mean(0), others.mean(0), weights)
    return Difference(float(by_seed.mean()), seeds, tasks, over_seeds, seeds_p, over_both, tasks_p)


def crossed_bootstrap(differences: Scores, weights: Scores) -> Interval:
    """The middle 95 % of the mean of `[seeds, tasks]` over seeds and tasks drawn with replacement."""
    seeds, tasks = differences.shape
    random = np.random.default_rng(0)
    drawn_seeds = random.multinomial(seeds, np.full(seeds, 1 / seeds), RESAMPLES) / seeds
    drawn_tasks = random.multinomial(tasks, np.full(tasks, 1 / tasks), RESAMPLES) * weights
    means = ((drawn_seeds @ differences) * drawn_tasks).sum(1) / drawn_tasks.sum(1)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def permutation_p(scores: Scores, others: Scores, weights: Scores) -> float:
    """Two-sided p-value of swapping the systems' scores in each of `[tasks]`; few swaps are tried all."""

    def statistic(one: Scores, other: Scores, axis: int) -> Scores:
        return np.asarray(((one - other) * weights).sum(axis=axis))

    test = stats.permutation_test(
        (scores, others), statistic, permutation_type="samples", n_resamples=RESAMPLES - 1, vectorized=True, rng=0
    )
    return float(test.pvalue)


def mean_and_deviation(values: list[float]) -> tuple[float, float | None]:
    """Mean, and standard deviation over seeds (of a sample: n − 1); None of one value."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None
