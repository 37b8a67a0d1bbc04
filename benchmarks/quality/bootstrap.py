"""Bootstrap of samples with the same labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastcfg.metrics import frechet_distance

__all__ = ["Crossing", "Resampled", "at_accuracy", "draws", "resample"]


def draws(digit: Tensor, count: int, seed: int) -> Tensor:
    """Rows drawn with replacement within each digit, int64 ``[count, B]``.

    The same for every curve: their samples are paired, so that what the noise does to all of them alike leaves a
    difference between two curves alone.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = torch.empty((count, len(digit)), dtype=torch.int64)
    for label in digit.unique():  # type: ignore[no-untyped-call]
        members = (digit == label).nonzero().flatten()
        rows[:, members] = members[torch.randint(len(members), (count, len(members)), generator=generator)]
    return rows


@dataclass(frozen=True)
class Resampled:
    """Figures of each draw, float64 ``[R]``."""

    accuracy: Tensor
    distance: Tensor


def resample(real: Tensor, features: Tensor, right: Tensor, rows: Tensor) -> Resampled:
    """Accuracy and Fréchet distance of each draw.

    Args:
        real: features ``[N, D]``; features, right: of the samples, ``[B, D]`` and bool ``[B]``; rows: of :func:`draws`.
    """
    accuracy = right[rows].double().mean(-1)
    distances = [frechet_distance(real, features[chosen]) for chosen in rows]
    return Resampled(accuracy, torch.tensor(distances, dtype=torch.float64))


@dataclass(frozen=True)
class Crossing:
    """The point at which a curve reaches an accuracy.

    Attributes:
        below, above: neighbouring scales between which it does; share: of the way from one to the other.
    """

    below: float
    above: float
    share: float

    @property
    def scale(self) -> float:
        """By linear interpolation."""
        return self.below + self.share * (self.above - self.below)

    def of(self, values: Mapping[float, float]) -> float:
        """Another figure of the curve there, by scale, interpolated alike."""
        return values[self.below] + self.share * (values[self.above] - values[self.below])


def at_accuracy(scales: Sequence[float], accuracy: Mapping[float, float], target: float) -> Crossing | None:
    """The smallest scale at which the accuracy reaches a target; None if it nowhere does."""
    before = None
    for scale in scales:
        if accuracy[scale] >= target:
            if before is None:
                return Crossing(scale, scale, 0.0)
            rise = accuracy[scale] - accuracy[before]
            return Crossing(before, scale, (target - accuracy[before]) / rise)
        before = scale
    return None
