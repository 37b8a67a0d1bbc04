"""The plane in which CFG moves: predictions as points in two dimensions, with their true lengths and angles."""

from __future__ import annotations

import torch
from fastcfg_kernels.backends.torch.tiles import accumulator
from torch import Tensor

__all__ = ["plane"]


def plane(uncond: Tensor, cond: Tensor, *others: Tensor) -> Tensor:
    """Return the coordinates of predictions in the plane through zero, ``uncond`` and ``cond``.

    The first axis is the direction of ``uncond``, the second what of ``cond`` is perpendicular to it. Every weighted
    sum of the two lies in the plane, so that distances and angles between such points are exact. Any other prediction
    is projected on it.

    Args:
        uncond, cond, others: one sample's predictions, of one shape.

    Returns:
        ``[2 + len(others), 2]`` in float32 (float64 for float64).

    Raises:
        ValueError: naming ``uncond`` where it is zero, which has no direction.
    """
    acc = accumulator(uncond.dtype)
    points = torch.stack([p.to(acc).flatten() for p in (uncond, cond, *others)])  # [points, elements]
    length = points[0].norm()
    if not bool(length > 0):
        raise ValueError("uncond: expected a prediction that is not zero")
    along = points[0] / length
    across = points[1] - (points[1] @ along) * along
    width = across.norm()
    # Parallel predictions have no second axis: all of it is zero then.
    across = torch.where(width > 0, across / width.clamp(min=torch.finfo(acc).tiny), 0.0)
    return points @ torch.stack([along, across], dim=1)
