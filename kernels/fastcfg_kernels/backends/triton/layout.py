"""Layouts of groups and their elements: sizes and strides, so that a kernel reads a view where it lies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

__all__ = ["Layout", "group_layout", "strided_layout"]


@dataclass(frozen=True)
class Layout:
    """Groups of elements of some tensors of one shape; a group is what one sum runs over.

    A group's number, and an element's within its group, is taken apart in mixed radix; tensors have a stride for each
    digit. Neighbouring dimensions that lie in memory like one are one digit.

    Attributes:
        groups: how many there are; per_sample: how many of them a sample has (all of them where samples share one).
        count: elements of a group.
        outer, inner: sizes of a group's and of an element's digits but for the first, which needs none.
        strides: for each tensor those of the group's digits, then of the element's.
    """

    groups: int
    per_sample: int
    count: int
    outer: tuple[int, ...]
    inner: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]


def _digits(dims: Sequence[int], shape: Sequence[int], strides: Sequence[Sequence[int]]) -> list[list[int]]:
    """Dimensions joined where every tensor steps over them as over one: ``[size, stride, stride, …]`` each."""
    found: list[list[int]] = []
    for d in dims:
        if shape[d] == 1:
            continue
        steps = [s[d] for s in strides]
        if found and all(before == step * shape[d] for before, step in zip(found[-1][1:], steps, strict=True)):
            found[-1] = [found[-1][0] * shape[d], *steps]
        else:
            found.append([shape[d], *steps])
    return found or [[1, *(1 for _ in strides)]]


def _memory_order(dims: Sequence[int], shape: Sequence[int], strides: Sequence[Sequence[int]]) -> list[int]:
    """The dimensions in the order that they have in memory, where all tensors agree on one, else as they are."""
    some = [d for d in dims if shape[d] > 1]
    orders = {tuple(sorted(some, key=lambda d: -s[d])) for s in strides}
    if len(orders) > 1 or any(s[d] == 0 for s in strides for d in some):
        return list(dims)
    return list(orders.pop())


def group_layout(tensors: Sequence[Tensor], dims: Sequence[int] | None = None) -> Layout:
    """The layout of tensors ``[B, ...]`` of one shape.

    Args:
        dims: dimensions that sums run over, not the batch's; None is all the others, and none at all is the whole
            tensor, batch and all.

    Raises:
        ValueError: naming ``dims`` if they don't fit the shape.
    """
    return strided_layout(tensors[0].shape, [t.stride() for t in tensors], dims)


def strided_layout(shape: Sequence[int], strides: Sequence[Sequence[int]], dims: Sequence[int] | None = None) -> Layout:
    """:func:`group_layout` of tensors that are known by their strides."""
    rank = len(shape)
    if dims is None:
        reduced = list(range(1, rank))
    elif not dims:
        reduced = list(range(rank))
    else:
        reduced = sorted({d % rank for d in dims if -rank <= d < rank})
        if len(reduced) != len(dims) or 0 in reduced:
            raise ValueError(f"dims: expected distinct dimensions 1 ... {rank - 1} of {list(shape)}, got {tuple(dims)}")
    kept = [d for d in range(rank) if d not in reduced]
    groups = _digits(kept, shape, strides)
    elements = _digits(_memory_order(reduced, shape, strides), shape, strides)
    return Layout(
        groups=math.prod(shape[d] for d in kept),
        per_sample=math.prod(shape[d] for d in kept[1:]),
        count=math.prod(shape[d] for d in reduced),
        outer=tuple(size for size, *_ in groups[1:]),
        inner=tuple(size for size, *_ in elements[1:]),
        strides=tuple(tuple(digit[1 + k] for digit in (*groups, *elements)) for k in range(len(strides))),
    )
