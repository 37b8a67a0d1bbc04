"""What the figures say, in sentences made from them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from .bootstrap import Crossing, at_accuracy
from .curves import CURVES, RESCALE
from .geometry import Trace
from .measure import Measurement, Point, share_error

__all__ = [
    "TARGET",
    "AtTarget",
    "at_target",
    "compare_at_target",
    "of_cfg",
    "of_geometry",
    "of_rescale",
    "of_strongest",
    "of_student",
]

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
    """Where a curve reaches the target, and its Fréchet distance there: of the samples, or of one draw of them."""
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


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def of_cfg(points: Sequence[Point]) -> str:
    """Plain CFG: where accuracy is highest, recall falls and the distance is smallest."""
    first, last = points[0], points[-1]
    best = max(points, key=lambda p: p.accuracy)
    enough = next(p for p in points if p.accuracy >= best.accuracy - best.accuracy_error)
    widest = max(points, key=lambda p: p.recall)
    limit = widest.recall - 2 * share_error(widest.recall, widest.samples)
    falls = next((p for p in points if p.scale > widest.scale and p.recall < limit), None)
    nearest = min(points, key=lambda p: p.frechet_distance)
    fall = (
        f"recall falls clearly (by two standard errors from its highest, {_percent(widest.recall)} at s = "
        f"{widest.scale:g}) from s = {falls.scale:g}, to {_percent(last.recall)} at s = {last.scale:g}"
        if falls
        else f"recall does not fall clearly up to s = {last.scale:g} ({_percent(last.recall)})"
    )
    plateau = "" if enough is best else f", and within a standard error of that from s = {enough.scale:g}"
    return (
        f"Without guidance {_percent(first.accuracy)} of the digits are read as asked; accuracy is highest at "
        f"s = {best.scale:g} ({_percent(best.accuracy)} ± {100 * best.accuracy_error:.1f}){plateau}. The Fréchet "
        f"distance is smallest at s = {nearest.scale:g} ({nearest.frechet_distance:.1f} ± {nearest.frechet_error:.1f}; "
        f"{last.frechet_distance:.1f} at s = {last.scale:g}), and {fall}. The spread within a class goes from "
        f"{first.spread:.2f} of real digits' to {min(p.spread for p in points):.2f} at its lowest."
    )


def of_student(teacher: Sequence[Point], student: Sequence[Point]) -> str:
    """What one pass loses."""
    pairs = list(zip(teacher, student, strict=True))
    accuracy = [(s.accuracy - t.accuracy, t.scale) for t, s in pairs]
    recall = [(s.recall - t.recall, t.scale) for t, s in pairs]
    distance = [(s.frechet_distance / t.frechet_distance - 1, t.scale) for t, s in pairs]
    low, narrow, far = min(accuracy), min(recall), max(distance)
    mean = statistics.mean(value for value, _ in accuracy)
    return (
        f"The student runs {student[0].passes_per_sample:.0f} passes a sample where CFG runs "
        f"{teacher[-1].passes_per_sample:.0f}. Against its teacher at the same scale its accuracy is "
        f"{100 * mean:+.1f} points on average, {100 * low[0]:+.1f} at worst (s = {low[1]:g}); its recall "
        f"{100 * narrow[0]:+.1f} points at worst (s = {narrow[1]:g}); its Fréchet distance {100 * far[0]:+.0f} % at "
        f"worst (s = {far[1]:g}) and "
        f"{100 * statistics.mean(value for value, _ in distance):+.0f} % on average."
    )


def of_strongest(points: Sequence[Point]) -> str:
    """All curves at the highest scale: what still works there."""
    cfg = next(point for point in points if point.curve == "CFG")
    lost = [p for p in points if p.accuracy < cfg.accuracy - 2 * math.hypot(p.accuracy_error, cfg.accuracy_error)]
    order = sorted(points, key=lambda p: p.frechet_distance)
    said = ", ".join(f"{p.curve} ({_percent(p.accuracy)})" for p in sorted(lost, key=lambda p: p.accuracy)) or "none"
    return (
        f"At s = {cfg.scale:g}, Fréchet distances go from {order[0].frechet_distance:.0f} ({order[0].curve}) over "
        f"{cfg.frechet_distance:.0f} (CFG) to {order[-1].frechet_distance:.0f} ({order[-1].curve}); clearly fewer "
        f"digits than with CFG ({_percent(cfg.accuracy)}) are read as asked with {said}."
    )


def of_rescale(traces: Sequence[Trace], scale: float) -> str:
    """What rescale makes of the first step."""
    first = next(one for one in traces if one.scale == scale)
    factor = 1 - RESCALE + RESCALE / first.spread_ratio
    return (
        f"Rescale with φ = {RESCALE:g}, which brings back the standard deviation alone, multiplies the prediction of "
        f"the first step, its mean with it, by {factor:.2f}; the mean, these images' dark ground, had not."
    )


def of_geometry(traces: Sequence[Trace], scale: float) -> str:
    """How long the delta is and how it lies, at one scale."""
    own = [one for one in traces if one.scale == scale]
    first, middle, last = own[0], own[len(own) // 2], own[-1]
    longest = max(own, key=lambda one: one.norm_ratio)
    return (
        f"At s = {scale:g}, |d| is {_percent(first.delta_ratio)} of |u| at the first step, "
        f"{_percent(middle.delta_ratio)} in the middle and {_percent(last.delta_ratio)} at the last; its cosine with u "
        f"is {first.cosine:+.2f}, {middle.cosine:+.2f} and {last.cosine:+.2f}. The share of |d|² along the conditional "
        f"prediction, which APG leaves out, is {_percent(first.parallel_share)} at the first step and "
        f"{_percent(statistics.mean(one.parallel_share for one in own))} on average. The guided prediction is longest "
        f"at step {longest.step}: {longest.norm_ratio:.2f} times the conditional one, its standard deviation "
        f"{longest.spread_ratio:.2f} times."
    )
