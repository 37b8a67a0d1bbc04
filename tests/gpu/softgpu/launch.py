"""One launch: blocks that take turns, as a schedule says, until all have ended or none can."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from .count import Counts
from .forms import OPEN
from .memory import Fault, Memory
from .parse import Kernel, parse
from .races import Shadow
from .schedules import Schedule, fair
from .threads import Block, Unit
from .translate import BARRIER, translate

__all__ = ["Deadlock", "Finding", "Launch", "compiled"]


class Deadlock(Fault):
    """The blocks wait for something that none of them will do."""


@dataclass(frozen=True)
class Finding:
    """A fault that does not end a launch: what, and the instruction it was met at."""

    what: str
    line: int
    code: str

    def __str__(self) -> str:
        return f"{self.what}: line {self.line}: {self.code}"


@lru_cache(maxsize=512)
def compiled(text: str) -> tuple[Kernel, Callable[[Any], Iterator[str]]]:
    """PTX parsed and translated."""
    kernel = parse(text)
    return kernel, translate(kernel)


class Launch:
    """A launch of a kernel.

    Args:
        text: PTX of one kernel.
        grid: blocks in x, y and z.
        parameters: the bits of each parameter of the PTX, in order.
        memory: what pointers may point to.
        shared: bytes of shared memory of a block.
        resident: how many blocks the device holds at once; the next ones start where one has ended.
        cooperative: whether all of the grid has to be there at once.
        schedule: who goes next; see :mod:`.schedules`.
        warps: whether the warps of a block take turns too, between its barriers; slower.
        spread: whether results that the instruction set leaves open are not the nearest ones.
        count: whether accesses to memory are counted; see :mod:`.count`.
        patience: turns of the schedule in which nothing changes, until the blocks count as deadlocked.
        seed: of the schedule, and of what memory and registers hold before they are written.
    """

    def __init__(
        self,
        text: str,
        grid: tuple[int, int, int],
        parameters: list[int],
        memory: Memory,
        *,
        shared: int,
        resident: int = 132,
        cooperative: bool = False,
        schedule: Schedule = fair,
        warps: bool = False,
        spread: bool = False,
        count: bool = False,
        patience: int = 20_000,
        seed: int = 0,
    ) -> None:
        self.kernel, self.program = compiled(text)
        if len(parameters) != len(self.kernel.parameters):
            raise Fault(f"{len(parameters)} arguments for the {len(self.kernel.parameters)} of {self.kernel.name}")
        self.grid, self.blocks = grid, grid[0] * grid[1] * grid[2]
        if cooperative and self.blocks > resident:
            raise Fault(f"a cooperative launch of {self.blocks} blocks on a device that holds {resident}")
        names = [name for _, name in self.kernel.parameters]
        self.parameters: Mapping[str, int] = dict(zip(names, parameters, strict=True))
        self.memory, self.shared, self.resident = memory, shared, resident
        self.schedule, self.warps, self.spread, self.patience = schedule, warps, spread, patience
        self.random, self.noise = np.random.default_rng(seed), np.random.default_rng(seed + 1)
        self.shadow = Shadow(len(memory.bytes), self.kernel.threads, private=False)
        self.published: dict[int, Any] = {}
        self.counts = Counts(self.kernel, count)
        self.findings: Counter[Finding] = Counter()
        self.changed, self.turns = False, 0

    def find(self, what: str, line: int) -> None:
        """Note a fault."""
        self.findings[Finding(what, line, self.kernel.text.split("\n")[line - 1].strip())] += 1

    @property
    def open_forms(self) -> Counter[str]:
        """Instructions that ran whose result the instruction set leaves open."""
        return Counter({form: n for form, n in self.counts.forms().items() if form in OPEN})

    def run(self) -> None:
        """Run to the end and bring the results to the arguments.

        Raises:
            Fault: for what would end a launch, or what is not bounded by the arguments.
            Deadlock: if the blocks wait for ever.
        """
        waiting = self.random.permutation(self.blocks).tolist()
        live: list[Block] = []
        still = 0
        with np.errstate(all="ignore"):
            while waiting or live:
                while waiting and len(live) < self.resident:
                    live.append(self._start(waiting.pop()))
                block = self.schedule(live, self)
                self.changed = False
                ended = self._step(block)
                self.turns += 1
                if ended:
                    live.remove(block)
                still = 0 if self.changed or ended else still + 1
                if still > self.patience:
                    raise Deadlock(f"{len(live)} blocks wait, and in {still} turns nothing has changed")
        self.memory.copy_back()

    def _start(self, number: int) -> Block:
        block = Block(self, number)
        count = 32 if self.warps else block.threads
        block.units = [Unit(block, first, count) for first in range(0, block.threads, count)]
        for unit in block.units:
            unit.steps = self.program(unit)
        return block

    def _step(self, block: Block) -> bool:
        """Let one unit of a block go on until it yields; whether the block has ended."""
        ready = [unit for unit in block.units if unit.state == "ready"]
        if not ready:
            if any(unit.state == "ended" for unit in block.units):
                raise Fault("some threads wait at a barrier and the others have ended")
            block.meet()
            for unit in block.units:
                unit.state = "ready"
            return False
        unit = ready[0] if len(ready) == 1 else ready[self.random.integers(len(ready))]
        try:
            if next(unit.steps) == BARRIER:
                unit.state = "waits"
        except StopIteration:
            unit.state = "ended"
        return all(unit.state == "ended" for unit in block.units)
