"""The counters that programs of a cooperative launch meet at: zero at first, and as they were after every launch."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor

__all__ = ["Arrivals", "arrivals"]

CAPTURED = 65_536
"""Counters of a device that are set aside for captured launches."""

ALIGNED = 4
"""Counters in 16 bytes: a kernel is compiled for pointers that are aligned so far."""


class Arrivals:
    """Counters by device and stream, so that launches which may run at the same time never share one.

    A captured launch may be replayed on any stream beside any other work, so that it gets counters of its own for good.
    They come from memory that the first launch outside a capture set aside: what is allocated inside one belongs to
    the graph, and would have to be cleared by each replay.
    """

    def __init__(self) -> None:
        self._by_stream: dict[tuple[Any, int], Tensor] = {}
        self._captured: dict[Any, tuple[Tensor, int]] = {}
        self._lock = threading.Lock()

    def take(self, count: int, device: torch.device, stream: int, capturing: bool) -> Tensor:
        """``[count]`` int32 counters for a launch on a stream.

        Raises:
            RuntimeError: inside a capture, if none were set aside before or all are taken.
        """
        with self._lock:
            if capturing:
                return self._take_for_good(count, device)
            self._captured.setdefault(device, (torch.zeros(CAPTURED, dtype=torch.int32, device=device), 0))
            held = self._by_stream.get((device, stream))
            if held is None or held.numel() < count:
                held = torch.zeros(max(count, 64), dtype=torch.int32, device=device)
                self._by_stream[device, stream] = held
            return held

    def _take_for_good(self, count: int, device: torch.device) -> Tensor:
        if device not in self._captured:
            raise RuntimeError(
                "strategy: the first cooperative launch on a device falls inside a CUDA graph capture, where its "
                "counters can't be allocated; call fastcfg.warmup, or guide once, before the capture"
            )
        memory, used = self._captured[device]
        if used + count > memory.numel():
            raise RuntimeError(
                f"strategy: {memory.numel()} groups have been captured in cooperative launches on {device}, which is "
                "all that is set aside; capture with strategy='two_launch'"
            )
        self._captured[device] = (memory, used + -(-count // ALIGNED) * ALIGNED)
        return memory[used : used + count]


arrivals = Arrivals()
