"""Trend, spikes and variance of a loss curve, what "alleviates the loss spikes and reduces the loss variances" (§5.3)
is measured by.

The paper defines neither, so here is what is meant:

- *trend*: the running median of the loss over `WINDOW` steps, centred, of those there are near the ends;
- *residual*: loss − trend;
- *deviation*: 1.4826 × the running median of |residual| over `SCALE` × `WINDOW` steps, the standard deviation if the
  residual were normal (the median absolute deviation, MAD; local, as the noise of a loss falls with the loss);
- *spike*: a step whose residual is more than `THRESHOLD` deviations above 0;
- *variance*: the mean of (residual − its mean)².

The first `SKIPPED` of the steps, in which the loss falls fast, is drawn but not counted.
"""

from dataclasses import dataclass

import numpy as np

WINDOW, SCALE = 51, 5
THRESHOLD = 5.0
SKIPPED = 0.1
NORMAL = 1.4826
"""A normal distribution's standard deviation / median absolute deviation."""

DEFINITIONS = (
    f"trend: running median of the loss over {WINDOW} steps, centred. residual: loss - trend. deviation: {NORMAL} x "
    f"running median of |residual| over {SCALE * WINDOW} steps. spike: residual > {THRESHOLD:g} deviations. variance: "
    f"of the residuals, around their mean. The first {SKIPPED:.0%} of the steps that all runs have are not counted, "
    "nor are steps whose loss is not finite.",
)


@dataclass(frozen=True)
class Spikes:
    """One curve taken apart.

    Attributes:
        trend, residual, deviation: float64 `[x]`, in the unit of the loss; NaN where the loss is not finite.
        counted, spikes: bool `[x]`.
    """

    trend: np.ndarray
    residual: np.ndarray
    deviation: np.ndarray
    counted: np.ndarray
    spikes: np.ndarray

    @property
    def count(self) -> int:
        return int(self.spikes.sum())

    @property
    def steps(self) -> int:
        """Values among which spikes are counted."""
        return int(self.counted.sum())

    @property
    def variance(self) -> float:
        """In the square of the loss's unit; NaN where nothing is counted."""
        return float(self.residual[self.counted].var()) if self.steps else float("nan")

    @property
    def relative_variance(self) -> float:
        """Of residual / trend, for curves on different heights."""
        ratios = self.residual[self.counted] / self.trend[self.counted]
        return float(ratios.var()) if self.steps else float("nan")


def find_spikes(losses: np.ndarray, *, window: int = WINDOW) -> Spikes:
    """Take a curve apart as the head of this module says.

    Args:
        losses: float64 `[x]`, one value for each step, or means over equally many steps.
        window: values of the running median, odd.
    """
    finite = np.isfinite(losses)
    known = np.where(finite, losses, np.nan)
    trend = running_median(known, window)
    residual = known - trend
    deviation = NORMAL * running_median(np.abs(residual), SCALE * window)
    counted = finite & (np.arange(len(losses)) >= SKIPPED * len(losses))
    with np.errstate(invalid="ignore"):
        spikes = counted & (residual > THRESHOLD * deviation)
    return Spikes(trend, residual, deviation, counted, spikes)


def running_median(values: np.ndarray, window: int) -> np.ndarray:
    """The median of the `window` values around each one, of those that there are and that are no NaN.

    Args:
        values: float64 `[..., x]`.
        window: odd.

    Raises:
        ValueError: an even window.
    """
    if window % 2 == 0:
        raise ValueError(f"a centred window has an odd length, not {window}")
    half = window // 2
    padded = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(half, half)], constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, window, axis=-1)
    medians = np.full(values.shape, np.nan)
    some = np.isfinite(windows).any(axis=-1)  # nanmedian warns of windows without a value
    medians[some] = np.nanmedian(windows[some], axis=-1)
    return medians
