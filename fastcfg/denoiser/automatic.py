"""The choice between one batch and a call for each pass, by what fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .batching import Unbatchable, capturing
from .passes import Batched, Pass, Sequential, own_memory

__all__ = ["Auto", "fits"]

CPU_ELEMENTS = 2**18
"""Largest model input on a CPU, in elements over all passes, that is run as one batch.

A batch saves calls, which is what a small input's time is made of; a large one keeps the cores busy by itself, and
needs the memory and the cache of its passes at once.
"""

SHARE = 0.9
"""Part of the free memory that a batch may take: the rest is for what the estimate misses."""


def fits(activation: int, passes: int, free: int) -> bool:
    """Return whether a batch of passes fits free memory, in bytes, given what one pass takes besides the weights."""
    return passes * activation <= SHARE * free


class Auto:
    """One batch where it fits, else a call for each pass.

    On CUDA the first step of each shape runs its passes one after another, and the first of them tells what a pass
    takes: the allocator's peak during it, less what was allocated before. (A higher peak before it stays the
    peak, so that the estimate is too high then, never too low.) From the next step on the passes are one batch if as
    many times that fit the free memory (``torch.cuda.mem_get_info`` and what the allocator holds in reserve). A batch
    that runs out of memory after all is repeated pass by pass, and not tried again for that shape.

    On a CPU the input's size decides: one batch up to :data:`CPU_ELEMENTS` elements over all passes. On other devices
    it is one batch. Conditions that can't be one batch are run one after another everywhere.

    Args:
        padding: as for :class:`Batched`.
    """

    def __init__(self, padding: Mapping[str, str] | None = None) -> None:
        self.batched = Batched(padding)
        self.buffers = self.batched.buffers
        self.sequential = Sequential()
        self._fits: dict[Any, bool] = {}

    def reset(self) -> None:
        """Forget what was measured, and let go of the buffers."""
        self._fits.clear()
        self.batched.reset()

    def run(self, x: Tensor, t: Any, passes: Sequence[Pass]) -> dict[str, Tensor]:
        """See :class:`Executor`."""
        count = len(passes)
        if count == 1:
            return self.sequential.run(x, t, passes)
        kind = x.device.type
        if kind == "cuda":
            return self._on_cuda(x, t, passes)
        if kind == "cpu" and count * x.numel() > CPU_ELEMENTS:
            return self.sequential.run(x, t, passes)
        return self._try(x, t, passes)

    def _on_cuda(self, x: Tensor, t: Any, passes: Sequence[Pass]) -> dict[str, Tensor]:
        key = (len(passes), x.shape, x.dtype, x.device)
        known = self._fits.get(key)
        if known is None and not (torch.compiler.is_compiling() or capturing(x)):
            return self._measured(x, t, passes, key)
        if known is False:
            return self.sequential.run(x, t, passes)
        try:
            return self._try(x, t, passes)
        except torch.OutOfMemoryError:
            self._fits[key] = False
        return self.sequential.run(x, t, passes)

    def _try(self, x: Tensor, t: Any, passes: Sequence[Pass]) -> dict[str, Tensor]:
        try:
            return self.batched.run(x, t, passes)
        except Unbatchable:
            return self.sequential.run(x, t, passes)

    def _measured(self, x: Tensor, t: Any, passes: Sequence[Pass], key: Any) -> dict[str, Tensor]:
        cuda = torch.cuda
        before = cuda.memory_allocated(x.device)
        found = {passes[0].name: own_memory(passes[0].predict(x, t))}
        activation = cuda.max_memory_allocated(x.device) - before
        reserve = cuda.memory_reserved(x.device) - cuda.memory_allocated(x.device)
        self._fits[key] = fits(activation, len(passes), cuda.mem_get_info(x.device)[0] + reserve)
        return found | self.sequential.run(x, t, passes[1:])
