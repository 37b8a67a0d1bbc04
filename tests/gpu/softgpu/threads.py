"""A block of threads, and units of it that execute together: what a translated program does beside arithmetic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .memory import Fault
from .races import EPOCH, Shadow
from .translate import SHARED_WINDOW

if TYPE_CHECKING:
    from .launch import Launch

__all__ = ["Block", "Unit"]

Array = NDArray[Any]


class Block:
    """A block: its shared memory, and what of the launch's history it comes after.

    Attributes:
        start: the time at which the current epoch began; clock: for each block, the epochs that came before now.
        pending: clocks that its threads acquired; all of them know once they have met.
    """

    def __init__(self, launch: Launch, number: int) -> None:
        self.launch, self.number, self.threads, self.grid = launch, number, launch.kernel.threads, launch.grid
        x, y, _ = launch.grid
        self.index = (number % x, number // x % y, number // (x * y))
        self.shared = launch.noise.integers(0, 256, launch.shared, dtype=np.uint8)
        self.shadow = Shadow(launch.shared, self.threads, private=True)
        self.start = 1 << EPOCH
        self.clock = np.zeros(launch.blocks, np.int64)
        self.pending = np.zeros(launch.blocks, np.int64)
        self.units: list[Unit] = []

    def meet(self) -> None:
        """All threads have come to a barrier."""
        self.start = ((self.start >> EPOCH) + 1) << EPOCH
        self.clock = np.maximum(self.clock, self.pending)
        if self.start >> EPOCH >= 1 << (31 - EPOCH):
            raise Fault("a block has more barriers than are counted")
        for unit in self.units:
            unit.now[:] = unit.met[:] = self.start

    def released(self) -> Array:
        """The clock that a release makes known: all before the last barrier."""
        clock = self.clock.copy()
        clock[self.number] = self.start >> EPOCH
        return clock


class Unit:
    """Threads that execute together: all of a block, or one warp of it.

    Attributes:
        thread: numbers in the block; everywhere: in the whole launch; now: the time of each; met: the same with
            shuffles counted.
        spread: whether results that the instruction set leaves open are not the nearest ones.
    """

    def __init__(self, block: Block, first: int, count: int) -> None:
        self.block, self.launch, self.count = block, block.launch, count
        self.thread = np.arange(first, first + count, dtype=np.uint32)
        self.everywhere = self.thread.astype(np.int32) + block.number * block.threads
        self.lane = np.arange(count)
        self.now, self.met = np.full((2, count), block.start, np.int32)
        self.spread = self.launch.spread
        self.state = "ready"
        self._garbage: dict[Any, Array] = {}

    def garbage(self, kind: Any) -> Array:
        """What a register holds before anything is written to it."""
        if kind not in self._garbage:
            high = 2 if kind is np.bool_ else np.iinfo(kind).max
            self._garbage[kind] = self.launch.noise.integers(0, high, self.count, dtype=kind)
        return self._garbage[kind]

    def same(self, value: int) -> Array:
        return np.full(self.count, value, np.uint32)

    def parameter(self, name: str, kind: Any) -> Array:
        bits = np.array([self.launch.parameters[name]], np.uint64)
        size = np.dtype(kind).itemsize
        return np.full(self.count, bits.view(np.uint8)[:size].view(kind)[0])

    def enter(self, run: int) -> None:
        self.launch.counts.enter(run, self.count // 32, self.block.number == 0 and self.thread[0] == 0)

    def agree(self, where: Array, line: int) -> bool:
        """Whether to branch; all threads of the unit go the same way."""
        if where.all():
            return True
        if where.any():
            raise Fault(f"line {line}: threads part ways at a branch, which this interpreter does not follow")
        return False

    def warp_barrier(self) -> None:
        self.now += 1
        self._meet()

    def _meet(self) -> None:
        self.met += 1
        if self.met[0] >= self.block.start + (1 << EPOCH):
            raise Fault(f"a warp meets {1 << EPOCH} times between two barriers, more than is counted")

    def _times(self, mask: Array | None) -> tuple[Array, Array]:
        return (self.now, self.met) if mask is None else (self.now[mask], self.met[mask])

    # Between lanes of a warp --------------------------------------------------------------------------------------

    def shuffle(self, x: Array, by: Array, how: str) -> Array:
        self._meet()
        lane, warp = self.lane & 31, self.lane & ~31
        by = by.astype(np.int64)
        if how == "bfly":
            source = warp | (lane ^ (by & 31))
        elif how == "idx":
            source = warp | (by & 31)
        elif how == "up":
            source = np.where(lane - by >= 0, self.lane - by, self.lane)
        else:
            source = np.where(lane + by <= 31, self.lane + by, self.lane)
        return x[source]

    def reduce_warps(self, operation: Any, x: Array, members: Array) -> Array:
        if (members != 0xFFFFFFFF).any():
            raise Fault("redux.sync of some lanes only, which this interpreter does not know")
        self._meet()
        return np.repeat(operation.reduce(x.reshape(-1, 32), 1, dtype=x.dtype), 32)

    # Shared memory ------------------------------------------------------------------------------------------------

    def _shared(self, address: Array, mask: Array | None, size: int, line: int) -> tuple[Array, Array]:
        at, who = address.astype(np.int64) - SHARED_WINDOW, self.everywhere
        if mask is not None:
            at, who = at[mask], who[mask]
        if len(at) and (at.min() < 0 or at.max() + size > len(self.block.shared)):
            raise Fault(f"line {line}: out of bounds of the block's {len(self.block.shared)} bytes of shared memory")
        if (at % size).any():
            raise Fault(f"line {line}: shared memory at an address that is no multiple of {size}")
        self.launch.counts.shared(at + SHARED_WINDOW, who, size, line)
        return at[:, None] + np.arange(size), who

    def load_shared(self, address: Array, mask: Array | None, size: int, line: int) -> Array:
        at, who = self._shared(address, mask, size, line)
        block = self.block
        if len(at):
            if block.shadow.read(at, who, *self._times(mask), block):
                self.launch.find("shared memory is read while another thread writes it", line)
            if (block.shadow.writer[at] < 0).any():
                self.launch.find("shared memory is read before anything was written there", line)
        return self._spread_out(block.shared[at], mask)

    def _spread_out(self, data: Array, mask: Array | None) -> Array:
        """What the threads of a mask have loaded as an array of all threads, zeros elsewhere."""
        if mask is None:
            return data
        out = np.zeros((self.count, data.shape[1]), np.uint8)
        out[mask] = data
        return out

    def store_shared(self, address: Array, mask: Array | None, data: Array, line: int) -> None:
        at, who = self._shared(address, mask, data.shape[1], line)
        if not len(at):
            return
        data, block = data if mask is None else data[mask], self.block
        raced = block.shadow.write(at, who, *self._times(mask), block.shared[at] != data, block)
        if raced:
            self.launch.find(f"shared memory is written without a barrier after another thread's {raced}", line)
        block.shared[at] = data
        if (block.shared[at] != data).any():
            self.launch.find("threads of one store write different values to one place of shared memory", line)

    def load_matrices(self, address: Array, many: int, transposed: bool, line: int) -> list[Array]:
        """``ldmatrix``: lane ``8 k + r`` of a warp has the address of row ``r`` of matrix ``k``."""
        found = []
        for k in range(many):
            rows = (self.lane & 31) // 8 == k
            data = self.load_shared(address, rows, 16, line)[rows].view(np.uint16).reshape(-1, 8, 8)
            data = data.transpose(0, 2, 1) if transposed else data
            found.append(np.ascontiguousarray(data).reshape(-1, 64).view(np.uint32).ravel())
        return found

    def store_matrices(self, address: Array, registers: tuple[Array, ...], transposed: bool, line: int) -> None:
        for k, register in enumerate(registers):
            rows = (self.lane & 31) // 8 == k
            data = np.ascontiguousarray(register).view(np.uint16).reshape(-1, 8, 8)
            data = np.ascontiguousarray(data.transpose(0, 2, 1) if transposed else data)
            whole = np.zeros((self.count, 16), np.uint8)
            whole[rows] = data.view(np.uint8).reshape(-1, 16)
            self.store_shared(address, rows, whole, line)

    # Global memory ------------------------------------------------------------------------------------------------

    def _global(self, address: Array, mask: Array | None, size: int, what: str, line: int) -> tuple[Array, Array]:
        who = self.everywhere
        if mask is not None:
            address, who = address[mask], who[mask]
        at = self.launch.memory.find(address, size, f"line {line}: a {what}")
        self.launch.counts.global_access(what, address, who, size, line)
        return at, who

    def load_global(self, address: Array, mask: Array | None, size: int, order: str, scope: str, line: int) -> Array:
        at, who = self._global(address, mask, size, "load", line)
        launch = self.launch
        if len(at):
            if order == "weak" and launch.shadow.read(at, who, *self._times(mask), self.block):
                launch.find("global memory is read while another thread writes it", line)
            if launch.memory.unset[at].any():
                launch.find("global memory is read before anything was written there", line)
            if order == "acquire":
                self._acquire(at[:, 0], scope)
        return self._spread_out(launch.memory.bytes[at], mask)

    def store_global(self, address: Array, mask: Array | None, data: Array, order: str, scope: str, line: int) -> None:
        at, who = self._global(address, mask, data.shape[1], "store", line)
        if not len(at):
            return
        data, launch = data if mask is None else data[mask], self.launch
        changed = launch.memory.bytes[at] != data
        if order == "weak":
            raced = launch.shadow.write(at, who, *self._times(mask), changed, self.block)
            if raced:
                launch.find(f"global memory is written while another thread may {raced} it", line)
        if order == "release":
            self._release(at[:, 0], scope)
        launch.memory.bytes[at] = data
        launch.memory.unset[at] = False
        if (launch.memory.bytes[at] != data).any():
            launch.find("threads of one store write different values to one place of global memory", line)
        launch.changed |= bool(changed.any())

    def atomic(
        self,
        name: str,
        address: Array,
        mask: Array | None,
        values: tuple[Array, ...],
        order: str,
        scope: str,
        line: int,
    ) -> Array:
        """Atomic operations on 32 bits, one thread after the other; what was there before each."""
        at, _ = self._global(address, mask, 4, "atomic", line)
        old = np.zeros(self.count, np.uint32)
        lanes = np.arange(self.count) if mask is None else np.flatnonzero(mask)
        if order in ("release", "acq_rel"):
            self._release(at[:, 0], scope)
        memory = self.launch.memory
        for i, lane in enumerate(lanes):
            word = memory.bytes[at[i]].view(values[0].dtype)[0]
            operands = [int(v[lane]) for v in values]
            new = {
                "add": lambda a, b: a + b, "exch": lambda a, b: b, "cas": lambda a, b, c=0: c if a == b else a,
                "or": lambda a, b: a | b, "and": lambda a, b: a & b, "xor": lambda a, b: a ^ b, "min": min, "max": max,
            }[name](int(word), *operands) & 0xFFFFFFFF  # fmt: skip
            self.launch.changed |= new != int(word) & 0xFFFFFFFF
            memory.bytes[at[i]] = np.array([new], np.uint32).view(np.uint8)
            memory.unset[at[i]] = False
            old[lane] = int(word) & 0xFFFFFFFF
        if order in ("acquire", "acq_rel"):
            self._acquire(at[:, 0], scope)
        return old

    def _release(self, places: Array, scope: str) -> None:
        if scope in ("gpu", "sys"):
            for place in set(places.tolist()):
                known = self.launch.published.get(place)
                clock = self.block.released()
                self.launch.published[place] = clock if known is None else np.maximum(known, clock)

    def _acquire(self, places: Array, scope: str) -> None:
        if scope in ("gpu", "sys"):
            for place in set(places.tolist()):
                if place in self.launch.published:
                    self.block.pending = np.maximum(self.block.pending, self.launch.published[place])
