"""Tasks on the demo's model: digits in colours."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..core.conditions import Conditions
from ..denoiser import GuidedDenoiser
from ..distill.student import Student
from ..distill.student_file import load_student
from ..distill.task import Task
from ..rules import CFG, Rule
from .checkpoint import DENOISER, STUDENT, load_denoiser
from .data import IMAGE_SIZE, NUM_COLOURS, NUM_DIGITS, Digits, draw_batch, load_digits
from .diffusion import noise_scheduler
from .sample import labels

__all__ = ["AVOIDED_COLOUR", "demo_student", "demo_task"]

AVOIDED_COLOUR = 0
"""Index into the palette of the colour that negatives name: red."""


def demo_task(
    rule: Rule | None = None,
    *,
    checkpoint: Path = DENOISER,
    device: torch.device | str = "cpu",
    digits: Digits | None = None,
) -> Task:
    """The demo's denoiser under a rule, CFG by default.

    ``cond`` is a digit in a colour, ``uncond`` neither. A rule with ``negative`` gets digits of any colour with red as
    the negative, which becomes part of the student.

    Args:
        digits: training images for distillation on data; by default the ones that the denoiser was trained on.

    Raises:
        ValueError: the rule takes other predictions than these.
    """
    rule = CFG() if rule is None else rule
    if unknown := sorted(set(rule.conditions) - {"uncond", "cond", "negative"}):
        raise ValueError(f"rule: the demo's model has no predictions {unknown}; it has uncond, cond and negative")
    network, _ = load_denoiser(checkpoint, device)
    where = next(network.parameters()).device

    names = rule.conditions

    def conditions_of(digit: Tensor, colour: Tensor) -> Conditions:
        like = digit
        if "negative" not in names:
            return {"uncond": labels(like=like), "cond": labels(digit, colour, like=like)}
        every = {
            "uncond": labels(like=like),
            "cond": labels(digit, like=like),
            "negative": labels(colour=torch.full_like(digit, AVOIDED_COLOUR), like=like),
        }
        return {name: every[name] for name in names}

    def conditions(count: int, generator: torch.Generator) -> Conditions:
        digit = torch.randint(NUM_DIGITS, (count,), generator=generator).to(where)
        colour = torch.randint(NUM_COLOURS, (count,), generator=generator).to(where)
        return conditions_of(digit, colour)

    def noise(count: int, generator: torch.Generator) -> Tensor:
        return torch.randn((count, 3, IMAGE_SIZE, IMAGE_SIZE), generator=generator).to(where)

    def data(count: int, generator: torch.Generator) -> tuple[Tensor, Conditions]:
        real = digits if digits is not None else load_digits(held_out=False)
        images, digit, colour = draw_batch(real, count, generator)
        return images.to(where), conditions_of(digit.to(where), colour.to(where))

    return Task(GuidedDenoiser(network, rule), noise_scheduler(), noise, conditions, data)


def demo_student(scale: float | None = None, device: torch.device | str = "cpu") -> Student:
    """The student that comes with the package: CFG of the demo's denoiser at scales 1 to 10, a LoRA adapter.

    Args:
        scale: guidance scale of calls that give none.
    """
    network, _ = load_denoiser(DENOISER, device)
    return load_student(STUDENT, network, scale=scale)
