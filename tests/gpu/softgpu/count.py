"""What a launch did, counted: instructions by kind, sectors of global memory, bank conflicts, barriers, shuffles."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .forms import FORMS
from .parse import Instruction, Kernel

__all__ = ["Counts", "kind_of"]

Array = NDArray[Any]

_KINDS = {
    "bra": "branch", "ret": "branch", "bar": "barrier", "barrier": "barrier", "shfl": "shuffle", "lop3": "integer",
    "mov": "move", "atom": "atomic", "red": "atomic", "ldmatrix": "shared", "stmatrix": "shared",
}  # fmt: skip


def kind_of(ins: Instruction) -> str:
    """The class that an instruction counts in."""
    if ins.opcode in FORMS:
        return FORMS[ins.opcode].kind
    base = ins.parts[0]
    if base in ("ld", "st"):
        if "param" in ins.parts:
            return "parameter"
        return "shared" if any(p.startswith("shared") for p in ins.parts) else {"ld": "load", "st": "store"}[base]
    return _KINDS[base]


class Counts:
    """Counts of one launch; instructions in threads of a warp together, as the hardware issues them.

    Args:
        memory: whether accesses to memory are counted too, which takes as long as all the rest.
    """

    def __init__(self, kernel: Kernel, memory: bool) -> None:
        self._kernel, self._memory = kernel, memory
        self.runs: Counter[int] = Counter()
        self.trace: list[int] = []
        self.requests: Counter[str] = Counter()
        self.sectors: Counter[str] = Counter()
        self.least: Counter[str] = Counter()
        self.wavefronts = 0
        self.least_wavefronts = 0

    def enter(self, run: int, warps: int, first: bool) -> None:
        """Note that warps begin a run; ``first``: whether of block 0, whose way is kept."""
        self.runs[run] += warps
        if first and self._memory:
            self.trace.append(run)

    def instructions(self) -> Counter[str]:
        """Warp instructions by kind."""
        found: Counter[str] = Counter()
        for run, times in self.runs.items():
            for ins in self._kernel.runs[run]:
                found[kind_of(ins)] += times
        return found

    def forms(self) -> Counter[str]:
        """Warp instructions by opcode."""
        found: Counter[str] = Counter()
        for run, times in self.runs.items():
            for ins in self._kernel.runs[run]:
                found[ins.opcode] += times
        return found

    def global_access(self, what: str, address: Array, who: Array, size: int, line: int) -> None:
        """Note an access: sectors of 32 bytes that each warp touches, and how few its bytes would fill."""
        if not self._memory or not len(address):
            return
        warp = who // 32
        pairs = np.unique(np.stack([warp, address.astype(np.int64) // 32], 1), axis=0)
        self.requests[what] += len(np.unique(warp))
        self.sectors[what] += len(pairs)
        spots = np.unique(np.stack([warp, address.astype(np.int64)], 1), axis=0)
        self.least[what] += int(sum(-(-n * size // 32) for n in np.unique(spots[:, 0], return_counts=True)[1]))

    def shared(self, address: Array, who: Array, size: int, line: int) -> None:
        """Note an access to shared memory: wavefronts of 32 banks of 4 bytes that it takes, and the fewest it could.

        A warp goes 128 bytes at a time: all lanes of 4 bytes, or half of them of 8, or a quarter of 16.
        """
        if not self._memory or not len(address):
            return
        words = max(size // 4, 1)
        phase = who // (32 // words)
        word = address // 4
        every = np.stack([np.repeat(phase, words), (word[:, None] + np.arange(words)).ravel()], 1)
        every = np.unique(every, axis=0)
        banks, hits = np.unique(np.stack([every[:, 0], every[:, 1] % 32], 1), axis=0, return_counts=True)
        longest = np.zeros(int(phase.max()) - int(phase.min()) + 1, np.int64)
        np.maximum.at(longest, banks[:, 0] - int(phase.min()), hits)
        self.wavefronts += int(longest.sum())
        self.least_wavefronts += int((longest > 0).sum())
