"""The path of small CPU samples: a few NumPy operations, and the formula on host numbers.

Below :data:`SMALL` elements the time is in the calls, not in the elements, and NumPy's calls cost half of torch's.
Only operations that round each element by IEEE rules alone, or that sum a row by itself, are used: an element's
place in a vector register, and a sample's place in a batch, do not show in the bits.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .host import host_params, weigh_on_host
from .program import Program
from .tiles import TILE, accumulator

__all__ = ["SMALL", "guide_small"]

SMALL = 2 * TILE - 1
"""Largest sample, in elements, for which calls cost more than a compiled function saves."""

Array = npt.NDArray[Any]


class _Layout:
    """Which vectors a program's sums read, and where each sum stands in their Gram matrix; worked out once."""

    def __init__(self, program: Program) -> None:
        self.raw = _Gram(program, "dot")
        self.centred = _Gram(program, "cov")
        self.count = len(program.pairs)


class _Gram:
    """The pairs of one kind: ``vectors`` to stack, and ``(position, row, column)`` of each sum."""

    def __init__(self, program: Program, kind: str) -> None:
        self.vectors = sorted({v for k, a, b in program.pairs if k == kind for v in (a, b)})
        self.entries = [
            (i, self.vectors.index(a), self.vectors.index(b)) for i, (k, a, b) in enumerate(program.pairs) if k == kind
        ]


_layout = cache(_Layout)


class _Scratch(threading.local):
    """Memory that stays: a fresh block of this size costs more in page faults than what is done in it."""

    def __init__(self) -> None:
        self.raw: dict[tuple[int, int, Any], Array] = {}
        self.centred: dict[tuple[int, int, Any], Array] = {}
        self.deltas: dict[tuple[int, int, Any], Array] = {}

    @staticmethod
    def rows(blocks: dict[tuple[int, int, Any], Array], size: int, count: int, dtype: Any) -> Array:
        """``[size, count]``, ones at first and then what was left there; the last few shapes are kept."""
        key = (size, count, dtype)
        if (block := blocks.get(key)) is None:
            if len(blocks) >= 4:
                blocks.clear()
            block = blocks[key] = np.ones((size, count), dtype)
        return block


_scratch = _Scratch()


def _pivot(row: Array) -> float:
    """The median of nine elements or so: near the mean of most rows, and a constant's very value."""
    some = sorted(row[:: max(1, row.shape[0] // 9)].tolist())
    return float(some[len(some) // 2])


def _centred_gram(sources: Sequence[Array]) -> tuple[list[list[float]], list[float]]:
    """Gram matrix of rows ``[N]`` relative to a pivot each, by one matrix product, and their means from it.

    The pivot is one of the elements: a constant is exactly zero, and so are its sums. The row below the rows, which
    nothing writes, is ones and gives their sums. Where an element apart from the others makes a bad pivot, so that
    subtracting the mean would cost digits, the pivot is the mean.
    """
    size, count = len(sources), sources[0].shape[0]
    rows = _scratch.rows(_scratch.centred, size + 1, count, sources[0].dtype)
    for row, source in zip(rows, sources, strict=False):
        np.subtract(source, _pivot(source), out=row)
    gram: list[list[float]] = np.dot(rows, rows[:size].T).tolist()
    means = [total / count for total in gram[size]]
    if any(count * m * m > 0.5 * gram[k][k] for k, m in enumerate(means)):
        rows[:size] -= np.array(means, rows.dtype)[:, None]
        gram = np.dot(rows, rows[:size].T).tolist()
        means = [total / count for total in gram[size]]
    return gram, means


def _sums(program: Program, vectors: Sequence[Array]) -> list[float]:
    """The sums that ``program.weigh`` takes, of one sample's fixed vectors ``[N]``."""
    layout = _layout(program)
    sums = [0.0] * layout.count
    if layout.raw.entries:
        rows = _scratch.rows(_scratch.raw, len(layout.raw.vectors), vectors[0].shape[0], vectors[0].dtype)
        np.stack([vectors[v] for v in layout.raw.vectors], out=rows)
        gram = np.dot(rows, rows.copy().T).tolist()  # A copy: for its own transpose BLAS has a slower routine.
        for i, row, column in layout.raw.entries:
            sums[i] = gram[row][column]
    if layout.centred.vectors:
        gram, means = _centred_gram([vectors[v] for v in layout.centred.vectors])
        count = vectors[0].shape[0]
        for i, row, column in layout.centred.entries:
            sums[i] = gram[row][column] - count * means[row] * means[column]
    sums.extend(float(np.mean(vectors[v], dtype=np.float64)) for v in program.means)
    return sums


def guide_small(
    program: Program, inputs: Sequence[Tensor], params: Sequence[Any], outs: Sequence[Tensor], results: Sequence[int]
) -> None:
    """Guide ``[B, N]`` rows of small samples; writes result ``results[k]`` to ``outs[k]``.

    Args:
        inputs: the program's inputs.
        outs: in any floating dtype; each may be one of the inputs.
    """
    batch, count = inputs[0].shape
    acc = accumulator(inputs[0].dtype)
    size = len(program.predictions)
    arrays = [p.numpy() if p.dtype == acc else p.to(acc).numpy() for p in inputs]
    base = arrays[0]
    # The deltas are ours to overwrite; everything else may be the caller's own memory, and so may the outputs.
    deltas = _scratch.rows(_scratch.deltas, size - 1, base.size, base.dtype).reshape(size - 1, batch, count)
    with np.errstate(all="ignore"):
        for other, delta in zip(arrays[1:size], deltas, strict=True):
            np.subtract(other, base, out=delta)
        if program.scaled:
            deltas *= arrays[size + len(program.extras)]
        numbers = host_params(params, batch)
        others = arrays[1:size]
        if program.affine:
            shift, gain = (np.array([[row[k]] for row in numbers], dtype=base.dtype) for k in (-2, -1))
            offset = shift * arrays[program.width]
            deltas *= gain
            base = offset + gain * base
            others = [offset + gain * other for other in others]
        basis = [base, *deltas, *arrays[size : program.width]]
        weighed = [_weigh(program, [*basis, *others], arrays[-1], b, values) for b, values in enumerate(numbers)]

        def column(k: int) -> Any:
            if batch == 1:
                return weighed[0][k]
            return np.array([[w[k]] for w in weighed], dtype=base.dtype)

        # The first output may be worked out where it is wanted, if nothing is read after it.
        at_once = len(arrays) == size and outs[0].dtype == acc and list(results) == [0]
        made: list[Array] = []
        for output in reversed(range(program.outputs)):
            # It is worked out last, when the deltas are needed no more.
            last = output == 0
            target = outs[0].numpy() if last and at_once else np.empty_like(base)
            np.multiply(base, column(output * program.width), out=target)
            for k, vector in enumerate(basis[1:], start=1):
                own = last and k < size
                target += np.multiply(vector, column(output * program.width + k), out=vector if own else None)
            made.insert(0, target)
        end = program.outputs * program.width
        if program.clamps:
            np.clip(made[0], column(end), column(end + 1), out=made[0])
            end += 2
        if program.affine:
            made[0] -= offset
            made[0] /= gain
        if program.rows:
            terms = [made[0], *arrays[program.width : size + len(program.extras)]]
            ends = range(end, end + program.rows * len(terms), len(terms))
            made[:1] = [_row(terms, [column(k + i) for i in range(len(terms))]) for k in ends]
    if not at_once:
        for out, k in zip(outs, results, strict=True):
            out.copy_(torch.from_numpy(made[k]))


def _weigh(
    program: Program, vectors: Sequence[Array], mask: Array, sample: int, params: Sequence[float]
) -> Sequence[float]:
    """The weights of one sample of a batch.

    Args:
        vectors: the fixed vectors ``[B, N]``; mask: ``[B, N]``, which a masked program reads.
    """
    if not program.reduces:
        return weigh_on_host(program, (), vectors[0].shape[1], params)
    rows = [v[sample] for v in vectors]
    if program.masked:
        rows = [row[mask[sample] != 0] for row in rows]
        if not rows[0].size:
            rows = [np.zeros(1, row.dtype) for row in rows]
    return weigh_on_host(program, _sums(program, rows), rows[0].shape[0], params)


def _row(terms: Sequence[Array], weights: Sequence[Any]) -> Array:
    """One row of a step: a weighted sum."""
    total = np.multiply(terms[0], weights[0])
    for term, weight in zip(terms[1:], weights[1:], strict=True):
        if np.any(weight):
            total += term * weight
    return total
