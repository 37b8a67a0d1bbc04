"""Tensors of any strides as rows that native code can read, and results that it can't write in place."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

__all__ = ["as_rows"]


def _dense_sample(tensor: Tensor) -> bool:
    """Return whether a sample's elements fill one stretch of memory, in whatever order of the dimensions."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride()[1:], tensor.shape[1:], strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True


def as_rows(tensors: Sequence[Tensor], elementwise: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Return tensors ``[B, ...]`` as ``[B, N]`` of last stride 1, without a copy where the strides allow it.

    Where all share one dense order of memory (``channels_last``, say), that order is taken: sums do not depend on
    which element comes where.

    Args:
        elementwise: of the same shape, with strides of zero perhaps: they come back as views ``[B, ...]`` whose other
            dimensions are in the order of the rows' elements.
    """
    first = tensors[0]
    batch = first.shape[0]
    if all(t.is_contiguous() for t in tensors):
        return [t.view(batch, -1) for t in tensors], list(elementwise)
    strides = first.stride()[1:]
    if all(t.stride()[1:] == strides for t in tensors) and _dense_sample(first):
        count = first[0].numel()
        order = [0, *sorted(range(1, first.dim()), key=lambda d: first.stride()[d], reverse=True)]
        rows = [t.as_strided((batch, count), (t.stride(0), 1)) for t in tensors]
        return rows, [e.permute(order) for e in elementwise]
    # A reshape may be a view with another last stride, where the batch is the innermost dimension.
    rows = [t.reshape(batch, -1) for t in tensors]
    return [r if r.shape[1] == 1 or r.stride(1) == 1 else r.contiguous() for r in rows], list(elementwise)
