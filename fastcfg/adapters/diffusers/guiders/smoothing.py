"""Blurred queries for smoothed energy guidance (SEG)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ....methods.attention import gaussian_blur
from ....validate import upcast
from .layers import Weak, self_attention

__all__ = ["blur_queries", "blurred_layers"]


def blur_queries(queries: Tensor, sigma: float, threshold: float) -> Tensor:
    """Queries ``[B, N, C]`` blurred over the largest square image of tokens that N holds; those beyond it stay.

    Args:
        sigma: width of a Gaussian in tokens, cut at three of them and at the image's side; beyond ``threshold`` it
            counts as infinite, which is the mean.

    Returns:
        ``[B, N, C]`` in the queries' dtype, float32 inside.

    Source: Hong, 2408.00760, sec. 4.
    """
    if sigma == 0:
        return queries
    side = math.isqrt(queries.shape[1])
    image = upcast(queries[:, : side * side])
    if sigma > threshold:
        blurred = image.mean(1, keepdim=True).expand_as(image)
    else:
        half = min(math.ceil(3 * sigma), side - 1)
        planes = image.transpose(1, 2).reshape(*queries.shape[::2], side, side)
        blurred = gaussian_blur(planes, 2 * half + 1, sigma).flatten(2).transpose(1, 2)
    return torch.cat([blurred.to(queries.dtype), queries[:, side * side :]], dim=1)


def blurred_layers(
    denoiser: nn.Module, config: Any, sigma: float, threshold: float
) -> Iterator[tuple[nn.Module, Weak]]:
    """The projections to queries in a model's self-attention, with their blurred output, for a :class:`.LayerSwitch`.

    Args:
        denoiser: a transformer of diffusers, or any model with a stack of blocks at ``config.fqn``.
        config: diffusers' ``SmoothedEnergyGuidanceConfig``.
        sigma, threshold: see :func:`blur_queries`.

    Raises:
        ValueError: as :func:`.self_attention`.
    """

    def weak(strong: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        return blur_queries(strong(*args, **kwargs), sigma, threshold)

    names = config._query_proj_identifiers or ["to_q"]
    for module in self_attention(denoiser, config):
        yield from ((p, weak) for n in names if isinstance(p := getattr(module, n, None), nn.Linear))
