"""A student beside its teacher: gaps along trajectories and at their ends, and the time of a step."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.conditions import Conditions
from ..core.state import State
from .rollout import walk
from .student import Student
from .task import Task, arguments_of
from .train import generator_of

__all__ = ["Gap", "StepTime", "draw_start", "gap", "gaps", "step_time", "student_sample", "teacher_sample"]


@dataclass(frozen=True)
class Gap:
    """Distance of predictions from the teacher's guided ones, at one scale.

    All are relative errors ``sqrt(sum |a - b|^2 / sum |b|^2)``, b the teacher's.

    Attributes:
        scale: guidance scale ``s``.
        student, unguided: of the predictions of the student, and of the teacher's network without guidance, at the
            states of the teacher's trajectories.
        student_sample, unguided_sample: of the samples, each sampled by itself from the same noise.
        by_step: ``student`` at each step of the trajectories.
    """

    scale: float
    student: float
    unguided: float
    student_sample: float
    unguided_sample: float
    by_step: tuple[float, ...]


@dataclass(frozen=True)
class StepTime:
    """Medians of interleaved calls on one batch, in milliseconds.

    Attributes:
        teacher, student: a guided prediction of each, embedding and combine included.
        teacher_passes: of the teacher's step; the student's is one.
        batch: samples.
        merged: the student with its adapter merged; None where it has none.
    """

    teacher: float
    student: float
    teacher_passes: int
    batch: int
    merged: float | None = None

    @property
    def ratio(self) -> float:
        """The teacher's time over that of the student, its adapter merged."""
        return self.teacher / (self.student if self.merged is None else self.merged)


def draw_start(task: Task, count: int, seed: int) -> tuple[Tensor, Conditions]:
    """``(noise, conditions)`` of ``count`` samples."""
    generator = generator_of(seed, "evaluation")
    return task.noise(count, generator), task.conditions(count, generator)


@torch.no_grad()
def _follow(task: Task, noise: Tensor, num_steps: int, predict: Callable[[Tensor, Tensor], Tensor]) -> Iterator[Tensor]:
    scheduler = copy.deepcopy(task.scheduler)
    scheduler.set_timesteps(num_steps)
    x = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        times = torch.full((len(x),), float(t), device=x.device)
        x = scheduler.step(predict(seen, times), t, x).prev_sample
        yield x


def _last(states: Iterable[Tensor]) -> Tensor:
    *_, end = states
    return end


def teacher_sample(task: Task, noise: Tensor, conditions: Conditions, scale: float, num_steps: int) -> Tensor:
    """The teacher's samples at a guidance scale."""
    scales = torch.full((len(noise),), scale, device=noise.device)
    return _last(step.after for step in walk(task, conditions, noise, scales, num_steps))


def student_sample(
    task: Task, student: Student, noise: Tensor, conditions: Conditions, scale: float, num_steps: int
) -> Tensor:
    """The student's samples at a guidance scale."""
    return _last(_follow(task, noise, num_steps, lambda x, t: student(x, t, conditions=conditions, scale=scale)))


@torch.no_grad()
def gap(task: Task, student: Student, scale: float, *, count: int = 64, num_steps: int = 20, seed: int = 1) -> Gap:
    """The gap at one guidance scale.

    Args:
        count: trajectories; num_steps: steps of each; seed: of their noise and conditions.
    """
    noise, conditions = draw_start(task, count, seed)
    own = arguments_of(conditions[task.condition])

    def unguided(x: Tensor, t: Tensor) -> Tensor:
        return task.family.call(task.network, x, t, **own)

    scales = torch.full((count,), scale, device=noise.device)
    errors: list[tuple[float, float]] = []
    power: list[float] = []
    end = noise
    for step in walk(task, conditions, noise, scales, num_steps):
        t = torch.full((count,), step.t, device=noise.device)
        found = (student(step.x, t, conditions=conditions, scale=scale), unguided(step.x, t))
        errors.append(tuple((one - step.target).double().square().sum().item() for one in found))  # type: ignore[arg-type]
        power.append(step.target.double().square().sum().item())
        end = step.after

    def relative(index: int) -> float:
        return float((sum(pair[index] for pair in errors) / sum(power)) ** 0.5)

    def apart(sample: Tensor) -> float:
        return float(((sample - end).double().norm() / end.double().norm()).item())

    return Gap(
        scale,
        relative(0),
        relative(1),
        apart(student_sample(task, student, noise, conditions, scale, num_steps)),
        apart(_last(_follow(task, noise, num_steps, unguided))),
        tuple(float((pair[0] / total) ** 0.5) for pair, total in zip(errors, power, strict=True)),
    )


def gaps(
    task: Task,
    student: Student,
    scales: Iterable[float],
    *,
    count: int = 64,
    num_steps: int = 20,
    seed: int = 1,
    on_scale: Callable[[], None] | None = None,
) -> list[Gap]:
    """:func:`gap` at several scales, on the same noise and conditions."""
    found = []
    for scale in scales:
        found.append(gap(task, student, scale, count=count, num_steps=num_steps, seed=seed))
        if on_scale is not None:
            on_scale()
    return found


@torch.no_grad()
def step_time(
    task: Task, student: Student, *, scale: float = 5.0, count: int = 64, rounds: int = 15, num_steps: int = 20
) -> StepTime:
    """Times a step of both in turns, on one batch at the middle of the sampler's course.

    A student with an adapter is timed as it is, and merged at ``scale``.
    """
    noise, conditions = draw_start(task, count, 0)
    times = task.times(num_steps)
    middle = num_steps // 2
    t = torch.full((count,), times[middle], device=noise.device)
    teacher = task.teacher
    # One state for all calls: a rule that remembers then has what it does at any step but the first.
    plan = {"step": middle, "num_steps": num_steps, "times": times, "state": State()}
    scales = torch.full((count,), scale, device=noise.device)

    def call(distilled: Student) -> Callable[[], Tensor]:
        return lambda: distilled(noise, t, conditions=conditions, scale=scale)

    calls: list[Callable[[], Tensor]] = [
        lambda: task.target(noise, t, conditions, scales, **plan),  # type: ignore[arg-type]
        call(student),
    ]
    if student.lora is not None:
        merged = copy.deepcopy(student)
        merged.merge(scale)
        calls.append(call(merged))
    before = teacher.passes_run
    calls[0]()
    passes = teacher.passes_run - before
    for other in calls[1:]:
        other()
    seconds: list[list[float]] = [[] for _ in calls]
    sides = list(range(len(calls)))
    for turn in range(rounds):
        for side in sides if turn % 2 == 0 else reversed(sides):
            _wait(noise.device)
            start = time.perf_counter()
            calls[side]()
            _wait(noise.device)
            seconds[side].append(time.perf_counter() - start)
    medians = [1e3 * statistics.median(one) for one in seconds]
    return StepTime(medians[0], medians[1], passes, count, *medians[2:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
