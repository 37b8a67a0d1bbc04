"""Timelines of a denoising run: passes, guidance, scheduler, next model input."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from statistics import median
from typing import Any

__all__ = ["FUSED", "GUIDANCE", "NEXT", "PASSES", "SCHEDULER", "Timeline"]

PASSES, GUIDANCE, SCHEDULER, NEXT = "passes", "guidance", "scheduler", "next input"
FUSED = "guidance, scheduler and next input"
"""The part of a step that takes the three at once."""


class Timeline:
    """The parts of each step of one run.

    The first step, which checks and warms up, is none of them; what comes before it and after the last isn't either.

    Args:
        wait: waits for the device; a part ends when its work is done.
    """

    def __init__(self, wait: Callable[[], None] = lambda: None) -> None:
        self._wait = wait
        self._passes: list[tuple[float, float]] = []
        self._end: float | None = None
        self.steps: list[dict[str, float]] = []

    def _now(self) -> float:
        self._wait()
        return 1e3 * time.perf_counter()

    def passing(self, model: Callable[..., Any]) -> Callable[..., Any]:
        """The model, its calls noted as passes."""

        @functools.wraps(model)
        def noted(*args: Any, **kwargs: Any) -> Any:
            begin = self._now()
            result = model(*args, **kwargs)
            self._passes.append((begin, self._now()))
            return result

        return noted

    def stepping(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """The scheduler's step, each call noted as the end of a step."""

        @functools.wraps(step)
        def noted(*args: Any, **kwargs: Any) -> Any:
            begin = self._now()
            result = step(*args, **kwargs)
            self._finish(begin, self._now())
            return result

        return noted

    def stepped(self) -> None:
        """Note the end of a step that guidance and scheduler are one part of."""
        self._finish(None, self._now())

    def _finish(self, begin: float | None, end: float) -> None:
        before, self._end = self._end, end
        passes, self._passes = self._passes, []
        if before is None:
            return
        if not passes:
            raise RuntimeError("a step without a pass")
        starts, stops = zip(*passes, strict=True)
        inside = sum(stop - start for start, stop in passes)
        # Between two passes of a step the second one's input is made.
        parts = {NEXT: starts[0] - before + (stops[-1] - starts[0] - inside), PASSES: inside}
        if begin is None:
            parts[FUSED] = end - stops[-1]
        else:
            parts |= {GUIDANCE: begin - stops[-1], SCHEDULER: end - begin}
        self.steps.append(parts)

    @contextmanager
    def watching(self, model: Any, scheduler: Any) -> Iterator[None]:
        """Note a module's forwards and a scheduler's steps inside the block; both objects are as before after it."""
        model.forward, scheduler.step = self.passing(model.forward), self.stepping(scheduler.step)
        try:
            yield
        finally:
            del model.forward, scheduler.step

    def parts(self) -> Mapping[str, float]:
        """Milliseconds of each part, the median over the steps: what interrupts one step says nothing of the others."""
        return {name: median(step[name] for step in self.steps) for name in self.steps[0]}

    @property
    def ms_per_step(self) -> float:
        """Milliseconds from the end of one step to the end of the next, the median."""
        return median(sum(step.values()) for step in self.steps)
