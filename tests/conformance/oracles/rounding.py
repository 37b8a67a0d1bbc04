"""Correct rounding of exact values, and errors measured against it."""

from __future__ import annotations

import math

import numpy as np
import torch

from .arrays import Array

# dtype -> (bits of significand, exponent of the smallest positive subnormal, largest exponent)
_FORMATS = {
    torch.float16: (11, -24, 16),
    torch.bfloat16: (8, -133, 128),
    torch.float32: (24, -149, 128),
    torch.float64: (53, -1074, 1024),
}


def ulp(x64: Array, dtype: torch.dtype) -> Array:
    """The spacing of ``dtype`` in the binade of ``|x64|``, its smallest subnormal near zero."""
    bits, tiny, _ = _FORMATS[dtype]
    exponent = np.frexp(np.asarray(x64, np.float64))[1]
    exponent = np.where(np.asarray(x64) == 0, tiny + bits, exponent)
    return np.ldexp(1.0, np.maximum(exponent - bits, tiny))


def _round(x64: Array, dtype: torch.dtype) -> Array:
    x = np.asarray(x64, np.float64)
    if dtype == torch.float64:
        return x
    spacing = ulp(x, dtype)
    with np.errstate(invalid="ignore"):
        rounded = np.where(np.isfinite(x), np.rint(x / spacing) * spacing, x)
    return np.where(np.abs(rounded) >= 2.0 ** _FORMATS[dtype][2], np.copysign(np.inf, x), rounded)


def ideal(x64: Array, dtype: torch.dtype) -> torch.Tensor:
    """``x64`` rounded once, to nearest even, into ``dtype``.

    torch converts float64 to half types through float32, which rounds twice; this does not.
    """
    return torch.from_numpy(np.ascontiguousarray(_round(x64, dtype))).to(dtype)


def _rms(x: Array) -> float:
    return float(np.sqrt(np.mean(np.square(x)))) if x.size else 0.0


def error_in_ideal_units(actual: torch.Tensor, exact: Array) -> float:
    """``RMS(actual − exact) / RMS(round(exact) − exact)``: 1 is a single correct rounding.

    For float32 and float64, and where the exact values happen to be representable, the unit is the expected
    rounding error ``eps·RMS(exact)/√12`` instead (uniform rounding errors of one spacing at the RMS
    magnitude).  Elements that overflow the dtype must be equal infinities in ``actual`` and are left out of
    the means; any other non-finite difference, or an error where the unit is zero, gives ``inf``.
    """
    exact = np.asarray(exact, np.float64)
    got = actual.detach().cpu().to(torch.float64).numpy()
    if got.shape != exact.shape:
        raise ValueError(f"shapes differ: {got.shape} and {exact.shape}")
    best = _round(exact, actual.dtype)
    finite = np.isfinite(best)
    if not np.array_equal(got[~finite], best[~finite], equal_nan=True) or not np.isfinite(got[finite]).all():
        return math.inf
    exact, got, best = exact[finite], got[finite], best[finite]
    error = _rms(got - exact)
    unit = _rms(best - exact) if actual.dtype in (torch.float16, torch.bfloat16) else 0.0
    if unit == 0.0:
        unit = torch.finfo(actual.dtype).eps * _rms(exact) / math.sqrt(12)
    if unit == 0.0:
        return 0.0 if error == 0.0 else math.inf
    return error / unit


def max_ulp(actual: torch.Tensor, exact: Array) -> float:
    """The largest ``|actual − exact|`` in spacings of ``actual``'s dtype at ``exact``; correct rounding is ≤
    0.5.

    Elements where both are the same infinity (exact beyond the dtype's range included) or NaN count as 0; any
    other non-finite difference gives ``inf``.
    """
    exact = np.asarray(exact, np.float64)
    got = actual.detach().cpu().to(torch.float64).numpy()
    if got.shape != exact.shape:
        raise ValueError(f"shapes differ: {got.shape} and {exact.shape}")
    best = _round(exact, actual.dtype)
    same = (got == best) | (np.isnan(got) & np.isnan(best))
    comparable = np.isfinite(got) & np.isfinite(best)
    if not (comparable | same).all():
        return math.inf
    if not comparable.any():
        return 0.0
    error = np.abs(got[comparable] - exact[comparable]) / ulp(exact[comparable], actual.dtype)
    return float(error.max())
