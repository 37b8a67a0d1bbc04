"""Broadcasting and per-sample sums shared by the oracles."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Parameter = float | npt.NDArray[np.floating]
Dims = int | Sequence[int] | None


def f64(x: npt.ArrayLike) -> Array:
    """``x`` as float64."""
    return np.asarray(x, dtype=np.float64)


def per_sample(parameter: Parameter, like: Array) -> Array:
    """A parameter made to broadcast against ``like`` [B, ...]: a scalar, ``[B]``, or already shaped."""
    p = f64(parameter)
    if p.ndim == 1 and like.ndim > 1:
        if p.shape[0] not in (1, like.shape[0]):
            raise ValueError(f"a per-sample parameter needs shape [{like.shape[0]}], got {list(p.shape)}")
        return p.reshape(-1, *(1,) * (like.ndim - 1))
    return p


def axes(x: Array, dims: Dims) -> tuple[int, ...]:
    """The reduced axes: all but the first when ``dims`` is None."""
    if dims is None:
        return tuple(range(1, x.ndim))
    return (dims,) if isinstance(dims, int) else tuple(dims)


def dot(a: Array, b: Array, dims: Dims = None) -> Array:
    """``sum(a * b)`` over ``dims``, kept for broadcasting."""
    return np.sum(a * b, axis=axes(a, dims), keepdims=True)


def norm(x: Array, dims: Dims = None) -> Array:
    """L2 norm over ``dims``, kept for broadcasting."""
    return np.sqrt(dot(x, x, dims))


def std(x: Array, *, unbiased: bool = True, dims: Dims = None) -> Array:
    """Standard deviation over ``dims`` in two passes (N − 1 when unbiased); 0 for a single element."""
    over = axes(x, dims)
    count = int(np.prod([x.shape[a] for a in over]))
    divisor = count - 1 if unbiased else count
    if divisor < 1:
        return np.zeros_like(x.sum(axis=over, keepdims=True))
    centred = x - x.mean(axis=over, keepdims=True)
    return np.sqrt(np.sum(centred**2, axis=over, keepdims=True) / divisor)


def ratio(numerator: Array, denominator: Array, otherwise: float) -> Array:
    """``numerator / denominator``, and ``otherwise`` where the denominator is zero."""
    numerator, denominator = np.broadcast_arrays(numerator, denominator)
    zero = denominator == 0
    return np.where(zero, otherwise, numerator / np.where(zero, 1.0, denominator))


def parallel(x: Array, direction: Array, dims: Dims = None) -> Array:
    """The component of ``x`` along ``direction``; zero for a zero direction."""
    return ratio(dot(x, direction, dims), dot(direction, direction, dims), 0.0) * direction
