"""What a gate measures of a fresh delta: how far it has moved, how long it is, and the angle it stands for.

The measures are of the Gram sums of the delta, the delta before it and the conditional prediction. Nothing waits for a
device unless asked to: a measure that has not arrived at the next step is read at a later one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import fastcfg_kernels as fk
import torch
from fastcfg_kernels.backends.torch.functional import Merge
from fastcfg_kernels.backends.torch.tiles import sample_moments
from fastcfg_kernels.math import maximum, sqrt, where
from torch import Tensor

from .gates import Gate

__all__ = ["Arriving", "measure_delta"]


def _shares(dot_d_d: Any, dot_new_new: Any, dot_cond_cond: Any, dot_new_cond: Any) -> tuple[Any, Any, Any]:
    """``|new - old|/|new|``, ``|new|/|cond|`` (0 where a delta is zero), and the cosine of cond and cond - new."""
    moved = where(dot_new_new > 0.0, sqrt(dot_d_d / dot_new_new), 0.0)
    length = where(dot_new_new > 0.0, sqrt(dot_new_new / dot_cond_cond), 0.0)
    other = maximum(dot_cond_cond - 2.0 * dot_new_cond + dot_new_new, 0.0)
    norms = dot_cond_cond * other
    return moved, length, where(norms > 0.0, (dot_cond_cond - dot_new_cond) / sqrt(norms), 0.0)


_SHARES = fk.compile_program(("old", "new"), (fk.Stage(_shares),), ("cond",))


def measure_delta(new: Tensor, old: Tensor, cond: Tensor, merge: Merge | None = None) -> Tensor:
    """How far a delta has moved, how long it is, and how near its two predictions are.

    Args:
        new, old, cond: ``[B, ...]`` of one shape and device; sums are in float32 (float64 for float64).
        merge: where they are parts of samples; see :class:`fastcfg.parallel.Shards`.

    Returns:
        ``[3, B]``: ``|new - old|/|new|``, ``|new|/|cond|``, and the cosine of ``cond`` and ``cond - new``. Nothing is
        read back from a device.
    """
    rows = [t.to(new.dtype).flatten(1) for t in (old, new, cond)]
    moments = sample_moments(_SHARES, rows)
    if merge is not None:
        moments = merge(_SHARES, moments)
    return torch.stack(list(_SHARES.weigh(moments.sums(_SHARES), moments.count, ())))


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
