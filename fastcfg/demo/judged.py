"""Quality and diversity of the demo's teacher and student, by the demo's classifier."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from ..distill.evaluate import draw_start, student_sample, teacher_sample
from ..distill.student import Student
from ..distill.task import Task, arguments_of
from ..metrics import Quality
from .distillation import AVOIDED_COLOUR
from .judge import Judge

__all__ = ["Judged", "judge_both"]

BATCH = 100


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
        looks = [judge.look(torch.cat(images)) for images in (teacher, taught)]
        first, second = (judge.quality(look, digit) for look in looks)
        avoided, also = ((look.colour == AVOIDED_COLOUR).double().mean().item() for look in looks)
        judged.append(Judged(scale, first, second, avoided, also))
    return judged
