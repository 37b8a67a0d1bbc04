"""Models that guidance was distilled into: how they take the scale, and a warning where it would act twice."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from ..rules import Rule
from ..validate import number

__all__ = [
    "check_double_guidance",
    "flux_guidance_embedding",
    "flux_guidance_value",
    "lcm_embedding",
    "lcm_weight",
    "scale_from_lcm_weight",
]


def lcm_weight(scale: float | Tensor) -> float | Tensor:
    """``w = scale - 1``: the weight that LCM-style students take, of ``cond + w * (cond - uncond)`` (2310.04378)."""
    return scale - 1.0


def scale_from_lcm_weight(weight: float | Tensor) -> float | Tensor:
    """``scale = w + 1``, the inverse of :func:`lcm_weight`."""
    return weight + 1.0


def _scales(name: str, scale: float | Tensor, device: torch.device | str | None) -> Tensor:
    """``[B]`` of float32."""
    if not isinstance(scale, Tensor):
        return torch.full((1,), number(name, scale), dtype=torch.float32, device=device)
    if not scale.is_floating_point() or scale.dim() > 1:
        raise ValueError(f"{name}: expected a number or a floating tensor [B], got {scale.dtype} {list(scale.shape)}")
    return scale.reshape(-1).to(device=device or scale.device, dtype=torch.float32)


def lcm_embedding(scale: float | Tensor, dim: int = 256, *, device: torch.device | str | None = None) -> Tensor:
    """The embedding ``[sin, cos]`` of ``w * 1000``, ``w = scale - 1``, that LCM-style students take.

    Frequencies are ``10000^(-k / (dim // 2 - 1))``; an odd ``dim`` ends in a zero. diffusers calls this
    ``get_guidance_scale_embedding(w)`` and passes it as ``timestep_cond``.

    Args:
        scale: guidance scale (not w), a number or a tensor ``[B]``.
        dim: at least 4: the student's ``time_cond_proj_dim``.

    Returns:
        ``[B, dim]`` of float32, ``[1, dim]`` for a number.

    Raises:
        TypeError, ValueError: naming the argument.

    Source: Luo et al., 2310.04378.
    """
    if isinstance(dim, bool) or not isinstance(dim, int) or dim < 4:
        raise ValueError(f"dim: expected an integer of at least 4, got {dim!r}")
    weight = _scales("scale", scale, device) - 1.0
    half = dim // 2
    # In float32 throughout, as the students were trained: at w * 1000 the phase depends on it.
    rate = torch.log(torch.tensor(10000.0)) / (half - 1)
    frequencies = torch.exp(torch.arange(half, dtype=torch.float32) * -rate).to(weight.device)
    phase = (weight * 1000.0)[:, None] * frequencies[None, :]
    return torch.nn.functional.pad(torch.cat([phase.sin(), phase.cos()], dim=1), (0, dim % 2))


def flux_guidance_value(
    scale: float | Tensor, dtype: torch.dtype = torch.bfloat16, *, device: torch.device | str | None = None
) -> Tensor:
    """The number that a Flux-family transformer embeds: the scale in the model's dtype, then times 1000 in it.

    In bfloat16, 3.5 becomes 3504 and not 3500: the model was trained on the rounded values, so they belong to it.

    Args:
        scale: guidance scale, a number or a tensor ``[B]``.
        dtype: of the model's hidden states.

    Returns:
        ``[B]`` in ``dtype``, ``[1]`` for a number.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    if not dtype.is_floating_point:
        raise ValueError(f"dtype: expected a floating dtype, got {dtype}")
    return _scales("scale", scale, device).to(dtype) * 1000


def flux_guidance_embedding(
    scale: float | Tensor,
    dim: int = 256,
    dtype: torch.dtype = torch.bfloat16,
    *,
    device: torch.device | str | None = None,
) -> Tensor:
    """The embedding ``[cos, sin]`` of :func:`flux_guidance_value`, with frequencies ``10000^(-k / (dim // 2))``.

    Returns:
        ``[B, dim]`` of float32, before the model's projection.
    """
    if isinstance(dim, bool) or not isinstance(dim, int) or dim < 2 or dim % 2:
        raise ValueError(f"dim: expected an even positive integer, got {dim!r}")
    value = flux_guidance_value(scale, dtype, device=device)
    return sinusoids(value, dim)


def sinusoids(value: Tensor, dim: int) -> Tensor:
    """``[cos, sin]`` of ``value`` ``[B]`` at frequencies ``10000^(-k / (dim // 2))``, float32 ``[B, dim]``."""
    half = dim // 2
    exponent = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=value.device)
    phase = value[:, None].float() * torch.exp(exponent / half)[None, :]
    return torch.cat([phase.cos(), phase.sin()], dim=1)


def check_double_guidance(rule: Rule, embedded_scale: float | None) -> bool:
    """Warn if a rule would guide a model that guides itself.

    A model with a distilled scale returns a guided prediction already; a rule that runs further passes on it applies
    the scale a second time, at twice the cost.

    Args:
        rule: what is to be applied, its schedules resolved or not.
        embedded_scale: the scale that the model takes as an input; None if it takes none.

    Returns:
        Whether it warned (a UserWarning).
    """
    if embedded_scale is None or len(rule.simplify().conditions) < 2:
        return False
    warnings.warn(
        f"{type(rule).__name__} guides a model that takes a distilled guidance scale ({embedded_scale:g}) itself; "
        "use one pass (CFG(1.0)), or set the embedded scale to the model's neutral value",
        UserWarning,
        stacklevel=2,
    )
    return True
