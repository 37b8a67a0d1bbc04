"""Steps of a guider's run, and its scales there."""

from __future__ import annotations

import math
from typing import Any

from diffusers.guiders.guider_utils import BaseGuidance
from torch import Tensor

from ....schedules import Schedule

__all__ = ["PLACEHOLDER", "StepGuider"]

PLACEHOLDER = 2.0
"""Stands in a rule for a value that each call brings as a tensor."""


class StepGuider(BaseGuidance):
    """A guider's windows, and its scales at a step."""

    use_original_formulation: bool = False
    _enabled: bool
    _start: float
    _stop: float
    _step: int | None
    _num_inference_steps: int | None
    _count_prepared: int
    _served: bool
    """Whether the step's guided prediction has been made by a pipeline."""

    @property
    def _base(self) -> Any:
        return "cond" if self.use_original_formulation else "uncond"

    def _at(self) -> tuple[int, int] | None:
        """The step and the number of steps, or None before a run."""
        if self._step is None or self._num_inference_steps is None:
            return None
        return self._step, self._num_inference_steps

    def _last(self) -> tuple[int, int]:
        """As :meth:`_at`, the first step where there is none, and never beyond the last.

        A second-order scheduler has more model calls than steps.
        """
        step, count = self._at() or (0, 1)
        return min(step, count - 1), count

    def _within(self, start: float, stop: float, strict: bool = False) -> bool:
        """Diffusers' windows: ``int(start * N) <= step < int(stop * N)``, or ``<`` on both sides."""
        at = self._at()
        if at is None:
            return True
        step, count = at
        first, last = int(start * count), int(stop * count)
        return (first < step if strict else first <= step) and step < last

    def _value(self, name: str) -> float:
        """A scale's number at this step; a placeholder for what the call brings as a tensor."""
        value = getattr(self, name)
        if isinstance(value, Schedule):
            return value.at(*self._last())
        if isinstance(value, Tensor | list | tuple):
            return PLACEHOLDER
        return value  # type: ignore[no-any-return]

    def _is_at(self, name: str, neutral: float) -> bool:
        """Return whether a scale leaves its term out. One that changes does not, while the step is not known."""
        value = getattr(self, name)
        if isinstance(value, Tensor | list | tuple) or (isinstance(value, Schedule) and self._at() is None):
            return False
        return math.isclose(self._value(name), neutral)

    def _guided(self) -> bool:
        neutral = 0.0 if self.use_original_formulation else 1.0
        on = self._enabled and self._within(self._start, self._stop)
        return on and not self._is_at("guidance_scale", neutral)

    def _begins(self, step: int) -> bool:
        """Return whether a step begins a run: it does not follow the last one."""
        at = self._at()
        return step == 0 or at is None or step < at[0] or (self._served and at[0] >= at[1] - 1)
