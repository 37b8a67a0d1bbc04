"""A law of cost from a few measured points: a fixed cost and a cost per unit, and the exponent of a power law.

Points lie over several orders of magnitude, and a disturbed measurement is off by a share of itself: errors are
relative, so that the small ones count as much as the large.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Fit", "fit"]


@dataclass(frozen=True)
class Fit:
    """``ms = fixed_ms + ms_per_unit * units``, and ``ms ~ units ** exponent``.

    Attributes:
        fixed_ms, ms_per_unit: milliseconds; neither is negative.
        exponent: slope of log ms over log units; 1 is proportional, 0 is constant.
        residual: root mean square of the linear law's relative errors; 0 says nothing where there are two points.
        exponent_residual: root mean square of log ms about the power law.
        points: how many there are.
        departs: the point that is furthest from the linear law, by its place; departure: its ms ÷ the law's.
    """

    fixed_ms: float
    ms_per_unit: float
    exponent: float
    residual: float
    exponent_residual: float
    points: int
    departs: int
    departure: float

    def ms(self, units: float) -> float:
        """Milliseconds by the linear law."""
        return self.fixed_ms + self.ms_per_unit * units


def fit(units: Sequence[float], ms: Sequence[float]) -> Fit:
    """The laws that fit measured times best by their relative errors, least squares.

    Args:
        units: of work, positive, of at least two different sizes; ms: milliseconds of each, positive.

    Raises:
        ValueError: naming the argument.
    """
    x, y = np.asarray(units, dtype=float), np.asarray(ms, dtype=float)
    if x.ndim != 1 or not (np.isfinite(x) & (x > 0)).all() or len(set(x.tolist())) < 2:
        raise ValueError(f"units: expected positive numbers of at least two sizes, got {list(units)}")
    if y.shape != x.shape or not (np.isfinite(y) & (y > 0)).all():
        raise ValueError(f"ms: expected {len(x)} positive times, got {list(ms)}")
    fixed, slope = np.linalg.lstsq(np.stack([1 / y, x / y], 1), np.ones_like(y), rcond=None)[0].tolist()
    # A negative cost is no cost: the best law within bounds then lies on the bound.
    if fixed < 0:
        fixed, slope = 0.0, _one_term(x / y)
    elif slope < 0:
        fixed, slope = _one_term(1 / y), 0.0
    relative = y / (fixed + slope * x)
    furthest = int(np.abs(np.log(relative)).argmax())
    exponent, offset = np.polyfit(np.log(x), np.log(y), 1).tolist()
    return Fit(
        fixed,
        slope,
        exponent,
        residual=float(np.sqrt(np.mean((1 / relative - 1) ** 2))),
        exponent_residual=float(np.sqrt(np.mean((np.log(y) - offset - exponent * np.log(x)) ** 2))),
        points=len(x),
        departs=furthest,
        departure=float(relative[furthest]),
    )


def _one_term(column: np.ndarray) -> float:
    """The factor of a single column that comes nearest to ones."""
    return float(column.sum() / (column @ column))
