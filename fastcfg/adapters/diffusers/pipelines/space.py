"""Space of a step's predictions, and the mask of what was given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from ....core.guide import guide
from ....prediction import Prediction, affine_map
from ....rules import InDomain, Rule
from ..noise import SchedulerLevels
from .calls import Call
from .inputs import bind

__all__ = ["given_mask", "guide_in_space"]

Predictions = Mapping[str, Tensor]


def given_mask(call: Call, made: Tensor, per_token: Tensor | None) -> Tensor | None:
    """Return where a step samples.

    False for tokens or frames that were given (a first frame), or None where all are sampled.

    A pipeline tells it by timesteps: a token that was given is at a lower one than the step's own.

    Args:
        call: of the denoiser, whose ``timestep`` may be one for each token or frame, ``[B, N]``.
        made: ``[B, ...]`` of the scheduler; per_token: the scheduler's ``per_token_timesteps`` ``[B, N]``.

    Returns:
        ``[B, N, 1]`` for tokens, else of the dimensions of ``made``.
    """
    times = per_token if per_token is not None else bind(call.denoiser, call.args, call.kwargs).get("timestep")
    if not isinstance(times, Tensor) or times.dim() != 2 or times.shape[1] == 1 or times.shape[0] % made.shape[0]:
        return None
    times = times[: made.shape[0]]
    sampled = times >= times.amax(1, keepdim=True) - 1e-3
    if made.dim() == 3:
        return sampled.unsqueeze(-1) if times.shape[1] == made.shape[1] else None
    if made.dim() != 5:
        return None
    batch, _, frames, height, width = made.shape
    if times.shape[1] == frames:
        return sampled.view(batch, 1, frames, 1, 1).expand(batch, 1, frames, height, width)
    side = round((frames * height * width / times.shape[1]) ** 0.5)
    if side < 1 or frames * (height // side) * (width // side) != times.shape[1]:
        return None
    small = sampled.view(batch, 1, frames, height // side, width // side)
    return small.repeat_interleave(side, 3).repeat_interleave(side, 4)


def guide_in_space(
    rule: Rule, predictions: Predictions, x: Tensor, levels: SchedulerLevels, options: Mapping[str, Any]
) -> Tensor:
    """:func:`fastcfg.guide` by a rule with a domain, on what a scheduler's step takes.

    Args:
        x: the model's input, of the predictions' shape.
        options: others of :func:`fastcfg.guide`.

    Raises:
        ValueError: for a scheduler that does not say what its model predicts.
    """
    level = levels.prediction()
    signed = {name: levels.sign * tensor for name, tensor in predictions.items()} if levels.sign < 0 else predictions
    if isinstance(level.sigma, Tensor) and level.sigma.dim() > 1:
        return levels.sign * _by_token(rule, signed, x, level, options)
    result = guide(rule, x=x, prediction=level, **options, **dict[str, Any](signed))
    return -result if levels.sign < 0 else result


def _by_token(rule: Rule, predictions: Predictions, x: Tensor, level: Prediction, options: Mapping[str, Any]) -> Tensor:
    """By tokens ``[B, N, C]`` with a level each; those that were given, at no noise, get the conditional prediction."""
    if not isinstance(rule, InDomain):
        raise ValueError(f"rule: {type(rule).__name__} has a domain inside; per-token timesteps take InDomain(rule)")
    dtype = torch.promote_types(x.dtype, torch.float32)
    levels = (cast(Tensor, value).to(x.device, dtype).unsqueeze(-1) for value in (level.alpha, level.sigma))
    a, b = affine_map(level.kind, rule.domain, *levels)
    inside = {name: a * x.to(dtype) + b * tensor.to(dtype) for name, tensor in predictions.items()}
    guided = guide(rule.rule, **options, **dict[str, Any](inside))
    ahead = predictions.get("cond", next(iter(predictions.values())))
    still = torch.as_tensor(b == 0).expand_as(guided)
    back = (guided - a * x.to(dtype)) / torch.where(still, torch.ones_like(guided), b)
    return torch.where(still, ahead.to(dtype), back).to(ahead.dtype)
