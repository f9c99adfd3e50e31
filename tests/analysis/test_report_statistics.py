"""Intervals and p-values, beside the formulas and other ways to compute them."""

import itertools

import numpy as np
import pytest
from scipy import stats

from hart.analysis.report_statistics import crossed_bootstrap, mean_and_deviation, paired, permutation_p


def crossed(seeds: int, tasks: int, *, by_seed: float, by_task: float, noise: float = 1.0) -> np.ndarray:
    random = np.random.default_rng(0)
    effects = random.normal(0, by_seed, (seeds, 1)) + random.normal(0, by_task, tasks)
    return effects + random.normal(0, noise, (seeds, tasks))


def test_the_interval_over_seeds_is_students() -> None:
    one, two = crossed(4, 9, by_seed=2, by_task=5) + 1, crossed(4, 9, by_seed=1, by_task=3)
    weights = np.arange(1.0, 10.0)
    found = paired(one, two, weights)
    means = ((one - two) * weights).sum(1) / weights.sum()
    half = stats.t.ppf(0.975, 3) * means.std(ddof=1) / 2
    assert found.mean == pytest.approx(means.mean())
    assert found.over_seeds == pytest.approx((means.mean() - half, means.mean() + half))
    assert found.seeds_p == pytest.approx(stats.ttest_1samp(means, 0).pvalue)
    assert (found.seeds, found.tasks) == (4, 9)


def test_seeds_that_agree_on_tasks_are_not_more_tasks() -> None:
    """What treating all pairs as independent would get wrong: the same differences in every seed tell nothing new."""
    once = crossed(1, 30, by_seed=0, by_task=5)
    again = np.repeat(once, 10, axis=0)
    weights = np.full(30, 1 / 30)
    assert crossed_bootstrap(again, weights) == pytest.approx(crossed_bootstrap(once, weights), abs=0.15)
    naive = stats.sem(again.ravel()) * 2 * 1.96
    low, high = crossed_bootstrap(again, weights)
    assert high - low > 2.5 * naive


def test_the_bootstrap_of_one_seed_is_scipys() -> None:
    differences = crossed(1, 40, by_seed=0, by_task=3)
    expected = stats.bootstrap((differences[0],), np.mean, method="percentile", rng=1, n_resamples=9999)
    found = crossed_bootstrap(differences, np.full(40, 1 / 40))
    assert found == pytest.approx(tuple(expected.confidence_interval), abs=0.1)


def test_the_bootstrap_has_the_spread_of_both_ways_of_drawing() -> None:
    """Variance over seeds and over tasks add up where neither depends on the other."""
    seeds, tasks = 30, 40
    differences = crossed(seeds, tasks, by_seed=2, by_task=3, noise=0)
    expected = differences.mean(1).var() / seeds + differences.mean(0).var() / tasks
    low, high = crossed_bootstrap(differences, np.full(tasks, 1 / tasks))
    assert (high - low) / (2 * 1.96) == pytest.approx(expected**0.5, rel=0.05)


def test_the_permutation_test_tries_all_swaps_of_few_tasks() -> None:
    one, two = np.array([3.0, 5.0, 9.0, 2.0]), np.array([1.0, 4.0, 4.0, 3.0])
    weights = np.array([0.1, 0.2, 0.3, 0.4])
    observed = ((one - two) * weights).sum()
    flipped = [((one - two) * weights * signs).sum() for signs in itertools.product((1, -1), repeat=4)]
    upper, lower = np.mean(np.array(flipped) >= observed - 1e-12), np.mean(np.array(flipped) <= observed + 1e-12)
    assert permutation_p(one, two, weights) == pytest.approx(2 * min(upper, lower))


def test_what_too_few_cannot_say_is_none() -> None:
    one = paired(np.full((1, 3), 5.0), np.zeros((1, 3)), np.ones(3))
    assert one.mean == 5 and one.over_seeds is None and one.seeds_p is None and one.over_both is not None
    single = paired(np.array([[4.0], [6.0]]), np.zeros((2, 1)), np.ones(1))
    assert single.over_both is None and single.tasks_p is None and single.over_seeds is not None
    alike = paired(np.ones((3, 4)), np.ones((3, 4)), np.ones(4))
    assert alike.mean == 0 and alike.over_seeds is None and alike.over_both == (0, 0) and alike.tasks_p == 1


def test_a_deviation_needs_two() -> None:
    assert mean_and_deviation([4.0]) == (4.0, None)
    assert mean_and_deviation([4.0, 6.0]) == (5.0, pytest.approx(2**0.5))
