"""Intervals and p-values, against scipy, an explicit analysis of variance, and simulations."""

import numpy as np
import pytest
from scipy import stats

from hart.analysis.report_statistics import crossed_variance, mean_and_deviation, paired


def crossed(
    seeds: int, tasks: int, *, by_seed: float, by_task: float, noise: float = 1.0, random: np.random.Generator
) -> np.ndarray:
    effects = random.normal(0, by_seed, (seeds, 1)) + random.normal(0, by_task, tasks)
    return effects + random.normal(0, noise, (seeds, tasks))


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


def test_the_interval_over_seeds_is_that_of_the_paired_t_test(random: np.random.Generator) -> None:
    one = crossed(4, 9, by_seed=2, by_task=5, random=random) + 1
    two = crossed(4, 9, by_seed=1, by_task=3, random=random)
    weights = np.arange(1.0, 10.0)
    found = paired(one, two, weights)
    expected = stats.ttest_rel(one @ weights / weights.sum(), two @ weights / weights.sum())
    assert found.over_seeds == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert found.seeds_p == pytest.approx(expected.pvalue)
    assert found.mean == pytest.approx(np.average(one - two, axis=1, weights=weights).mean())
    assert (found.seeds, found.tasks) == (4, 9)


def test_over_both_with_one_seed_is_the_paired_t_test_over_tasks(random: np.random.Generator) -> None:
    one, two = crossed(2, 40, by_seed=0, by_task=3, random=random) + 0.5
    found = paired(one[None], two[None], np.full(40, 20.0))
    expected = stats.ttest_rel(one, two)
    assert found.over_both == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert found.both_p == pytest.approx(expected.pvalue)


@pytest.mark.parametrize(("by_seed", "by_task"), [(2.0, 3.0), (0.5, 4.0), (0.0, 0.0)])
def test_the_variance_over_both_is_that_of_the_mean_squares(
    by_seed: float, by_task: float, random: np.random.Generator
) -> None:
    """Two-way analysis of variance without replication, both factors random (Clark 1973), cell by cell."""
    seeds, tasks = 5, 12
    d = crossed(seeds, tasks, by_seed=by_seed, by_task=by_task, random=random)
    mean = sum(d[s, t] for s in range(seeds) for t in range(tasks)) / (seeds * tasks)
    of_seed = [sum(d[s, t] for t in range(tasks)) / tasks for s in range(seeds)]
    of_task = [sum(d[s, t] for s in range(seeds)) / seeds for t in range(tasks)]
    ms_seeds = tasks * sum((each - mean) ** 2 for each in of_seed) / (seeds - 1)
    ms_tasks = seeds * sum((each - mean) ** 2 for each in of_task) / (tasks - 1)
    ms_rest = sum((d[s, t] - of_seed[s] - of_task[t] + mean) ** 2 for s in range(seeds) for t in range(tasks))
    ms_rest /= (seeds - 1) * (tasks - 1)
    variance, freedom = crossed_variance(d, np.full(tasks, 1 / tasks))
    if by_seed == by_task == 0:
        larger, rows = max((ms_seeds, seeds), (ms_tasks, tasks))
        assert min(ms_seeds, ms_tasks) < ms_rest, "chance alone: one factor adds nothing"
        assert (variance, freedom) == pytest.approx((larger / (seeds * tasks), rows - 1))
        return
    whole = ms_seeds + ms_tasks - ms_rest
    parts = ms_seeds**2 / (seeds - 1) + ms_tasks**2 / (tasks - 1) + ms_rest**2 / ((seeds - 1) * (tasks - 1))
    assert variance == pytest.approx(whole / (seeds * tasks)) and freedom == pytest.approx(whole**2 / parts)


def test_seeds_that_agree_on_tasks_are_not_more_tasks(random: np.random.Generator) -> None:
    """What treating all pairs as independent would get wrong: the same differences in every seed tell nothing new."""
    once = crossed(1, 30, by_seed=0, by_task=5, random=random)
    found, again = (paired(each, np.zeros_like(each), np.ones(30)) for each in (once, np.repeat(once, 10, axis=0)))
    assert again.over_both == pytest.approx(found.over_both) and again.both_p == pytest.approx(found.both_p)


@pytest.mark.parametrize(
    ("seeds", "by_seed", "by_task", "noise", "lowest"),
    [
        (5, 2.0, 5.0, 8.0, 0.93),
        (5, 4.0, 1.0, 3.0, 0.93),
        (5, 0.0, 5.0, 8.0, 0.93),
        (3, 4.0, 5.0, 8.0, 0.92),
        (2, 4.0, 1.0, 3.0, 0.86),
    ],
)
def test_the_intervals_hold_the_truth_as_often_as_they_say(
    seeds: int, by_seed: float, by_task: float, noise: float, lowest: float, random: np.random.Generator
) -> None:
    """Weighted tasks too; drawing seeds and tasks with replacement instead held it in 65 to 97 % of these cases."""
    tasks, draws = 28, 1000
    weights = random.uniform(0.5, 1.5, tasks)
    over_seeds = over_both = 0
    for _ in range(draws):
        of_task = random.normal(0, by_task, tasks)
        d = of_task + crossed(seeds, tasks, by_seed=by_seed, by_task=0, noise=noise, random=random)
        found = paired(d, np.zeros_like(d), weights)
        assert found.over_seeds is not None and found.over_both is not None and found.both_p is not None
        over_seeds += found.over_seeds[0] <= np.average(of_task, weights=weights) <= found.over_seeds[1]
        inside = found.over_both[0] <= 0 <= found.over_both[1]
        assert inside == (found.both_p >= 0.05), "interval and p-value agree"
        over_both += inside
    assert over_seeds / draws == pytest.approx(0.95, abs=0.025), "on these very tasks"
    assert lowest <= over_both / draws <= 0.99, "on other tasks too"


def test_what_too_few_cannot_say_is_none() -> None:
    one = paired(np.array([[5.0, 5.0, 8.0]]), np.zeros((1, 3)), np.ones(3))
    assert one.mean == 6 and one.over_seeds is None and one.seeds_p is None and one.over_both is not None
    single = paired(np.array([[4.0], [6.0]]), np.zeros((2, 1)), np.ones(1))
    assert single.over_both is None and single.both_p is None and single.over_seeds is not None
    alike = paired(np.ones((3, 4)), np.ones((3, 4)), np.ones(4))
    assert alike.mean == 0 and alike.over_seeds is None and alike.over_both is None and alike.both_p is None


def test_rounding_is_no_variance() -> None:
    """Two seeds with the same mean, from the same numbers in another order: 7e-15 is left of their difference."""
    d = np.array([[85.0, 60.0, 50.0, 25.0, 30.0, 0.0], [0.0, 30.0, 25.0, 85.0, 60.0, 50.0]])
    found = paired(d, np.zeros_like(d), np.full(6, 20.0))
    assert found.over_seeds is None and found.seeds_p is None and found.over_both is not None


def test_a_deviation_needs_two() -> None:
    assert mean_and_deviation([4.0]) == (4.0, None)
    assert mean_and_deviation([4.0, 6.0]) == (5.0, pytest.approx(2**0.5))
