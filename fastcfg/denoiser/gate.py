"""When a cached delta is computed anew: what the steps so far say, and what is measured of the delta.

The measures are shares of norms, from the Gram sums of the delta, the delta before it and the conditional prediction.
Nothing waits for a device unless asked to: a measure that has not arrived at the next step is read at a later one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import fastcfg_kernels as fk
import torch
from fastcfg_kernels.backends.torch.functional import Merge
from fastcfg_kernels.backends.torch.tiles import sample_moments
from fastcfg_kernels.math import sqrt, where
from torch import Tensor

from ..core.state import State
from ..rules import Rule
from ..rules.cached import Phase, gate_of

__all__ = ["Gate", "measure_delta"]

STEP, RATE, OFF = "gate.step", "gate.rate", "gate.off"
_KEYS = (STEP, RATE, OFF)


def _shares(dot_d_d: Any, dot_new_new: Any, dot_cond_cond: Any) -> tuple[Any, Any, Any]:
    """``|new - old|/|new|`` and ``|new|/|cond|``; 0 where a delta is zero."""
    moved = where(dot_new_new > 0.0, sqrt(dot_d_d / dot_new_new), 0.0)
    return moved, where(dot_new_new > 0.0, sqrt(dot_new_new / dot_cond_cond), 0.0), 0.0


_SHARES = fk.compile_program(("old", "new"), (fk.Stage(_shares),), ("cond",))


def measure_delta(new: Tensor, old: Tensor, cond: Tensor, merge: Merge | None = None) -> Tensor:
    """How far a delta has moved and how long it is: ``|new - old|/|new|`` and ``|new|/|cond|``.

    Args:
        new, old, cond: ``[B, ...]`` of one shape and device; sums are in float32 (float64 for float64).
        merge: where they are parts of samples; see :class:`fastcfg.parallel.Shards`.

    Returns:
        ``[2, B]``. Nothing is read back from a device.
    """
    rows = [t.to(new.dtype).flatten(1) for t in (old, new, cond)]
    moments = sample_moments(_SHARES, rows)
    if merge is not None:
        moments = merge(_SHARES, moments)
    moved, length, _ = _SHARES.weigh(moments.sums(_SHARES), moments.count, ())
    return torch.stack([moved, length])


class Gate:
    """Decides the phase of a rule's gate from a state, and keeps count there.

    Args:
        rule: a rule with a :class:`fastcfg.GatedCFG` in it.
        wait: wait for a measure as soon as it is taken, so that it counts at the very next step. Without it a measure
            on a GPU counts when it has arrived, and a delta whose drift is not known yet is computed anew.
    """

    def __init__(self, rule: Rule, wait: bool = False) -> None:
        gate = gate_of(rule)
        if gate is None:
            raise ValueError(f"rule: {type(rule).__name__} has no gate")
        self.every, self.drift, self.stop = gate.every, gate.drift, gate.stop
        self.wait = wait

    @property
    def measures(self) -> bool:
        """Whether anything is measured."""
        return self.drift is not None or self.stop is not None

    def phase(self, state: State, step: int) -> Phase:
        """What to do at a step: ``"refresh"``, ``"reuse"`` or ``"off"``."""
        state.settle(self.wait)
        numbers = state.numbers
        last = numbers.get(STEP)
        if last is None or step < last or "delta" not in state:
            for key in _KEYS:  # A new run.
                numbers.pop(key, None)
            return "refresh"
        if numbers.get(OFF):
            return "off"
        age = step - last
        if age >= self.every:
            return "refresh"
        if self.drift is not None and age > 0 and not numbers.get(RATE, float("inf")) * age <= self.drift:
            return "refresh"
        return "reuse"

    def refreshed(self, state: State, step: int, measured: Tensor | None) -> None:
        """Note a refresh.

        Args:
            measured: what :func:`measure_delta` found of the new delta against the one before (or itself, where there
                is none), ``[2, B]``; the largest counts. None if nothing was measured.
        """
        last = state.numbers.get(STEP)
        state.numbers[STEP] = step
        if measured is not None:
            state.arriving = _Arriving(measured.amax(1), 0.0 if last is None else step - last, self.stop)
            state.settle(self.wait or measured.device.type == "cpu")


class _Arriving:
    """A measure on its way to the host: the copy is queued, and an event says when it is done."""

    def __init__(self, measured: Tensor, age: float, stop: float | None) -> None:
        self.age, self.stop = age, stop
        self.event: Any = None
        if measured.is_cuda:
            self.values = torch.empty(2, dtype=measured.dtype, pin_memory=True)
            self.values.copy_(measured, non_blocking=True)
            self.event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self.event.record()
        else:
            self.values = measured

    def __call__(self, wait: bool) -> Mapping[str, float] | None:
        if self.event is not None:
            if not wait and not self.event.query():
                return None
            self.event.synchronize()
        moved, length = self.values.tolist()
        found = {RATE: moved / self.age} if self.age else {}
        if self.stop is not None and length <= self.stop:
            found[OFF] = 1.0
        return found
