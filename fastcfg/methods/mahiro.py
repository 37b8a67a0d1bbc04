"""Mahiro: guidance towards the direction of the positive prompt."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..validate import Weight, check_choice, check_tensor, per_sample, upcast, weighted_sum, weights_like

__all__ = ["mahiro"]


def mahiro(
    *,
    uncond: Tensor,
    cond: Tensor,
    scale: Weight,
    dim: int = 1,
    variant: Literal["per_sample", "comfy"] = "per_sample",
) -> Tensor:
    """``(w * y + (4 - w) * leap) / 4`` with ``y = uncond + scale * (cond - uncond)`` and ``leap = scale * cond``.

    ``w = 2 * (similarity + 1)``, the similarity being the mean of the cosine along ``dim`` between ``n(scale *
    uncond)`` and ``n((leap + y) / 2)`` with ``n(z) = sign(z) * sqrt(|z|)``. Since ``y - leap = (1 - scale) * uncond``
    it is computed as ``scale * cond + (1 - scale) * (1 + similarity) / 2 * uncond``.

    Args:
        uncond, cond: x0 predictions ``[B, ...]``.
        scale: CFG's, a number, or a tensor ``[]`` or ``[B]``.
        dim: of the cosine, 1 being the channels.
        variant: ``"per_sample"`` takes the similarity of each sample; ``"comfy"`` that of the whole batch, as
            ComfyUI's node does, so that a sample depends on its batch mates. They agree for a batch of one.

    Returns:
        ``[B, ...]`` in the predictions' dtype, float32 inside and one rounding.

    Raises:
        TypeError, ValueError: naming the argument.

    Source: ComfyUI, nodes_mahiro.py.
    """
    check_choice("variant", variant, ("per_sample", "comfy"))
    check_tensor("uncond", uncond)
    check_tensor("cond", cond, uncond)
    if not isinstance(dim, int) or not (1 <= dim < cond.dim() or -cond.dim() < dim < 0):
        raise ValueError(f"dim: expected a dimension of {list(cond.shape)} other than the batch, got {dim!r}")
    (s,) = weights_like({"scale": scale}, cond)
    u, c = upcast(uncond), upcast(cond)
    over = per_sample("scale", s, c)
    # (leap + y) / 2 = scale * cond + (1 - scale) / 2 * uncond.
    merged = over * c + (0.5 * (1.0 - over)) * u
    cosine = torch.cosine_similarity(_signed_root(over * u), _signed_root(merged), dim=dim, eps=1e-8)
    similarity = cosine.flatten(1).mean(1) if variant == "per_sample" else cosine.mean()
    return weighted_sum({"cond": (s, cond), "uncond": ((1.0 - s) * (0.5 * (1.0 + similarity)), uncond)})


def _signed_root(z: Tensor) -> Tensor:
    return z.sign() * z.abs().sqrt()
