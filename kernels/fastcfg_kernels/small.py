"""The path of small CPU samples: a few NumPy operations, and the formula on host numbers.

Below :data:`SMALL` elements the time is in the calls, not in the elements, and NumPy's calls cost half of torch's.
Only operations that round each element by IEEE rules alone, or that sum a row by itself, are used: an element's
place in a vector register, and a sample's place in a batch, do not show in the bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .host import host_params, weigh_on_host
from .program import Program
from .tiles import accumulator

__all__ = ["SMALL", "guide_small"]

SMALL = 20_000
"""Largest sample, in elements, for which calls cost more than a compiled function saves."""

_DOT = 8192  # BLAS splits longer dot products between threads.

Array = npt.NDArray[Any]


class _Layout:
    """How the vectors of a program's sums lie in one buffer; worked out once."""

    def __init__(self, program: Program) -> None:
        used = sorted({v for _, a, b in program.pairs for v in (a, b)} | set(program.centred))
        size = len(program.predictions)
        # Where a vector comes from: the difference basis, or a prediction other than the base.
        self.sources = [(True, v) if v < size else (False, v - size + 1) for v in used]
        pairs = [(kind, i, used.index(a), used.index(b)) for i, (kind, a, b) in enumerate(program.pairs)]
        self.raw = [pair[1:] for pair in pairs if pair[0] == "dot"]
        self.centred = [pair[1:] for pair in pairs if pair[0] == "cov"]
        self.means = [used.index(v) for v in program.means]
        self.centres = bool(program.centred)
        self.sums = len(pairs)


_layout = cache(_Layout)


def _dot(x: Array, y: Array) -> float:
    count = x.shape[0]
    if count <= _DOT:
        return float(np.dot(x, y))
    return sum(float(np.dot(x[i : i + _DOT], y[i : i + _DOT])) for i in range(0, count, _DOT))


def _sums(program: Program, predictions: Sequence[Array], basis: Sequence[Array]) -> list[list[float]]:
    """The sums of each sample, of ``[B, N]`` predictions and their difference basis."""
    layout = _layout(program)
    batch = basis[0].shape[0]
    sources = [basis[k] if basic else predictions[k] for basic, k in layout.sources]
    sums = [[0.0] * layout.sums for _ in range(batch)]
    for i, x, y in layout.raw:
        for b in range(batch):
            sums[b][i] = _dot(sources[x][b], sources[y][b])
    if layout.centres:
        buffer = np.empty((len(sources), *basis[0].shape), basis[0].dtype)
        for k, source in enumerate(sources):
            # Relative to the first element a constant is exactly zero, and so are its sums.
            np.subtract(source, source[:, :1], out=buffer[k])
        mean = np.add.reduce(buffer, -1, keepdims=True)
        mean /= buffer.shape[-1]
        buffer -= mean
        for i, x, y in layout.centred:
            for b in range(batch):
                sums[b][i] = _dot(buffer[x, b], buffer[y, b])
        for k in layout.means:
            for b in range(batch):
                sums[b].append(float(mean[k, b, 0]) + float(sources[k][b, 0]))
    return sums


def guide_small(program: Program, predictions: Sequence[Tensor], params: Sequence[Any], out: Tensor) -> None:
    """Guide ``[B, N]`` rows of small samples; writes ``out``, which may be one of the predictions."""
    batch, count = out.shape
    acc = accumulator(out.dtype)
    same = out.dtype == acc
    arrays = [p.numpy() if same else p.to(acc).numpy() for p in predictions]
    base = arrays[0]
    basis = [base, *(a - base for a in arrays[1:])]
    with np.errstate(all="ignore"):
        sums = _sums(program, arrays, basis) if program.reduces else [[]] * batch
        weighed = [weigh_on_host(program, s, count, p) for s, p in zip(sums, host_params(params, batch), strict=True)]

        def column(k: int) -> Any:
            if batch == 1:
                return weighed[0][k]
            return np.array([[w[k]] for w in weighed], dtype=base.dtype)

        target = out.numpy() if same else np.empty_like(base)
        # The deltas are ours to overwrite; the base may be the caller's own memory, and so may the target.
        terms = [np.multiply(delta, column(k), out=delta) for k, delta in enumerate(basis[1:], start=1)]
        np.multiply(base, column(0), out=target)
        for term in terms:
            target += term
        if program.clamps:
            np.clip(target, column(-2), column(-1), out=target)
    if not same:
        out.copy_(torch.from_numpy(target))
