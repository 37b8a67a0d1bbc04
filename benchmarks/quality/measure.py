"""All curves, judged."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from fastcfg.demo.data import NUM_COLOURS
from fastcfg.demo.distillation import AVOIDED_COLOUR
from fastcfg.demo.judge import Judge
from fastcfg.distill import Student, fingerprint
from fastcfg.files import load_tensors, save_tensors

from .bootstrap import Resampled, draws, resample
from .curves import Asked, Curve
from .sampling import Start, in_precision, sample

__all__ = ["Measurement", "Point", "Settings", "share_error"]


@dataclass(frozen=True)
class Settings:
    """Settings that a run depends on."""

    samples: int = 240
    steps: int = 20
    batch: int = 120
    seed: int = 0
    draws: int = 50
    bf16: bool = True


@dataclass(frozen=True)
class Point:
    """One curve at one scale.

    Attributes:
        curve: its name; rule, schedule, who: what it is made of.
        accuracy, colour: share of the samples whose digit and whose colour are seen to be the ones asked for; the
            colour is NaN where none is asked for.
        precision, recall, density, coverage, spread: as in :class:`fastcfg.metrics.Quality`.
        frechet_distance: to as many real digits; it falls with more samples of the same kind.
        accuracy_error, frechet_error: standard errors, of the binomial and of the bootstrap.
        avoided: share of the samples in the colour that negatives name.
        overshoot: how far pixels lie outside [-1, 1], on average.
        passes_per_sample: of the network.
        reference: which real digits.
    """

    curve: str
    rule: str
    schedule: str
    who: str
    scale: float
    accuracy: float
    precision: float
    recall: float
    density: float
    coverage: float
    frechet_distance: float
    spread: float
    passes_per_sample: float
    samples: int
    accuracy_error: float
    frechet_error: float
    colour: float
    avoided: float
    overshoot: float
    reference: str


def share_error(share: float, count: int) -> float:
    """Standard error of a share, with one success and one failure added: none of 240 wrong is not certainty."""
    p = (share * count + 1) / (count + 2)
    return math.sqrt(p * (1 - p) / (count + 2))


@dataclass
class Measurement:
    """Samples and judges; keeps what the figures and comparisons need.

    Args:
        network: the teacher's.
        folder: where samples are kept, and found again by a later run of the same code.

    Attributes:
        points: by name of the curve and scale, in the order in which they were measured.
        resampled: accuracy and distance of every draw.
    """

    settings: Settings
    network: nn.Module
    student: Student
    folder: Path | None = None
    points: dict[tuple[str, float], Point] = field(default_factory=dict)
    resampled: dict[tuple[str, float], Resampled] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.start = Start.draw(self.settings.samples, self.settings.seed)
        self._rows = draws(self.start.digit, self.settings.draws, self.settings.seed)
        self._judges: dict[Asked, Judge] = {}
        self._done: dict[str, tuple[Tensor, float]] = {}
        self._weights, self._student_weights = fingerprint(self.network), fingerprint(self.student.network)

    def _judge(self, asked: Asked) -> Judge:
        if asked not in self._judges:
            colours = [c for c in range(NUM_COLOURS) if asked == "both" or c != AVOIDED_COLOUR]
            self._judges[asked] = Judge(self.settings.samples, colours)
        return self._judges[asked]

    def images(
        self, curve: Curve, scale: float, *, bf16: bool, on_batch: Callable[[], None] | None = None
    ) -> tuple[Tensor, float]:
        """``(images, passes for each)``; curves that are the same at a scale share them."""
        key = self._key(curve, scale, bf16)
        if key not in self._done and self.folder is not None:
            self._done |= _read(self.folder, key)
        if key in self._done:
            for _ in self.start.parts(self.settings.batch):
                (on_batch or bool)()
            return self._done[key]
        images, passes = [], 0
        teacher = in_precision(self.network, bf16)
        for part in self.start.parts(self.settings.batch):
            made, run = sample(
                curve, scale, part, self.settings.steps, teacher=teacher, student=self.student, bf16=bf16
            )
            images.append(made)
            passes += run * len(part)
            (on_batch or bool)()
        self._done[key] = torch.cat(images), passes / len(self.start)
        if self.folder is not None:
            _write(self.folder, key, *self._done[key])
        return self._done[key]

    def _key(self, curve: Curve, scale: float, bf16: bool) -> str:
        """Return what the samples depend on, the code apart."""
        own = self.settings
        student = curve.who == "student"
        weights = self._student_weights if student else self._weights
        rule = f"student at {scale}" if student else repr(curve.rule_at(scale))
        return f"{weights} {rule} {curve.keep} {curve.asked} {own.samples} {own.steps} {own.batch} {own.seed} {bf16}"

    @torch.inference_mode()
    def measure(
        self, curve: Curve, scale: float, *, bf16: bool | None = None, on_batch: Callable[[], None] | None = None
    ) -> Point:
        """A point, which is also kept unless it is in another precision than the settings'."""
        precision = self.settings.bf16 if bf16 is None else bf16
        images, passes = self.images(curve, scale, bf16=precision, on_batch=on_batch)
        judge, digit = self._judge(curve.asked), self.start.digit
        look = judge.look(images)
        quality = judge.quality(look, digit)
        again = resample(judge.reference.features, look.features, look.digit == digit, self._rows)
        both = curve.asked == "both"
        point = Point(
            curve=curve.name,
            rule=curve.rule,
            schedule=curve.schedule,
            who=curve.who,
            scale=scale,
            accuracy=quality.accuracy,
            precision=quality.precision,
            recall=quality.recall,
            density=quality.density,
            coverage=quality.coverage,
            frechet_distance=quality.frechet_distance,
            spread=quality.spread,
            passes_per_sample=passes,
            samples=quality.samples,
            accuracy_error=share_error(quality.accuracy, quality.samples),
            frechet_error=again.distance.std().item(),
            colour=(look.colour == self.start.colour).double().mean().item() if both else math.nan,
            avoided=(look.colour == AVOIDED_COLOUR).double().mean().item(),
            overshoot=(images.abs() - 1).clamp(min=0).mean().item(),
            reference="all colours" if both else "all colours but red",
        )
        if precision == self.settings.bf16:
            key = (curve.name, scale)
            self.points[key], self.resampled[key] = point, again
        return point

    def of(self, curve: str, scales: Sequence[float], figure: str) -> dict[float, float]:
        """A figure of a curve by scale."""
        return {scale: getattr(self.points[curve, scale], figure) for scale in scales}


def _file(folder: Path, key: str) -> Path:
    return folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"


def _read(folder: Path, key: str) -> dict[str, tuple[Tensor, float]]:
    path = _file(folder, key)
    if not path.exists():
        return {}
    tensors, metadata = load_tensors(path)
    return {key: (tensors["images"], metadata["passes"])} if metadata["key"] == key else {}


def _write(folder: Path, key: str, images: Tensor, passes: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(_file(folder, key), {"images": images}, {"key": key, "passes": passes})
