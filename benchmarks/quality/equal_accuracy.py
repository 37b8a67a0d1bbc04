"""The curves where they reach one accuracy, beside CFG."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from .bootstrap import Crossing, at_accuracy
from .curves import CURVES
from .measure import Measurement

__all__ = ["TARGET", "AtTarget", "at_target", "compare_at_target"]

TARGET = 0.97
"""Share of digits read as asked at which curves are compared."""


@dataclass(frozen=True)
class AtTarget:
    """A curve where it reaches an accuracy, its figures interpolated between two scales.

    Attributes:
        difference: of its Fréchet distance from CFG's there; error: standard error of that, from the paired bootstrap.
    """

    curve: str
    scale: float
    frechet_distance: float
    recall: float
    spread: float
    coverage: float
    passes_per_sample: float
    difference: float
    error: float


def at_target(
    measured: Measurement, curve: str, scales: Sequence[float], target: float, draw: int | None = None
) -> tuple[Crossing, float] | None:
    """Return where a curve reaches the target, and its Fréchet distance there.

    Of the samples, or of one draw of them.
    """
    if draw is None:
        accuracy, distance = (measured.of(curve, scales, name) for name in ("accuracy", "frechet_distance"))
    else:
        again = {scale: measured.resampled[curve, scale] for scale in scales}
        accuracy = {scale: one.accuracy[draw].item() for scale, one in again.items()}
        distance = {scale: one.distance[draw].item() for scale, one in again.items()}
    crossing = at_accuracy(scales, accuracy, target)
    return None if crossing is None else (crossing, crossing.of(distance))


def compare_at_target(measured: Measurement, scales: Sequence[float], target: float = TARGET) -> list[AtTarget]:
    """Every curve that reaches the target, beside CFG; none if CFG does not."""
    base = at_target(measured, "CFG", scales, target)
    if base is None:
        return []
    found = []
    for curve in (curve.name for curve in CURVES if curve.asked == "both"):
        reached = at_target(measured, curve, scales, target)
        if reached is None:
            continue
        crossing, distance = reached
        differences = []
        for draw in range(measured.settings.draws):
            one, other = (at_target(measured, name, scales, target, draw) for name in (curve, "CFG"))
            if one is not None and other is not None:
                differences.append(one[1] - other[1])
        names = ("recall", "spread", "coverage", "passes_per_sample")
        found.append(
            AtTarget(
                curve=curve,
                scale=crossing.scale,
                frechet_distance=distance,
                difference=distance - base[1],
                error=statistics.stdev(differences) if len(differences) > 1 else float("nan"),
                **{name: crossing.of(measured.of(curve, scales, name)) for name in names},
            )
        )
    return found
