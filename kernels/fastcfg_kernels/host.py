"""A program's weights as host numbers: no tensor operation, and no wait, since CPU memory is at hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from .formula.program import Program

__all__ = ["host_params", "weigh_on_host"]


def host_params(params: Sequence[Any], batch: int) -> list[Sequence[float]]:
    """Parameters as numbers, per sample: a list (one entry a sample) of tuples."""
    if not any(isinstance(p, Tensor) for p in params):
        return [tuple(params)] * batch
    columns = [p.tolist() if isinstance(p, Tensor) else p for p in params]
    return [tuple(c[b] if isinstance(c, list) else c for c in columns) for b in range(batch)]


def weigh_on_host(program: Program, sums: Sequence[float], count: int, params: Sequence[float]) -> list[float]:
    """``program.weigh`` in float64 on the host; a division by zero gives inf or NaN there, as it does on a device."""
    try:
        return [float(w) for w in program.weigh(tuple(sums), float(count), tuple(params))]
    except ArithmeticError:  # Python's numbers raise where IEEE arithmetic goes on; NumPy's go on too.
        with np.errstate(all="ignore"):
            weighed = program.weigh(
                tuple(np.float64(s) for s in sums), np.float64(count), tuple(np.float64(p) for p in params)
            )
        return [float(w) for w in weighed]
