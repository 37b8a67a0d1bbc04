"""Whether a series of measurements grows, told from its noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

__all__ = ["Trend", "trend"]


@dataclass(frozen=True)
class Trend:
    """A line through measurements, robust against outliers.

    Attributes:
        slope: per call; error: its standard error, from the scatter around the line.
    """

    slope: float
    error: float

    def grows(self, least: float, errors: float = 5.0) -> bool:
        """Whether the slope is more than ``least``, beyond its noise.

        Args:
            least: the smallest growth that counts; errors: standard errors that noise stays within.
        """
        return self.slope - errors * self.error > least


def trend(calls: Sequence[float], values: Sequence[float]) -> Trend:
    """Theil and Sen's slope: the median over all pairs, which a quarter of outliers does not move.

    Its variance is that of least squares divided by 0.91 for normal noise (Sen 1968, sec. 6); the noise is 1.4826 times
    the median distance from the line.
    """
    pairs = [
        (v - u) / (b - a)
        for i, (a, u) in enumerate(zip(calls, values, strict=True))
        for b, v in zip(calls[i + 1 :], values[i + 1 :], strict=True)
    ]
    slope = median(pairs)
    middle = median(v - slope * c for c, v in zip(calls, values, strict=True))
    noise = 1.4826 * median(abs(v - slope * c - middle) for c, v in zip(calls, values, strict=True))
    mean = sum(calls) / len(calls)
    spread = math.sqrt(sum((c - mean) ** 2 for c in calls))
    return Trend(slope, noise / spread / math.sqrt(0.91))
