"""What follows from a sample for the whole: bounds for shares, intervals for means and for paired differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Interval", "mean_interval", "paired_interval", "pairs_needed", "upper_bound"]

Z95 = 1.959964  # the normal quantile of a two-sided 95% interval
_STEPS = 60  # of bisection: far below a float's precision of the share


@dataclass(frozen=True)
class Interval:
    """An estimate with its error.

    Attributes:
        value: the estimate.
        error: half the width of its 95% interval.
    """

    value: float
    error: float

    @property
    def low(self) -> float:
        """The lower end."""
        return self.value - self.error

    @property
    def high(self) -> float:
        """The upper end."""
        return self.value + self.error


def upper_bound(found: int, sampled: int, confidence: float, rows: int) -> float:
    """Return the share of rows that is exceeded in at most 1 - confidence of all samples.

    Args:
        found: rows with the property in the sample.
        sampled: rows of a simple random sample, without repetition.
        confidence: 0 to 1, one-sided.
        rows: rows of the whole; a sample of all rows gives the exact share.
    Source: Clopper and Pearson 1934; for samples without repetition it is conservative.
    """
    if sampled >= rows:
        return found / rows if rows else 0.0
    if found >= sampled:
        return 1.0
    low, high, alpha = found / sampled, 1.0, 1 - confidence
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if _at_most(found, sampled, middle) > alpha:
            low = middle
        else:
            high = middle
    return high


def _at_most(found: int, n: int, share: float) -> float:
    """Return the probability of at most `found` of n, where each has the property with the probability `share`."""
    if share >= 1.0:
        return 0.0 if found < n else 1.0
    if share <= 0.0:
        return 1.0
    logs = (math.log(share), math.log1p(-share))
    whole = math.lgamma(n + 1)
    return math.fsum(
        math.exp(whole - math.lgamma(i + 1) - math.lgamma(n - i + 1) + i * logs[0] + (n - i) * logs[1])
        for i in range(found + 1)
    )


def mean_interval(values: Sequence[float] | np.ndarray) -> Interval:
    """Return the mean of n values and the half width of its 95% interval; n >= 1."""
    import numpy as np

    given = np.asarray(values, np.float64)
    if len(given) < 2:
        return Interval(float(given.mean()), float("inf"))
    return Interval(float(given.mean()), Z95 * float(given.std(ddof=1)) / math.sqrt(len(given)))


def paired_interval(differences: Sequence[float] | np.ndarray) -> Interval:
    """Return the mean difference of n pairs, each from -1 to 1, and its 95% interval.

    One pair of each extreme is added, so that few pairs without a difference do not give an interval of no width.
    Source: Bonett and Price 2012, "Adjusted Wald confidence interval for a difference of binomial proportions based on
    paired data"; for differences between -1 and 1 as well.
    """
    import numpy as np

    values = np.concatenate([np.asarray(differences, np.float64), [-1.0, 1.0]])
    n, mean = len(values), float(values.mean())
    variance = max(float((values * values).mean()) - mean * mean, 0.0)
    return Interval(mean, Z95 * math.sqrt(variance / n))


def pairs_needed(differences: Sequence[float] | np.ndarray, margin: float) -> int:
    """Return how many pairs would decide, if further ones are like these.

    Args:
        differences: n differences, each from -1 to 1.
        margin: the difference that counts as none.
    Returns:
        The smaller of two numbers: pairs until the interval leaves 0, and pairs until it lies within +-margin.
    """
    import numpy as np

    values = np.concatenate([np.asarray(differences, np.float64), [-1.0, 1.0]])
    mean = abs(float(values.mean()))
    variance = max(float((values * values).mean()) - mean * mean, 0.0)
    gaps = [gap for gap in (mean, margin - mean) if gap > 0]
    widest = max(gaps, default=margin)
    return max(len(values) - 1, math.ceil(Z95**2 * variance / widest**2))
