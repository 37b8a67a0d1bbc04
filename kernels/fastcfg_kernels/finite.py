"""The one reading of a host number: finite, real, and of any library."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

__all__ = ["finite_number"]


def finite_number(name: str, value: Any, expected: str = "a number") -> float:
    """Return ``value`` as a float: Python's, NumPy's (``np.float32``), or any other real number.

    Args:
        name: what errors call it; expected: what they say was expected.

    Raises:
        TypeError: if it is no real number (a bool is none).
        ValueError: if it is NaN, infinite, or too large for a float.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected {expected}, got {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:
        raise ValueError(f"{name}: expected a finite number, got one beyond the range of a float") from None
    if not abs(number) < math.inf:  # NaN too; unlike math.isfinite it can be traced.
        raise ValueError(f"{name}: expected a finite number, got {number}")
    return number
