"""FreSca: guidance with a scale for low and one for high spatial frequencies."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.grid import Grid
from ..validate import Weight, check_tensor, number, per_sample, upcast

__all__ = ["fresca"]


def fresca(
    *,
    uncond: Tensor,
    cond: Tensor,
    scale: Weight,
    low: float = 1.0,
    high: float = 1.25,
    cutoff: int = 20,
    grid: tuple[int, int] | None = None,
) -> Tensor:
    """``uncond + scale * F^-1(m * F(cond - uncond))``, F being the 2-D Fourier transform.

    ``m`` is ``low`` for frequencies ``-cutoff ... cutoff - 1`` along both sides and ``high`` for all others. That
    square is not symmetric; the imaginary part it leaves is dropped, as in the authors' code, which is the same as
    the mean of ``m`` at a frequency and at its mirror image.

    Args:
        uncond, cond: predictions ``[B, ..., H, W]``.
        scale: CFG's, a number, or a tensor ``[]`` or ``[B]``.
        low, high: scales of the two parts; both 1 is CFG.
        grid: the picture's ``(H, W)``, where the predictions are tokens ``[B, N, C]``; see :func:`fastcfg.guide`.
        cutoff: at least 1. Beyond half a side it covers the whole side (ComfyUI's slice is empty there, and its
            ``low`` has no effect).

    Returns:
        ``[B, ..., H, W]`` in the predictions' dtype, float32 inside and one rounding.

    Raises:
        TypeError, ValueError: naming the argument.

    Source: Huang et al., 2504.02154.
    """
    check_tensor("uncond", uncond)
    check_tensor("cond", cond, uncond)
    if grid is not None:
        shape = Grid(grid, cond)
        return shape.pack(fresca(uncond=shape.unpack(uncond), cond=shape.unpack(cond), scale=scale, low=low, high=high,
                                 cutoff=cutoff))  # fmt: skip
    if cond.dim() < 4:
        tokens = "; tokens [B, N, C] need their picture's grid=(H, W)" if cond.dim() == 3 else ""
        raise ValueError(f"cond: expected [B, C, ..., H, W], got {list(cond.shape)}{tokens}")
    if isinstance(cutoff, bool) or not isinstance(cutoff, int) or cutoff < 1:
        raise ValueError(f"cutoff: expected a positive integer, got {cutoff!r}")
    low, high = number("low", low), number("high", high)
    base = upcast(uncond)
    delta = upcast(cond) - base
    height, width = delta.shape[-2:]
    inside = [_inside(side, cutoff, delta) for side in (height, width)]
    mirrored = [row.roll(-1).flip(0) for row in inside]
    share = 0.5 * (torch.outer(*inside) + torch.outer(*mirrored))[:, : width // 2 + 1]
    spectrum = torch.fft.rfft2(delta) * (high + (low - high) * share)
    filtered: Tensor = torch.fft.irfft2(spectrum, s=(height, width))
    guided: Tensor = base + per_sample("scale", scale, base) * filtered
    return guided.to(cond.dtype)


def _inside(side: int, cutoff: int, like: Tensor) -> Tensor:
    """1 for the frequencies ``-cutoff ... cutoff - 1`` in the transform's order, else 0: ``[side]``."""
    index = torch.arange(side, device=like.device)
    frequency = torch.where(index < (side + 1) // 2, index, index - side)
    return ((frequency >= -cutoff) & (frequency < cutoff)).to(like.dtype)
