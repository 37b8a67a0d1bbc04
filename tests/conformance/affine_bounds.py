"""The bound of a weighted sum of tensors: what a conversion, a sampler's step or a rescaling has to stay within.

With ``u`` the accumulator's unit roundoff, a sum of K terms is formed from a base and K - 1 deltas. Rounding a weight
(``W`` operations from the levels), a delta, the product and the additions costs at most ``(K + W + 4) u`` of
``sum_k |w_k| (|t_k| + max_j |t_j|)``; the store half a spacing of the output's dtype. For float64 the oracle rounds as
often, so that its share is twice as large.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from .cases import EPSILON
from .oracles.arrays import Array
from .oracles.rounding import ulp

__all__ = ["check_sum", "check_within"]


def check_within(actual: torch.Tensor, expected: Array, before_store: Array) -> None:
    """Raise unless ``actual`` is ``expected`` up to ``before_store`` and one rounding."""
    error = np.abs(actual.detach().double().numpy() - expected)
    allowed = 0.5 * ulp(expected, actual.dtype) + before_store
    worst = np.unravel_index(np.argmax(error - allowed), error.shape)
    assert (error <= allowed).all(), (
        f"{actual.dtype} is {actual[worst].item()} at {worst}, exact {expected[worst]}: "
        f"error {error[worst]:.3e}, bound {allowed[worst]:.3e}"
    )


def check_sum(
    actual: torch.Tensor, expected: Array, terms: Sequence[tuple[float | Array, Array]], operations: int = 12
) -> None:
    """Raise unless ``actual`` is the sum of ``terms`` (weight, tensor) within the bound.

    Args:
        operations: roundings of a weight on its way from the parameters.
    """
    unit = EPSILON[actual.dtype] * (2 if actual.dtype == torch.float64 else 1)
    largest = np.maximum.reduce([abs(t) for _, t in terms])
    magnitude = sum(abs(np.asarray(w)) * (abs(t) + largest) for w, t in terms)
    check_within(actual, expected, (len(terms) + operations + 4) * unit * magnitude)
