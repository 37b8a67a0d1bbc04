"""Quality and diversity of the demo's teacher and student, by the demo's classifier."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..demo.classifier import load_classifier
from ..demo.data import NUM_COLOURS, load_digits, paint
from ..metrics import Quality, Reference, quality
from .demo import AVOIDED_COLOUR
from .evaluate import draw_start, student_sample, teacher_sample
from .student import Student
from .task import Task, arguments_of

__all__ = ["Judge", "Judged", "judge_both"]

BATCH = 100


class Judge:
    """The classifier and the features of real digits that neither it nor the denoiser was trained on.

    Args:
        count: real digits, in random colours, as many of each class.
    """

    def __init__(self, count: int = 500) -> None:
        self.classifier, _ = load_classifier()
        real = load_digits(held_out=True)
        chosen = torch.arange(len(real)).view(10, -1)[:, : max(1, count // 10)].flatten()
        colour = torch.randint(NUM_COLOURS, (len(chosen),), generator=torch.Generator().manual_seed(0))
        self.reference = Reference(self._features(paint(real.grey[chosen], colour)), real.digit[chosen])

    @torch.no_grad()
    def _features(self, images: Tensor) -> Tensor:
        return self.classifier.pooled(images.clamp(-1, 1).cpu())

    def __call__(self, images: Tensor, digit: Tensor) -> tuple[Quality, float]:
        """``(quality, share of the avoided colour)`` of images ``[B, 3, 28, 28]`` made for digits ``[B]``."""
        seen, colour = self.classifier.predict(images.cpu())
        found = quality(self.reference, self._features(images), asked=digit.cpu(), seen=seen)
        return found, (colour == AVOIDED_COLOUR).double().mean().item()


@dataclass(frozen=True)
class Judged:
    """Teacher and student at one scale, from the same noise and conditions.

    Attributes:
        scale: guidance scale ``s``.
        teacher, student: quality of the samples.
        teacher_avoided, student_avoided: share of the samples in the colour that negatives name.
    """

    scale: float
    teacher: Quality
    student: Quality
    teacher_avoided: float
    student_avoided: float


def judge_both(
    task: Task,
    student: Student,
    judge: Judge,
    scales: Iterable[float],
    *,
    count: int = 500,
    num_steps: int = 20,
    seed: int = 2,
    on_batch: Callable[[], None] | None = None,
) -> list[Judged]:
    """Samples with both at each scale, and judges."""
    noise, conditions = draw_start(task, count, seed)
    digit = arguments_of(conditions[task.condition])["digit"]
    judged = []
    for scale in scales:
        teacher, taught = [], []
        for begin in range(0, count, BATCH):
            rows = slice(begin, begin + BATCH)
            part = {
                name: {key: value[rows] for key, value in arguments_of(one).items()} for name, one in conditions.items()
            }
            teacher.append(teacher_sample(task, noise[rows], part, scale, num_steps))
            taught.append(student_sample(task, student, noise[rows], part, scale, num_steps))
            if on_batch is not None:
                on_batch()
        (first, avoided), (second, also) = (judge(torch.cat(images), digit) for images in (teacher, taught))
        judged.append(Judged(scale, first, second, avoided, also))
    return judged
