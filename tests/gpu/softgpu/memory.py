"""Global memory of a launch: the bytes of the arguments' own elements, and no others.

The bytes are copied in before a launch and back after it. What lies between the elements of a strided tensor, or
beyond a tensor, does not exist here: an access to it is a fault, however much memory the process has there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Buffer", "Fault", "Memory", "element_spans"]

Array = NDArray[Any]


class Fault(RuntimeError):
    """What a GPU would punish, or leave undefined."""


@dataclass
class Buffer:
    """Elements of an argument.

    Attributes:
        name: for messages.
        spans: ``[n, 2]`` addresses, start and end of each stretch of bytes; disjoint and rising.
        base: the address of ``storage[0]``; storage: the bytes that they lie in.
        unset: for each byte of the spans, whether nothing has been written there yet.
    """

    name: str
    spans: Array
    base: int
    storage: Array
    unset: Array | None = None

    def index(self) -> Array | slice:
        """Where the spans' bytes are in the storage."""
        return _bytes_of(self.spans - self.base)


def _bytes_of(spans: Array) -> Array | slice:
    if len(spans) == 1:
        return slice(int(spans[0, 0]), int(spans[0, 1]))
    sizes = spans[:, 1] - spans[:, 0]
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    return np.repeat(spans[:, 0] - starts, sizes) + np.arange(sizes.sum())


def _merged(spans: Array) -> Array:
    """Rising, disjoint spans of the same bytes."""
    spans = spans[np.argsort(spans[:, 0], kind="stable")]
    ends = np.maximum.accumulate(spans[:, 1])
    first = np.concatenate([[True], spans[1:, 0] > ends[:-1]])
    last = np.concatenate([first[1:], [True]])
    return np.stack([spans[first, 0], ends[last]], 1)


def element_spans(base: int, shape: tuple[int, ...], strides: tuple[int, ...], size: int) -> Array:
    """Spans of the elements of a strided array; strides and ``size``, of an element, in bytes."""
    starts = np.array([base], np.int64)
    width = size
    for count, stride in sorted(zip(shape, strides, strict=True), key=lambda pair: abs(pair[1])):
        if count == 0:
            return np.empty((0, 2), np.int64)
        if count == 1 or stride == 0:
            continue
        if stride == width and len(starts) == 1:
            width *= count
        else:
            starts = (starts[:, None] + np.arange(count) * stride).ravel()
    return _merged(np.stack([starts, starts + width], 1))


class Memory:
    """All arguments of a launch."""

    def __init__(self, buffers: list[Buffer]) -> None:
        self.buffers = [b for b in buffers if len(b.spans)]
        spans = [b.spans for b in self.buffers] or [np.empty((0, 2), np.int64)]
        self.spans = _merged(np.concatenate(spans)) if self.buffers else spans[0]
        sizes = self.spans[:, 1] - self.spans[:, 0]
        self.first = np.concatenate([[0], np.cumsum(sizes)])[:-1].astype(np.int64)
        self.bytes = np.zeros(int(sizes.sum()), np.uint8)
        self.unset = np.zeros(len(self.bytes), bool)
        for buffer in self.buffers:
            at = self._inside(buffer)
            self.bytes[at] = buffer.storage[buffer.index()]
            if buffer.unset is not None:
                self.unset[at] = buffer.unset

    def _inside(self, buffer: Buffer) -> Array | slice:
        row = np.searchsorted(self.spans[:, 0], buffer.spans[:, 0], "right") - 1
        return _bytes_of(buffer.spans + (self.first - self.spans[:, 0])[row][:, None])

    def copy_back(self) -> None:
        """Bring what the launch has changed to the arguments."""
        for buffer in self.buffers:
            index, found = buffer.index(), self.bytes[self._inside(buffer)]
            if not np.array_equal(buffer.storage[index], found):
                buffer.storage[index] = found

    def find(self, addresses: Array, size: int, what: str) -> Array:
        """Positions ``[n, size]`` in :attr:`bytes` of accesses of ``size`` bytes.

        Raises:
            Fault: for one that is not aligned or not all within elements of an argument.
        """
        addresses = addresses.astype(np.int64)
        if (addresses % size).any():
            raise Fault(f"{what}: an address that is no multiple of {size}")
        row = np.searchsorted(self.spans[:, 0], addresses, "right") - 1
        inside = (row >= 0) & (addresses + size <= self.spans[row, 1])
        if not inside.all():
            raise Fault(f"{what}: {self._describe(int(addresses[np.argmin(inside)]), size)}")
        start = addresses - self.spans[row, 0] + self.first[row]
        return start[:, None] + np.arange(size)

    def _describe(self, address: int, size: int) -> str:
        def away(buffer: Buffer) -> int:
            low, high = int(buffer.spans[0, 0]), int(buffer.spans[-1, 1])
            return max(low - address, address + size - high, 0)

        if not self.buffers:
            return "an address, and the kernel has no tensor"
        near = min(self.buffers, key=away)
        if away(near) == 0:
            return f"{size} bytes that are not all elements of {near.name}, within its strides"
        side = "before" if address < near.spans[0, 0] else "past the end of"
        return f"{away(near)} bytes {side} {near.name}, out of bounds"
