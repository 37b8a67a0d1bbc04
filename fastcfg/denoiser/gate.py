"""Measures of a fresh delta for gates: drift, length and angle.

The measures are stats of the delta, the delta before it and the conditional prediction, which one launch writes.
Nothing waits for a device unless asked to: a measure that has not arrived at the next step is read at a later one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import fastcfg_kernels as fk
import torch
from fastcfg_kernels.backends.torch.functional import Merge
from torch import Tensor

from .gates import Gate

__all__ = ["Arriving", "measure_delta"]


def _nothing() -> tuple[float, float, float]:
    return 1.0, 0.0, 0.0


_STATS = fk.compile_program(
    ("old", "new"),
    (fk.Stage(_nothing),),
    ("cond",),
    stats=("delta_share", "dot_new_new", "dot_cond_cond", "dot_new_cond"),
)


def measure_delta(new: Tensor, old: Tensor, cond: Tensor, merge: Merge | None = None) -> Tensor:
    """Return how far a delta has moved, how long it is, and how near its two predictions are.

    Args:
        new, old, cond: ``[B, ...]`` of one shape and device; sums are in float32 (float64 for float64).
        merge: where they are parts of samples; see :class:`fastcfg.parallel.Shards`.

    Returns:
        ``[3, B]``: ``|new - old|/|new|``, ``|new|/|cond|``, and the cosine of ``cond`` and ``cond - new``. Nothing is
        read back from a device.
    """
    stats = new.new_empty(new.shape[0], len(_STATS.stats))
    given = [old.to(new.dtype), new]
    fk.guide_checked(given, _STATS, (), extras=[cond.to(new.dtype)], targets=[], merge=merge, stats=stats)
    moved, square, of_cond, product = stats.unbind(1)
    length = torch.where(square > 0, (square / of_cond).sqrt(), 0.0)
    norms = of_cond * (of_cond - 2 * product + square).clamp(min=0)
    return torch.stack([moved, length, torch.where(norms > 0, (of_cond - product) / norms.sqrt(), 0.0)])


class Arriving:
    """Measures on their way to the host: the copy is queued, and an event says when it is done.

    Args:
        measured: ``[P, 3, B]`` of P passes; over their samples the one that says most against reuse counts.
        names: of the numbers that they become, for each pass (how fast it moves, whether it has died out).
        ages: steps since each was fresh before, or 0 where it was not.
    """

    def __init__(self, measured: Tensor, names: Sequence[tuple[str, str]], ages: Sequence[float], gate: Gate) -> None:
        self.names, self.ages, self.gate = names, ages, gate
        self.event: Any = None
        most = torch.stack([measured[:, 0].amax(1), measured[:, 1].amax(1), measured[:, 2].amin(1)], 1)
        if most.is_cuda:
            self.values = torch.empty(most.shape, dtype=most.dtype, pin_memory=True)
            self.values.copy_(most, non_blocking=True)
            self.event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self.event.record()
        else:
            self.values = most

    def __call__(self, wait: bool) -> Mapping[str, float] | None:
        if self.event is not None:
            if not wait and not self.event.query():
                return None
            self.event.synchronize()
        found: dict[str, float] = {}
        gate = self.gate
        for (rate, dead), age, (moved, length, cosine) in zip(self.names, self.ages, self.values.tolist(), strict=True):
            if age:
                found[rate] = moved / age
            short = gate.stop is not None and length <= gate.stop
            found[dead] = float(short or (gate.cosine is not None and cosine >= gate.cosine))
        return found
