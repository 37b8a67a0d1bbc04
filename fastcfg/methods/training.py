"""Parts of training loops: the course of the learning rate, and the error of one that diverged."""

from __future__ import annotations

import math

__all__ = ["TrainingDiverged", "ema_decay", "warmup_cosine"]


class TrainingDiverged(RuntimeError):
    """The loss or its gradient is not finite. The last good checkpoint is untouched."""


def warmup_cosine(step: int, steps: int, warmup: int, peak: float) -> float:
    """The learning rate of a step counted from 0: linear to ``peak`` in ``warmup`` steps, then a half cosine to 0."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))


def ema_decay(step: int, limit: float) -> float:
    """Decay of the weights' moving average: low at first, so that it forgets where it began, then ``limit``."""
    return min(limit, (1 + step) / (10 + step))
