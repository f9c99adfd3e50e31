"""Trend, spikes and variance of a loss curve, for the claim "alleviates the loss spikes and reduces the loss variances"
(§5.3).

The paper does not define them. The definitions here are:

- *trend*: the centred running median of the loss over `WINDOW` steps; near the ends, over those steps that exist;
- *residual*: loss − trend;
- *deviation*: 1.4826 × the running median of |residual| over `SCALE` × `WINDOW` steps, the standard deviation if the
  residual were normal (the median absolute deviation, MAD; local, as the noise of a loss falls with the loss);
- *spike*: a step whose residual is more than `THRESHOLD` deviations above 0;
- *variance*: the mean of (residual − its mean)².

The first `SKIPPED` fraction of steps, in which the loss falls fast, is drawn but not counted.
"""

from dataclasses import dataclass

import numpy as np

WINDOW, SCALE = 51, 5
THRESHOLD = 5.0
SKIPPED = 0.1
NORMAL = 1.4826
"""Ratio of standard deviation to median absolute deviation of a normal distribution."""

DEFINITIONS = (
    f"trend: running median of the loss over {WINDOW} steps, centred. residual: loss - trend. deviation: {NORMAL} x "
    f"running median of |residual| over {SCALE * WINDOW} steps. spike: residual > {THRESHOLD:g} deviations. variance: "
    f"of the residuals, around their mean. The first {SKIPPED:.0%} of the steps that all runs have are not counted, "
    "nor are steps whose loss is not finite.",
)


@dataclass(frozen=True)
class Spikes:
    """The parts of one loss curve.

    Attributes:
        trend, residual, deviation: float64 `[x]`, in the unit of the loss; NaN where the loss is not finite.
        counted: whether a step is counted, bool `[x]`.
        spikes: whether a step is a spike, bool `[x]`.
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
        """Number of values among which spikes are counted."""
        return int(self.counted.sum())

    @property
    def variance(self) -> float:
        """Variance of the residual, in the squared unit of the loss; NaN if no step is counted."""
        return float(self.residual[self.counted].var()) if self.steps else float("nan")

    @property
    def relative_variance(self) -> float:
        """Variance of residual / trend, to compare curves at different levels."""
        ratios = self.residual[self.counted] / self.trend[self.counted]
        return float(ratios.var()) if self.steps else float("nan")


def find_spikes(losses: np.ndarray, *, window: int = WINDOW) -> Spikes:
    """Split a curve into trend and residual, and find its spikes, by the definitions of this module.

    Args:
        losses: one value per step, or means over equally many steps, float64 `[x]`.
        window: width of the running median in values, odd.
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
    """The median of the `window` values around each value, ignoring NaN and positions beyond the ends.

    Args:
        values: float64 `[..., x]`.
        window: number of values, odd.

    Raises:
        ValueError: `window` is even.
    """
    if window % 2 == 0:
        raise ValueError(f"a centred window has an odd length, not {window}")
    half = window // 2
    padded = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(half, half)], constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, window, axis=-1)
    medians = np.full(values.shape, np.nan)
    some = np.isfinite(windows).any(axis=-1)  # nanmedian warns about windows that are all NaN
    medians[some] = np.nanmedian(windows[some], axis=-1)
    return medians
