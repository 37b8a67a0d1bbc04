"""Blurred queries for smoothed energy guidance (SEG)."""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from ...attention import gaussian_blur
from ...combination import upcast

__all__ = ["BlurredQueries", "blur_queries"]

_STACKS = (
    "transformer_blocks", "blocks", "single_transformer_blocks", "layers", "visual_transformer_blocks",
    "temporal_transformer_blocks",
)  # fmt: skip


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


class BlurredQueries:
    """The queries of a model's self-attention blurred in some of its layers, until :meth:`remove`.

    Args:
        denoiser: a transformer of diffusers, or any model with a stack of blocks at ``config.fqn``.
        config: diffusers' ``SmoothedEnergyGuidanceConfig``.
        sigma, threshold: see :func:`blur_queries`.

    Raises:
        ValueError: naming ``seg_guidance_layers`` where the model has no such layers or they have no self-attention.
    """

    def __init__(self, denoiser: nn.Module, config: Any, sigma: float, threshold: float) -> None:
        stack = self._stack(denoiser, config.fqn)
        chosen = {config.indices} if isinstance(config.indices, int) else set(config.indices)
        names = config._query_proj_identifiers or ["to_q"]
        self._handles = []
        for index, block in enumerate(stack):
            for module in block.modules() if index in chosen else ():
                if not isinstance(module, Attention | AttentionModuleMixin) or getattr(
                    module, "is_cross_attention", False
                ):
                    continue
                for projection in (getattr(module, name, None) for name in names):
                    if isinstance(projection, nn.Linear):
                        blur = lambda _, __, output: blur_queries(output, sigma, threshold)  # noqa: E731
                        self._handles.append(projection.register_forward_hook(blur))
        if not self._handles:
            raise ValueError(
                f"seg_guidance_layers: expected layers of {config.fqn!r} (0 ... {len(stack) - 1}) with self-attention, "
                f"got {sorted(chosen)}"
            )

    @staticmethod
    def _stack(denoiser: nn.Module, name: str) -> nn.ModuleList:
        found = next((s for s in _STACKS if hasattr(denoiser, s)), None) if name == "auto" else name
        if found is None:
            raise ValueError(f"seg_guidance_config: fqn 'auto' finds no stack of blocks in {type(denoiser).__name__}")
        stack = denoiser.get_submodule(found)
        if not isinstance(stack, nn.ModuleList):
            raise ValueError(f"seg_guidance_config: fqn {found!r} is {type(stack).__name__}, expected a ModuleList")
        return stack

    def remove(self) -> None:
        """Give the model its own queries back."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
