"""Laplacian pyramids: a tensor as bands of frequencies, each of half the size of the one before.

Every operation is an elementwise sum of shifted slices, in the tensor's own dtype: a sample's bits do not depend on its
batch mates, and no convolution rounds to TensorFloat-32. Filters and borders are those of kornia's
``build_laplacian_pyramid`` and ``pyrup`` with their defaults.

Source: Burt & Adelson, "The Laplacian pyramid as a compact image code", 1983.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

__all__ = ["from_laplacian", "gaussian_pyramid", "laplacian_pyramid", "pad_to_pyramid", "pyramid_down", "pyramid_up"]


def _reflect(x: Tensor, dim: int) -> Tensor:
    """Two more elements at each end of a dimension, mirrored without repeating the edge."""
    size = x.shape[dim]
    before = [x.narrow(dim, k, 1) for k in (2, 1)]
    after = [x.narrow(dim, size - k, 1) for k in (2, 3)]
    return torch.cat([*before, x, *after], dim)


def _taps(x: Tensor, dim: int, weights: Sequence[float], count: int, step: int) -> Tensor:
    """``sum_k weights[k] * x[step*i + k]`` for ``i < count`` along a dimension, the weights symmetric."""

    def tap(k: int) -> Tensor:
        part = x.narrow(dim, k, step * (count - 1) + 1)
        return part if step == 1 else part.unfold(dim, 1, step)[..., 0]

    last = len(weights) - 1
    total: Tensor | None = None
    for k in range((last + 1) // 2):
        term = (tap(k) + tap(last - k)) * weights[k]
        total = term if total is None else total + term
    assert total is not None
    return total if last % 2 else total + tap(last // 2) * weights[last // 2]


_BLUR = (1 / 16, 4 / 16, 6 / 16)
_BLUR_AND_HALVE = (1 / 32, 5 / 32, 10 / 32)


def pyramid_down(x: Tensor) -> Tensor:
    """Half the size: a binomial blur of 5, then the mean of blocks of 2, along both last dimensions.

    Args:
        x: ``[..., H, W]`` with even sides of at least 4.

    Returns:
        ``[..., H/2, W/2]``.
    """
    for dim in (x.dim() - 2, x.dim() - 1):
        # The blur of 5 and the mean of 2 are one filter of 6.
        x = _taps(_reflect(x, dim), dim, (*_BLUR_AND_HALVE, *reversed(_BLUR_AND_HALVE)), x.shape[dim] // 2, 2)
    return x


def pyramid_up(x: Tensor) -> Tensor:
    """Twice the size: bilinear (half-pixel centres, edges held), then a binomial blur of 5, along both last dimensions.

    Args:
        x: ``[..., H, W]`` with sides of at least 2.

    Returns:
        ``[..., 2H, 2W]``.
    """
    for dim in (x.dim() - 2, x.dim() - 1):
        size = x.shape[dim]
        three = 0.75 * x
        held = torch.cat([x.narrow(dim, 0, 1), x, x.narrow(dim, size - 1, 1)], dim)
        even, odd = (three + 0.25 * held.narrow(dim, start, size) for start in (0, 2))
        doubled = torch.stack([even, odd], dim + 1).flatten(dim, dim + 1)
        x = _taps(_reflect(doubled, dim), dim, (*_BLUR, *reversed(_BLUR[:-1])), 2 * size, 1)
    return x


def _power_of_two(n: int) -> bool:
    return n & (n - 1) == 0


def pad_to_pyramid(x: Tensor, levels: int) -> Tensor:
    """``x`` with sides that can be halved ``levels - 1`` times, reflected on the right and below where they can't.

    As in kornia, both sides go up to the next power of two if neither is one, or if one can't be halved so often; else
    nothing changes.

    Args:
        x: ``[..., H, W]``.

    Raises:
        ValueError: naming ``levels`` if the sides are too small for them: the smallest level but one needs 4.
    """
    if isinstance(levels, bool) or not isinstance(levels, int) or levels < 1:
        raise ValueError(f"levels: expected a positive integer, got {levels!r}")
    if x.dim() < 2:
        raise ValueError(f"x: expected [..., H, W], got {list(x.shape)}")
    height, width = x.shape[-2:]
    stride = 1 << (levels - 1)
    if not (_power_of_two(height) or _power_of_two(width)) or height % stride or width % stride:
        full = [1 << (side - 1).bit_length() for side in (height, width)]
    else:
        full = [height, width]
    if levels > 1 and min(full) < 2 * stride:
        raise ValueError(
            f"levels: {levels} levels need sides of {2 * stride} or more, got {height} x {width}"
            + (f" (padded {full[0]} x {full[1]})" if full != [height, width] else "")
        )
    for dim, size in ((x.dim() - 2, full[0]), (x.dim() - 1, full[1])):
        if missing := size - x.shape[dim]:
            x = torch.cat([x, x.narrow(dim, x.shape[dim] - 1 - missing, missing).flip(dim)], dim)
    return x


def gaussian_pyramid(x: Tensor, levels: int) -> list[Tensor]:
    """``x`` and its ``levels - 1`` halvings; the sides have to allow it (:func:`pad_to_pyramid`)."""
    pyramid = [x]
    for _ in range(levels - 1):
        pyramid.append(pyramid_down(pyramid[-1]))
    return pyramid


def laplacian_pyramid(x: Tensor, levels: int) -> list[Tensor]:
    """Return ``levels - 1`` bands, the highest frequencies first, and the rest; each has half the size of the last."""
    gaussian = gaussian_pyramid(x, levels)
    bands = [fine - pyramid_up(coarse) for fine, coarse in pairwise(gaussian)]
    return [*bands, gaussian[-1]]


def from_laplacian(pyramid: Sequence[Tensor]) -> Tensor:
    """The tensor of a Laplacian pyramid ``[..., H, W]``."""
    x = pyramid[-1]
    for band in reversed(pyramid[:-1]):
        x = pyramid_up(x) + band
    return x
