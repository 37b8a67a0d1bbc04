"""Samples of one curve at one scale; every one of them from the same noise and labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fastcfg import GuidedDenoiser, State, dynamic_threshold, static_threshold
from fastcfg.core.conditions import Conditions
from fastcfg.demo.data import NUM_COLOURS, NUM_DIGITS
from fastcfg.demo.diffusion import noise_scheduler
from fastcfg.demo.distillation import AVOIDED_COLOUR
from fastcfg.demo.sample import Labels, draw_noise, labels
from fastcfg.distill import Student
from fastcfg.samplers import Sampler, from_scheduler
from fastcfg.samplers.step import Step

from .curves import Asked, Curve, Keep

__all__ = ["Model", "Start", "ddim", "in_precision", "sample"]

Model = Callable[..., Tensor]


def ddim(steps: int) -> Sampler:
    """The demo's sampler, with that many steps."""
    scheduler = noise_scheduler()
    scheduler.set_timesteps(steps)
    return from_scheduler(scheduler)


@dataclass(frozen=True)
class Start:
    """The noise and labels that samples start from.

    Attributes:
        noise: ``[B, 3, 28, 28]``.
        digit, colour: labels, int64 ``[B]``. Every ten samples are the ten digits, and every sixty all pairs.
    """

    noise: Tensor
    digit: Tensor
    colour: Tensor

    @staticmethod
    def draw(samples: int, seed: int) -> Start:
        """The same for every curve."""
        index = torch.arange(samples)
        digit = index % NUM_DIGITS
        return Start(draw_noise(samples, seed), digit, (digit + index // NUM_DIGITS) % NUM_COLOURS)

    def __len__(self) -> int:
        return len(self.digit)

    def parts(self, size: int) -> Iterator[Start]:
        """Batches of at most ``size``."""
        for first in range(0, len(self), size):
            rows = slice(first, first + size)
            yield replace(self, noise=self.noise[rows], digit=self.digit[rows], colour=self.colour[rows])

    def conditions(self, asked: Asked, names: Sequence[str]) -> dict[str, Labels]:
        """The labels of the predictions called ``names``."""
        like = self.noise
        every = {
            "uncond": labels(like=like),
            "cond": labels(self.digit, self.colour if asked == "both" else None, like=like),
            "negative": labels(colour=torch.full_like(self.digit, AVOIDED_COLOUR), like=like),
        }
        return {name: every[name] for name in names}


def in_precision(model: Callable[..., Any], bf16: bool) -> Model:
    """The model with its products in bfloat16, or as it is; it returns float32."""

    def call(*args: Any, **kwargs: Any) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return model(*args, **kwargs).float()  # type: ignore[no-any-return]

    return call


def sample(
    curve: Curve, scale: float, start: Start, steps: int, *, teacher: Model, student: Student, bf16: bool
) -> tuple[Tensor, int]:
    """``(images [B, 3, 28, 28], passes of the network for each of them)`` by DDIM.

    Args:
        teacher: the network, in its precision; student: the distilled one; bf16: its precision.
    """
    counter: Any
    if curve.who == "student":
        student.reset()
        counter = student
        advance = _distilled(in_precision(student, bf16), scale, start.conditions(curve.asked, ("cond",)))
    else:
        rule = curve.rule_at(scale)
        counter = GuidedDenoiser(teacher, rule)
        advance = _guided(counter, start.conditions(curve.asked, rule.conditions), _KEEPERS[curve.keep])
    x = start.noise
    for step in ddim(steps):
        x = advance(x, step)
    return x, counter.passes_run


_KEEPERS: Mapping[Keep, Callable[[Tensor], Tensor] | None] = {
    "": None,
    "clip": static_threshold,
    "dynamic": dynamic_threshold,
}


def _distilled(student: Model, scale: float, conditions: Conditions) -> Callable[[Tensor, Step], Tensor]:
    def advance(x: Tensor, step: Step) -> Tensor:
        prediction = student(x, step.timestep, conditions=conditions, scale=scale)
        return step.prediction * prediction + step.x * x

    return advance


def _guided(
    denoiser: GuidedDenoiser, conditions: Conditions, keeper: Callable[[Tensor], Tensor] | None
) -> Callable[[Tensor, Step], Tensor]:
    state = State()

    def advance(x: Tensor, step: Step) -> Tensor:
        if keeper is None:
            return denoiser.step(x, step, conditions=conditions, state=state)
        assert step.timestep is not None
        prediction = denoiser(x, step.timestep, conditions=conditions, state=state)
        clean = keeper(step.x0_prediction * prediction + step.x0_x * x)
        prediction = (clean - step.x0_x * x) / step.x0_prediction
        return step.prediction * prediction + step.x * x

    return advance
