"""Noise levels and prediction kinds of diffusers' schedulers."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from ..prediction import Kind, Prediction

__all__ = ["level_at", "levels", "noisy", "prediction_at"]

_KINDS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v", "flow_prediction": "flow"}


def levels(scheduler: Any, t: Tensor) -> tuple[Tensor, Tensor]:
    """``(alpha, sigma)`` of ``x = alpha * x0 + sigma * eps`` at times ``[B]``, float32 ``[B]``.

    Variance-preserving schedulers have ``alphas_cumprod``; without it the scheduler is one of flow matching, whose
    sigma is ``t / num_train_timesteps``.
    """
    cumulative = getattr(scheduler, "alphas_cumprod", None)
    if cumulative is not None:
        share = cumulative.to(t.device)[t.long()].float()
        return share.sqrt(), (1 - share).sqrt()
    sigma = t.float() / scheduler.config.num_train_timesteps
    return 1 - sigma, sigma


def level_at(scheduler: Any, t: float) -> float:
    """The noise-to-signal ratio ``sigma / alpha`` at a time, for schedules that run on it."""
    alpha, sigma = levels(scheduler, torch.tensor([t]))
    return sigma.item() / max(alpha.item(), 1e-6)


def prediction_at(scheduler: Any, t: float) -> Prediction:
    """Return what a model of this scheduler predicts at a time, for rules with a domain.

    Raises:
        ValueError: if the scheduler's ``prediction_type`` is unknown.
    """
    name = getattr(scheduler.config, "prediction_type", "flow_prediction")
    if name not in _KINDS:
        raise ValueError(f"scheduler: expected a prediction_type of {', '.join(_KINDS)}, got {name!r}")
    alpha, sigma = levels(scheduler, torch.tensor([t]))
    return Prediction(cast(Kind, _KINDS[name]), alpha.item(), sigma.item())


def noisy(scheduler: Any, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """``alpha * x0 + sigma * noise`` at times ``[B]``."""
    shape = (-1, *[1] * (x0.dim() - 1))
    alpha, sigma = (level.to(x0).view(shape) for level in levels(scheduler, t))
    return alpha * x0 + sigma * noise
