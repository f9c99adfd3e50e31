"""Spikes and variance, against an explicit running median and on curves with known spikes."""

import numpy as np
import pytest

from hart.analysis.figures_spikes import NORMAL, SCALE, THRESHOLD, WINDOW, find_spikes, running_median


def test_the_running_median_is_that_of_the_values_around_each_one() -> None:
    values = np.random.default_rng(0).normal(size=40)
    values[[3, 20]] = np.nan
    for window in (1, 5, 51):
        half = window // 2
        slow = []
        for at in range(len(values)):
            around = values[max(0, at - half) : at + half + 1]
            around = around[~np.isnan(around)]
            slow.append(np.median(around) if len(around) else np.nan)
        np.testing.assert_allclose(running_median(values, window), slow)
    both = running_median(np.stack([values, -values]), 5)
    np.testing.assert_allclose(both, [running_median(values, 5), running_median(-values, 5)])
    with pytest.raises(ValueError, match="odd"):
        running_median(values, 4)


def test_spikes_are_found_where_they_were_put(falling) -> None:
    at = (60, 150, 151, 399)
    found = find_spikes(falling(spikes=at))
    assert (np.flatnonzero(found.spikes) + 1).tolist() == list(at)
    assert found.count == 4 and found.steps == 360
    assert find_spikes(falling()).count == 0  # neither the fall nor the noise is one
    assert find_spikes(falling(spikes=(20,))).count == 0  # among the steps that are not counted


def test_noise_that_falls_with_the_loss_is_no_spike() -> None:
    steps = np.arange(2000)
    scale = np.exp(-steps / 400)
    losses = 0.1 + 4 * scale * (1 + 0.1 * np.random.default_rng(1).normal(size=len(steps)))
    assert find_spikes(losses).count == 0


def test_the_definition_written_out(falling) -> None:
    losses = falling(spikes=(100, 300))
    found = find_spikes(losses)
    trend = running_median(losses, WINDOW)
    deviation = NORMAL * running_median(abs(losses - trend), SCALE * WINDOW)
    over = (losses - trend > THRESHOLD * deviation) & (np.arange(400) >= 40)
    np.testing.assert_array_equal(found.spikes, over)
    assert found.variance == pytest.approx(np.var((losses - trend)[40:]))
    assert found.relative_variance == pytest.approx(np.var((losses / trend)[40:]))


def test_the_variance_is_that_of_the_noise(falling) -> None:
    quiet, loud = (find_spikes(falling(2000, noise=noise)).variance for noise in (0.05, 0.1))
    assert loud / quiet == pytest.approx(4, rel=0.05)
    assert quiet == pytest.approx(0.05**2, rel=0.1)


def test_a_loss_that_is_not_finite_is_left_out(falling) -> None:
    losses = falling()
    losses[200:203] = [np.nan, np.inf, -np.inf]
    found = find_spikes(losses)
    assert found.steps == 357 and found.count == 0 and np.isfinite(found.variance)
    assert np.isnan(find_spikes(np.full(30, np.nan)).variance)
