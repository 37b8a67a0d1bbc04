"""Rings of records on a device, written by copies on it and read by copies from it.

A ring has fixed addresses, so that a CUDA graph may write into it, and a position on the device that is moved on after
a record is written. A reader copies the position, the ring and the position again, on a stream of its own: records
between the two positions, less those that a write in flight may have begun to replace, are whole, whatever else
happens meanwhile. Nothing waits for anything.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from fastcfg_kernels.backends.torch.tiles import stats_dtype
from numpy.typing import NDArray
from torch import Tensor

from .figures import FIGURES
from .records import Records

__all__ = ["GraphRing", "Ring", "Taken", "Write"]

Names = tuple[str, ...]

MARKS = 3
"""What a captured write notes beside the figures: the step, the row of the batch, and which figures these are."""


@dataclass(frozen=True)
class Write:
    """One write to a ring.

    Attributes:
        names: of the figures; groups: how many records of a row a sample has.
        call: number of the call; step: one for all samples, or one each; ids: of the samples.
    """

    names: Names
    groups: int
    call: int
    step: int | Sequence[int] | None
    ids: Sequence[Hashable] | None


class Placed(NamedTuple):
    """A write, and the numbers of its records in the ring: ``first … end - 1``."""

    first: int
    end: int
    write: Write


class Taken(NamedTuple):
    """Records from a ring, and the number of the first of them."""

    first: int
    records: Records

    @property
    def end(self) -> int:
        return self.first + len(self.records)

    def since(self, number: int) -> Records:
        """The records from a number on; ``lost`` says how many of these are gone."""
        part = self.records[max(number - self.first, 0) :]
        return replace(part, lost=max(self.first - number, 0))


@dataclass
class _Copy:
    """A copy of a ring on the host, perhaps still on its way there."""

    before: Tensor
    figures: Tensor
    marks: Tensor
    after: Tensor
    stream: Any = None
    done: Any = None
    pending: bool = False


class Ring:
    """Records that Python's own calls write, so that what they are about stays on the host.

    Args:
        capacity: records that it holds.
    """

    def __init__(self, device: torch.device, capacity: int) -> None:
        self.device, self.capacity = device, capacity
        self.asynchronous = device.type == "cuda"  # A reader may meet a write half done.
        self.figures = torch.zeros(capacity, len(FIGURES), dtype=stats_dtype(device), device=device)
        self.marks = torch.zeros(capacity, MARKS, dtype=torch.int64, device=device)
        self.position = torch.zeros((), dtype=torch.int64, device=device)
        self.widest = 0
        self.total = 0
        self._placed: deque[Placed] = deque()
        self._copy = self._host_copy()

    def write(self, figures: Tensor, write: Write) -> None:
        """Copy figures ``[G, F]`` into the ring; the caller sees to it that writes come one after the other."""
        size, width = figures.shape
        kept = min(size, self.capacity)
        start = (self.total + size - kept) % self.capacity
        head = min(kept, self.capacity - start)
        if head == size:  # Nearly always: no views of what is whole.
            self.figures[start : start + size, :width].copy_(figures)
        else:
            figures = figures[size - kept :]
            self.figures[start : start + head, :width].copy_(figures[:head])
            self.figures[: kept - head, :width].copy_(figures[head:])
        self.widest = max(self.widest, kept)
        self._placed.append(Placed(self.total, self.total + size, write))
        self.total += size
        if self.asynchronous:
            self.position.fill_(self.total)
        while self._placed[0].end <= self.total - self.capacity:
            self._placed.popleft()

    def settle(self) -> None:
        """Bring the position up to date, where no device does."""
        self.position.fill_(self.total)

    def placed(self) -> list[Placed]:
        """The writes of which records may be left; the caller sees to it that none comes meanwhile."""
        return list(self._placed)

    def _host_copy(self) -> _Copy:
        pinned = self.device.type == "cuda"

        def like(tensor: Tensor) -> Tensor:
            return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)

        copy = _Copy(like(self.position), like(self.figures), like(self.marks), like(self.position))
        if pinned:
            copy.stream, copy.done = torch.cuda.Stream(self.device), torch.cuda.Event()  # type: ignore[no-untyped-call]
            copy.stream.wait_stream(torch.cuda.current_stream(self.device))  # The ring has to be there first.
        return copy

    def request(self) -> None:
        """Queue a copy to the host, unless one is on its way."""
        copy = self._copy
        if copy.pending:
            return
        if not self.asynchronous:
            self.settle()
        with torch.cuda.stream(copy.stream):  # No stream, no effect.
            for to, of in (
                (copy.before, self.position),
                (copy.figures, self.figures),
                (copy.marks, self.marks),
                (copy.after, self.position),
            ):
                to.copy_(of, non_blocking=True)
            if copy.done is not None:
                copy.done.record(copy.stream)
        copy.pending = True

    def arrived(self, wait: bool = False) -> bool:
        """Whether the copy that was requested is there."""
        copy = self._copy
        if copy.pending and copy.done is not None:
            if not wait:
                return bool(copy.done.query())
            copy.done.synchronize()
        return copy.pending

    def take(self, placed: Sequence[Placed]) -> Taken:
        """The records of a copy that has arrived.

        Args:
            placed: :meth:`placed`, asked for after the copy was requested.
        """
        copy = self._copy
        copy.pending = False
        end, after = int(copy.before), int(copy.after)
        in_flight = self.widest if self.asynchronous else 0
        begin = max(0, min(after + in_flight - self.capacity, end), self._oldest(placed))
        places = np.arange(begin, max(begin, end)) % self.capacity
        return Taken(begin, self._records(begin, copy.figures.numpy()[places], copy.marks.numpy()[places], placed))

    def _oldest(self, placed: Sequence[Placed]) -> int:
        """The first record of which it is known what it is."""
        return placed[0].first if placed else self.total

    def _records(
        self, begin: int, figures: NDArray[np.floating[Any]], marks: NDArray[np.int64], placed: Sequence[Placed]
    ) -> Records:
        end = begin + len(figures)
        found = Records.empty(len(figures))
        held = [p for p in placed if p.first < end and p.end > begin]
        if not held:
            return found
        ids: list[Hashable | None] = [None] * len(figures)
        names: dict[Names, int] = {}
        kinds, starts, groups, calls, steps = [], [], [], [], []
        for first, _, write in held:
            kinds.append(names.setdefault(write.names, len(names)))
            starts.append(first)
            groups.append(write.groups)
            calls.append(write.call)
            steps.append(write.step if isinstance(write.step, int) else -1)
        # One write's records follow another's: none is missing in between.
        numbers = np.arange(begin, end)
        of = np.searchsorted(starts, numbers, side="right") - 1
        rows, group = numbers - np.array(starts)[of], np.array(groups)[of]
        found.call[:] = np.array(calls)[of]
        found.step[:] = np.array(steps)[of]
        found.sample[:] = rows // group
        found.group[:] = np.where(group > 1, rows % group, -1)
        kind = np.array(kinds)[of]
        for these, number in names.items():
            at = slice(None) if len(names) == 1 else np.flatnonzero(kind == number)
            for k, name in enumerate(these):
                found.figures[name][at] = figures[at, k]
        for first, last, write in held:
            each = None if isinstance(write.step, int) else write.step
            if each is None and write.ids is None:
                continue
            part = slice(max(first - begin, 0), min(last, end) - begin)
            samples = found.sample[part]
            if each is not None:
                found.step[part] = np.broadcast_to(each, -(-(last - first) // write.groups))[samples]
            if write.ids is not None:
                ids[part] = [write.ids[k] for k in samples.tolist()]
        return replace(found, ids=tuple(ids))


class GraphRing(Ring):
    """Records that captured launches write: each replay moves the position on, and no Python runs.

    The step is what :attr:`step` holds on the device at a replay.
    """

    def __init__(self, device: torch.device, capacity: int) -> None:
        super().__init__(device, capacity)
        self.step = torch.full((), -1, dtype=torch.int64, device=device)
        self._kinds: list[Names] = []

    def write(self, figures: Tensor, write: Write) -> None:
        size, width = figures.shape
        if size > self.capacity:
            raise ValueError(f"capacity: expected room for the {size} records of a captured call, got {self.capacity}")
        self.widest = max(self.widest, size)
        if write.names not in self._kinds:
            self._kinds.append(write.names)
        rows = torch.arange(size, device=self.device)
        index = (self.position + rows) % self.capacity
        self.figures[:, :width].index_copy_(0, index, figures)
        kind = torch.full_like(rows, self._kinds.index(write.names))
        self.marks.index_copy_(0, index, torch.stack([self.step.expand(size), rows, kind], 1))
        self.position.add_(size)

    def settle(self) -> None:
        """The replays have."""

    def _oldest(self, placed: Sequence[Placed]) -> int:
        return 0

    def _records(
        self, begin: int, figures: NDArray[np.floating[Any]], marks: NDArray[np.int64], placed: Sequence[Placed]
    ) -> Records:
        found = Records.empty(len(figures))
        found.step[:] = marks[:, 0]
        found.sample[:] = marks[:, 1]
        for kind, names in enumerate(self._kinds):
            rows = marks[:, 2] == kind
            for k, name in enumerate(names):
                found.figures[name][rows] = figures[rows, k]
        return found
