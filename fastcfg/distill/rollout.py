"""Training examples: the teacher's own trajectories, or noised data."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.state import State
from .process import noisy
from .task import Task, arguments_of, by_row

__all__ = ["Batch", "Examples", "conditional_at_one", "mixed", "on_data", "trajectories", "walk"]

Batch = tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any]]
"""``(x, target, t, scale, condition)`` of some examples."""


@dataclass(frozen=True)
class Examples:
    """Inputs of a student, and the teacher's guided predictions.

    Attributes:
        x, target: ``[N, ...]``.
        t, scale: ``[N]``.
        row: which row of ``condition`` each belongs to, int64 ``[N]``.
        condition: the network's arguments that have a row for each trajectory.
        shared: its other arguments.
    """

    x: Tensor
    target: Tensor
    t: Tensor
    scale: Tensor
    row: Tensor
    condition: dict[str, Tensor]
    shared: dict[str, Any]

    def __len__(self) -> int:
        return len(self.row)

    def batch(self, index: Tensor) -> Batch:
        """The examples of some indices, int64 ``[B]``."""
        rows = self.row[index]
        condition = {name: value[rows] for name, value in self.condition.items()}
        return self.x[index], self.target[index], self.t[index], self.scale[index], condition | self.shared


def mixed(held: Sequence[Examples], size: int, generator: torch.Generator) -> Batch:
    """A batch drawn from all that is held, each example as likely as any other."""
    counts = torch.tensor([len(examples) for examples in held])
    drawn = torch.randint(int(counts.sum()), (size,), generator=generator)
    ends = counts.cumsum(0)
    parts = []
    for examples, end in zip(held, ends.tolist(), strict=True):
        begin = end - len(examples)
        index = drawn[(drawn >= begin) & (drawn < end)] - begin
        if len(index):
            parts.append(examples.batch(index.to(examples.row.device)))
    x, target, t, scale = (torch.cat([part[field] for part in parts]) for field in range(4))  # type: ignore[misc]
    condition = dict(held[0].shared)
    for name in held[0].condition:
        condition[name] = torch.cat([part[4][name] for part in parts])
    return x, target, t, scale, condition


@dataclass(frozen=True)
class Step:
    """A step of the teacher: the model's input, its guided prediction, and where the trajectory goes."""

    index: int
    t: float
    x: Tensor
    target: Tensor
    after: Tensor


def walk(task: Task, conditions: Any, noise: Tensor, scale: Tensor, num_steps: int) -> Iterator[Step]:
    """The teacher's steps from noise to sample at guidance scales ``[B]``."""
    scheduler = copy.deepcopy(task.scheduler)
    scheduler.set_timesteps(num_steps)
    times = [float(t) for t in scheduler.timesteps]
    state = State()
    x = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    for index, t in enumerate(scheduler.timesteps):
        seen = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        now = float(t)
        target = task.target(
            seen,
            torch.full((len(seen),), now, device=x.device),
            conditions,
            scale,
            step=index,
            num_steps=num_steps,
            times=times,
            state=state,
        )
        x = scheduler.step(target, t, x).prev_sample
        yield Step(index, now, seen, target, x)


@torch.no_grad()
def trajectories(task: Task, count: int, scale: Tensor, num_steps: int, generator: torch.Generator) -> Examples:
    """Every state of ``count`` trajectories of the teacher at guidance scales ``[count]``: no data is needed.

    The states are the ones that sampling at those scales meets, and a rule with memory has run its course.
    """
    noise = task.noise(count, generator)
    conditions = task.conditions(count, generator)
    scale = scale.to(noise.device)
    steps = list(walk(task, conditions, noise, scale, num_steps))
    rows = torch.arange(count, device=noise.device)
    condition, shared = by_row(arguments_of(conditions[task.condition]), count)
    return Examples(
        x=torch.cat([step.x for step in steps]),
        target=torch.cat([step.target for step in steps]),
        t=torch.tensor([step.t for step in steps], device=noise.device).repeat_interleave(count),
        scale=scale.repeat(len(steps)),
        row=rows.repeat(len(steps)),
        condition=condition,
        shared=shared,
    )


@torch.no_grad()
def conditional_at_one(task: Task, num_steps: int = 4, seed: int = 0) -> bool:
    """Return whether the teacher at guidance scale 1 is its conditional pass, to 1 % along a short trajectory.

    It is with CFG; with a negative prompt or a perturbed pass of a scale of its own it is not.
    """
    seen = trajectories(task, 2, torch.ones(2), num_steps, torch.Generator().manual_seed(seed))
    x, target, t, _, condition = seen.batch(torch.arange(len(seen), device=seen.x.device))
    plain = task.family.call(task.network, x, t, **condition)
    return bool((plain.float() - target.float()).norm() <= 0.01 * target.float().norm())


@torch.no_grad()
def on_data(task: Task, count: int, scale: Tensor, num_steps: int, generator: torch.Generator) -> Examples:
    """Noised data and the teacher's predictions of it.

    Times are drawn from the whole training range; for a rule with schedules, all of a batch are one step of the
    sampler's, whose place the schedules need.

    Raises:
        ValueError: without data, or for a rule that remembers earlier steps.
    """
    if task.data is None:
        raise ValueError("data: the task has no data; distil on trajectories")
    if task.stateful:
        raise ValueError(
            f"data: {type(task.teacher.rule).__name__} remembers earlier steps, which data has not; use trajectories"
        )
    clean, conditions = task.data(count, generator)
    times = task.times(num_steps)
    if task.teacher.rule.scheduled or task.teacher.rule.lowered.domain is not None:
        step = int(torch.randint(num_steps, (1,), generator=generator))
        t = torch.full((count,), times[step])
    else:
        step = 0
        t = torch.randint(int(task.scheduler.config.num_train_timesteps), (count,), generator=generator).float()
    noise = torch.randn(clean.shape, generator=generator).to(clean)
    t, scale = t.to(clean.device), scale.to(clean.device)
    x = noisy(task.scheduler, clean, noise, t)
    target = task.target(x, t, conditions, scale, step=step, num_steps=num_steps, times=times)
    rows = torch.arange(count, device=clean.device)
    return Examples(x, target, t, scale, rows, *by_row(arguments_of(conditions[task.condition]), count))
