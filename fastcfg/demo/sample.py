"""The sampling loop: a diffusers scheduler around ``fastcfg.GuidedDenoiser``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

import fastcfg

from ..distill.student import Student
from .data import IMAGE_SIZE, NULL_COLOUR, NULL_DIGIT
from .diffusion import noise_scheduler
from .model import UNet

Labels = dict[str, Tensor]


def labels(digit: Tensor | None = None, colour: Tensor | None = None, *, like: Tensor) -> Labels:
    """The denoiser's condition for each image; a kind that is not given is left open.

    Args:
        digit: classes 0-9, int64 ``[B]``.
        colour: indices into ``PALETTE``, int64 ``[B]``.
        like: any ``[B, ...]`` tensor on the device wanted.
    """
    return {
        "digit": _null(NULL_DIGIT, like) if digit is None else digit,
        "colour": _null(NULL_COLOUR, like) if colour is None else colour,
    }


def _null(token: int, like: Tensor) -> Tensor:
    return torch.full((len(like),), token, dtype=torch.int64, device=like.device)


def draw_noise(count: int, seed: int, device: torch.device | str = "cpu") -> Tensor:
    """Starting noise ``[count, 3, 28, 28]``, the same on every device."""
    shape = (count, 3, IMAGE_SIZE, IMAGE_SIZE)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)


@torch.no_grad()
def sample(
    model: UNet | Student,
    rule: fastcfg.Rule,
    conditions: Mapping[str, Labels],
    noise: Tensor,
    *,
    steps: int = 20,
    mode: Literal["batched", "sequential"] = "batched",
    on_step: Callable[[], None] | None = None,
) -> Tensor:
    """Samples with DDIM.

    Args:
        model: the denoiser, or a student that guides itself, under ``CFG(1.0)``.
        rule: the guidance; ``conditions`` has the labels of each of ``rule.conditions``.
        noise: where to start, ``[B, 3, 28, 28]``.
        steps: of the sampler, 1-1000.
        on_step: called after each step.

    Returns:
        Images ``[B, 3, 28, 28]``, about [-1, 1], not clipped.
    """
    denoiser = fastcfg.GuidedDenoiser(model, rule, mode=mode)
    scheduler = noise_scheduler()
    scheduler.set_timesteps(steps)
    x = noise
    for step, t in enumerate(scheduler.timesteps.tolist()):
        v = denoiser(x, t, step=step, num_steps=steps, conditions=conditions)
        x = scheduler.step(v, t, x).prev_sample  # type: ignore[union-attr]
        if on_step is not None:
            on_step()
    return x
