"""A simple machine: how long a launch would take by its instructions, its memory traffic and its longest chain.

An estimate for comparing two kernels, not a prediction. PTX is counted, of which the machine code has other, often
fewer, instructions (moves and address arithmetic vanish); caches, occupancy and replays are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .count import kind_of
from .parse import Instruction, Kernel

if TYPE_CHECKING:
    from .launch import Launch

__all__ = ["H200", "LATENCY", "Estimate", "Machine", "estimate", "longest_chain"]

LATENCY = {
    "float32": 4, "integer": 4, "move": 2, "compare": 4, "convert": 6, "float64": 8, "shuffle": 23, "shared": 29,
    "barrier": 20, "load": 500, "store": 4, "atomic": 700, "parameter": 8, "branch": 8,
}  # fmt: skip
"""Cycles until what an instruction made can be used: orders of magnitude of recent GPUs."""


@dataclass(frozen=True)
class Machine:
    """A device: multiprocessors, warp instructions of each in a cycle, cycles and bytes of memory in a second."""

    multiprocessors: int
    issue: int
    clock: float
    bandwidth: float


H200 = Machine(132, 4, 1.755e9, 4.3e12)


@dataclass(frozen=True)
class Estimate:
    """Seconds by each limit: the largest is the estimate."""

    instructions: float
    traffic: float
    chain: float

    @property
    def seconds(self) -> float:
        return max(self.instructions, self.traffic, self.chain)


def _registers(ins: Instruction) -> tuple[list[str], list[str]]:
    """What an instruction writes and reads."""
    parts = [[r.strip(" {}[]") for r in o.replace("+", ",").split(",")] for o in ins.operands]
    named = [[r for r in part if r.startswith("%")] for part in parts]
    writes = [] if ins.parts[0] in ("st", "red", "stmatrix", "bar", "bra", "ret") else named[0] if named else []
    reads = [r for part in (named[1:] if writes else named) for r in part]
    return writes, [*reads, *([ins.guard] if ins.guard else [])]


def longest_chain(kernel: Kernel, runs: list[int]) -> int:
    """Cycles of the longest chain of instructions that need each other's results, along the runs of one block.

    A barrier needs all accesses to shared memory before it, and accesses after it need the barrier.
    """
    ready: dict[str, int] = {}
    meeting = pending = longest = 0
    for run in runs:
        for ins in kernel.runs[run]:
            kind = kind_of(ins)
            writes, reads = _registers(ins)
            start = max((ready.get(r, 0) for r in reads), default=0)
            if kind in ("shared", "load", "store", "atomic"):
                start = max(start, meeting)
            elif kind == "barrier":
                start = max(start, pending)
            end = start + LATENCY[kind]
            if kind in ("shared", "atomic"):
                pending = max(pending, end)
            elif kind == "barrier":
                meeting = end
            longest = max(longest, end)
            for register in writes:
                ready[register] = end
    return longest


def estimate(launch: Launch, machine: Machine = H200) -> Estimate:
    """The time of a launch that was run with ``count``."""
    counts = launch.counts
    waves = -(-launch.blocks // machine.multiprocessors)
    busiest = sum(counts.instructions().values()) * waves / launch.blocks
    cycles = longest_chain(launch.kernel, counts.trace)
    return Estimate(
        busiest / (machine.issue * machine.clock),
        sum(counts.sectors.values()) * 32 / machine.bandwidth,
        waves * cycles / machine.clock,
    )
