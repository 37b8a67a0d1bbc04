"""Pictures packed as tokens: what works on neighbours is told the grid, not left to guess it."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

__all__ = ["Grid"]


class Grid:
    """The picture ``[B, C, H, W]`` that tokens ``[B, N, C * p * p]`` are.

    Args:
        grid: the picture's ``(H, W)``. With ``N = H * W`` a token is a pixel; with fewer tokens it is a patch of
            ``p x p`` pixels, each channel's pixels together, row by row (as Flux and its successors pack).
        like: a tensor of tokens.

    Raises:
        TypeError, ValueError: naming ``grid``, if the tokens are not of such a picture.
    """

    def __init__(self, grid: Any, like: Tensor) -> None:
        if not isinstance(grid, tuple | list) or len(grid) != 2 or not all(type(s) is int and s > 0 for s in grid):
            raise TypeError(f"grid: expected the picture's (H, W) as positive integers, got {grid!r}")
        if like.dim() != 3:
            raise ValueError(f"grid: goes with tokens [B, N, C], got predictions {list(like.shape)}")
        (self.height, self.width), (_, count, channels) = grid, like.shape
        pixels = self.height * self.width
        patch = math.isqrt(pixels // count) if count and pixels % count == 0 else 0
        if (
            not patch
            or patch * patch * count != pixels
            or self.height % patch
            or self.width % patch
            or channels % (patch * patch)
        ):
            raise ValueError(
                f"grid: {self.height} x {self.width} pixels are not {count} tokens of {channels} channels, nor patches "
                f"p x p of them, got predictions {list(like.shape)}"
            )
        self.patch = patch

    def unpack(self, tokens: Tensor) -> Tensor:
        """Tokens as a picture ``[B, C, H, W]``."""
        p = self.patch
        batch, rows, columns = tokens.shape[0], self.height // p, self.width // p
        whole = tokens.reshape(batch, rows, columns, tokens.shape[2] // (p * p), p, p)
        return whole.permute(0, 3, 1, 4, 2, 5).reshape(batch, -1, self.height, self.width)

    def pack(self, picture: Tensor) -> Tensor:
        """A picture as tokens."""
        p = self.patch
        batch, channels, rows, columns = *picture.shape[:2], self.height // p, self.width // p
        whole = picture.reshape(batch, channels, rows, p, columns, p)
        return whole.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, channels * p * p)
