"""Formulas of diffusers' schedulers (written against 0.42.1) that guidance rules share."""

from __future__ import annotations

import torch
from diffusers import DDIMScheduler
from torch import Tensor

__all__ = ["ddim_alphas_cumprod", "ddim_step", "dynamic_threshold", "velocity"]


def dynamic_threshold(x0: Tensor, *, quantile: float = 0.995, cap: float = 1.0) -> Tensor:
    """``DDIMScheduler._threshold_sample``; the default ``cap`` of 1.0 makes it a plain clip to ±1."""
    scheduler = DDIMScheduler(thresholding=True, dynamic_thresholding_ratio=quantile, sample_max_value=cap)
    return scheduler._threshold_sample(x0)


def velocity(*, x0: Tensor, eps: Tensor, timestep: int) -> Tensor:
    """``DDIMScheduler.get_velocity``: ``v = √ᾱ·ε − √(1 − ᾱ)·x0``."""
    return DDIMScheduler().get_velocity(x0, eps, torch.full((x0.shape[0],), timestep))


def ddim_step(*, prediction: Tensor, x: Tensor, step: int, num_steps: int, kind: str = "epsilon") -> Tensor:
    """The deterministic ``DDIMScheduler.step`` from the ``step``-th of ``num_steps`` timesteps, without
    clipping.
    """
    scheduler = _ddim(num_steps, kind)
    return scheduler.step(prediction, int(scheduler.timesteps[step]), x, eta=0.0).prev_sample


def ddim_alphas_cumprod(*, step: int, num_steps: int) -> tuple[float, float]:
    """(ᾱ at the step, ᾱ after it) as :func:`ddim_step` uses them."""
    scheduler = _ddim(num_steps, "epsilon")
    now = int(scheduler.timesteps[step])
    after = now - scheduler.config.num_train_timesteps // num_steps
    end = scheduler.alphas_cumprod[after] if after >= 0 else scheduler.final_alpha_cumprod
    return float(scheduler.alphas_cumprod[now]), float(end)


def _ddim(num_steps: int, kind: str) -> DDIMScheduler:
    scheduler = DDIMScheduler(clip_sample=False, prediction_type=kind)
    scheduler.set_timesteps(num_steps)
    return scheduler
