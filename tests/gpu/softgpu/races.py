"""Who touched which byte last, and whether what comes now is ordered after it: the happens-before relation.

Time is counted in barriers. A block's ``epoch`` grows by one when its threads meet, a warp's own count when its lanes
do; an access of the same block is ordered after another if it comes in a later epoch (or, in one warp, after a meeting
of the warp). Between blocks only release and acquire order: a block's ``clock`` says of each other block which epochs
came before. A byte keeps its last writer, and its readers since: one thread, or as wide a set as has read it.

A shuffle orders no memory, but its lanes wait for each other: what one has read before it, another may write after it.
Reads and the writes after them therefore count a warp's shuffles too.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["EPOCH", "Shadow"]

Array = NDArray[Any]
EPOCH = 14
"""Bits of a time that count a warp's meetings; the 17 above count the block's epochs."""

_THREAD, _WARP, _BLOCK, _GRID = range(4)


class _Block(Protocol):
    number: int
    start: int
    clock: Array


class Shadow:
    """Last accesses to some bytes.

    Args:
        size: bytes; threads: of a block; private: whether one block alone can reach them.
    """

    def __init__(self, size: int, threads: int, private: bool) -> None:
        self.threads, self.private = threads, private
        self.writer = np.full(size, -1, np.int32)
        self.written = np.full(size, -1, np.int32)
        self.reader = np.full(size, -1, np.int32)
        self.read_at = np.full(size, -1, np.int32)
        self.width = np.zeros(size, np.int8)
        self.any_write = False
        self.log: list[tuple[Array, int, int]] = []

    def _ordered(self, other: Array, then: Array, width: Array | int, who: Array, when: Array, block: _Block) -> Array:
        """Whether accesses by ``other`` (a set of threads as wide as ``width``) at ``then`` come before now."""
        owner = other // self.threads
        own = owner == block.number
        before = np.where(own, then < block.start, block.clock[np.maximum(owner, 0)] > (then >> EPOCH))
        warp = own & (other // 32 == who // 32) & (then < when) & (np.less_equal(width, _WARP))
        ordered: Array = (other < 0) | before | warp | ((other == who) & np.equal(width, _THREAD))
        return ordered & np.less(width, _GRID)

    def read(self, at: Array, who: Array, when: Array, met: Array, block: _Block) -> bool:
        """Note reads of bytes ``at [n, size]`` by threads ``who [n]``; whether one races with a write.

        Args:
            when: the threads' times; met: the same with shuffles counted.
        """
        who, when, met = who[:, None], when[:, None], met[:, None]
        raced = False
        if self.any_write:
            then = self.written[at]
            if not (self.private and then.max(initial=-1) < block.start):
                raced = not self._ordered(self.writer[at], then, _THREAD, who, when, block).all()
        self._note_readers(at, who, met, block)
        return raced

    def _note_readers(self, at: Array, who: Array, when: Array, block: _Block) -> None:
        before, since = self.reader[at], self.read_at[at]
        old = before >= 0
        if self.private:  # Readers of an earlier epoch are done.
            old &= since >= block.start
        width = np.where(old, self.width[at], _THREAD).astype(np.int8)
        if old.any():
            width = np.maximum(width, np.where(old, self._apart(before, who), 0)).astype(np.int8)
        who_too = np.broadcast_to(who, at.shape)
        self.reader[at] = who_too
        self.read_at[at] = np.maximum(when, np.where(old, since, -1))
        self.width[at] = width
        last = self.reader[at]
        if (shared := last != who_too).any():  # Lanes of this very access that read one byte.
            wider = np.maximum(width, self._apart(last, who_too))
            for step in (_WARP, _BLOCK, _GRID):
                self.width[at[shared & (wider >= step)]] = step
        if not self.private:
            self.log.append((at.ravel(), block.number, block.start >> EPOCH))

    def _apart(self, a: Array, b: Array) -> Array:
        """The width of a set that holds both threads."""
        block = (a // self.threads != b // self.threads) * 1
        return (a != b) * 1 + (a // 32 != b // 32) * 1 + block

    def write(self, at: Array, who: Array, when: Array, met: Array, changed: Array, block: _Block) -> str:
        """Note writes; what they race with: ``""``, ``"read"`` or ``"write"``.

        Args:
            when, met: as :meth:`read` has them.
            changed: of the same shape as ``at``: bytes that get another value. Two threads may write the same one:
                where there are fewer elements than threads, Triton lets several do the same.
        """
        who, when, met = who[:, None], when[:, None], met[:, None]
        raced = ""
        if changed.any():
            ordered = self._ordered(self.writer[at], self.written[at], _THREAD, who, when, block)
            raced = "write" if (changed & ~ordered).any() else ""
        reader = self.reader[at]
        if (reader >= 0).any():
            width = self.width[at]
            wide = width == _GRID
            ordered = self._ordered(reader, self.read_at[at], width, who, met, block) | wide
            if not ordered.all() or (wide.any() and self._logged(at[wide], block)):
                raced = "read"
        self.any_write = True
        self.writer[at], self.written[at] = who, when
        self.reader[at], self.width[at] = -1, _THREAD
        return raced

    def _logged(self, at: Array, block: _Block) -> bool:
        """Whether bytes that several blocks have read were read by one that is not ordered before now."""
        for read, number, epoch in self.log:
            before = epoch < (block.start >> EPOCH) if number == block.number else block.clock[number] > epoch
            if not before and np.isin(at, read).any():
                return True
        return False
