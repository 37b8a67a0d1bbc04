"""The bound that a guided prediction's error has to stay within, derived from how it is computed.

With ``u`` the unit roundoff of the accumulator (2^-24, or 2^-53 for float64 inputs):

* **Combine.** The result is a sum of K terms ``w_k b_k``. Forming a delta, rounding a parameter, the few operations
  of a weight, the product and the additions round ``K + 8`` times, each time by at most ``u`` times what has been
  added up so far: ``(K + 8) u sum |w_k b_k|``. ``torch.lerp`` starts from the other end, from ``cond``; so the
  predictions themselves count among the terms.
* **Sums.** Every backend adds at least 16 partial sums side by side, so that one of them is a chain of ``n = N/16``
  additions; their errors have no common sign, which makes ``gamma = lambda sqrt(n) u`` the relative error of a
  sum of squares (Higham & Mary, SIAM J. Sci. Comput. 41(5), 2019, thm. 2.4; lambda = 4 leaves one in 3000 for a
  single sum), and eight more roundings for the tile means, the merge and the formula. What that does to the result
  is ``Case.wander``.
* **Store.** Half a spacing of the output's dtype. Triton's interpreter truncates in bfloat16: there it is one.
* **The oracle** is itself computed in float64: for float64 inputs its own rounding counts as much, in the
  predictions' basis, where nothing has cancelled yet: ``sum |w_k| (|p_k| + |b_0|)``.

All of it holds for each element. In units of the ideal rounding (root mean squares) it makes ``1 + bound / unit``.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from .cases import EPSILON, Case, Named
from .oracles.arrays import Array
from .oracles.rounding import error_in_ideal_units, ideal, ulp


def accumulation_bound(case: Case, predictions: Named, dtype: torch.dtype) -> Array:
    """The error before the store, for each element."""
    unit = EPSILON[dtype]
    terms = case.terms(predictions)
    largest = sum(abs(p) for p in predictions.values())
    magnitude = sum(abs(t) for t in terms) + largest
    count = largest[0].size
    gamma = (4 * math.sqrt(max(count / 16, 1)) + 8) * unit
    bound = (len(terms) + 8) * unit * magnitude + gamma * case.wander(predictions)
    if dtype == torch.float64:
        gain = sum(np.abs(t).max() for t in terms) / max(largest.max(), 1e-300) + 1
        bound = 2 * bound + 16 * unit * gain * largest
    return bound


def check_error(case: Case, actual: torch.Tensor, predictions: Named, *, truncates: bool = False) -> float:
    """The error in units of the ideal rounding, once it is known to be within the bound.

    Args:
        truncates: whether the store truncates (the interpreter's, in bfloat16).
    """
    expected = case.oracle(predictions)
    before_store = accumulation_bound(case, predictions, actual.dtype)
    error = np.abs(actual.double().numpy() - expected)
    allowed = (1.0 if truncates else 0.5) * ulp(expected, actual.dtype) + before_store
    worst = np.unravel_index(np.argmax(error - allowed), error.shape)
    assert (error <= allowed).all(), (
        f"{case}: {actual.dtype} is {actual[worst].item()} at {worst}, exact {expected[worst]}: "
        f"error {error[worst]:.3e}, bound {allowed[worst]:.3e}"
    )
    units = error_in_ideal_units(actual, expected)
    if not truncates:
        unit = error_in_ideal_units(ideal(expected, actual.dtype), expected)
        rms_before_store = float(np.sqrt(np.mean(before_store**2)))
        rms_error = float(np.sqrt(np.mean(error**2)))
        # The ideal rounding's own root mean square, from the ratio of the two.
        rounding = rms_error / units if units else math.inf
        assert units <= max(unit, 1) + rms_before_store / rounding, f"{case}: {units} ideal roundings"
    return units
