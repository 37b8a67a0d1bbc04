"""Guidance that touches attention: NAG's rule on attention outputs, and the input of self-attention guidance.

The sum of self-attention guidance itself is the rule :class:`fastcfg.SelfAttentionGuidance`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..validate import Weight, check_tensor, number, per_sample, upcast, weighted_sum, weights_like

__all__ = ["attention_mask", "degrade", "normalized_attention_guidance"]


def normalized_attention_guidance(
    positive: Tensor,
    negative: Tensor,
    *,
    scale: Weight = 5.0,
    tau: float = 2.5,
    alpha: float = 0.25,
    eps: float = 0.0,
) -> Tensor:
    """NAG: negative prompts on attention outputs, for models that run a single pass.

    ``g = scale * z+ - (scale - 1) * z-``; per token ``r = |g|_1 / |z+|_1`` and ``g * min(r, tau) / r``; the result
    is ``alpha * that + (1 - alpha) * z+``.

    Args:
        positive, negative: attention outputs z+ and z- ``[B, ..., C]``; norms run over the last dim.
        scale: 1 leaves z+ for ``tau >= 1``; the paper's own scale is this less 1. A number, or a tensor ``[]`` or
            ``[B]``.
        tau: largest growth of a token's L1 norm. ComfyUI's default is 1.5.
        alpha: share of the guided output; 0 is off. ComfyUI's default is 0.5.
        eps: lower bound of both norms (ComfyUI: 1e-6). With 0, a token where z+ is zero stays zero, as the cap says.

    Returns:
        ``[B, ..., C]`` in the inputs' dtype, float32 inside and one rounding.

    Raises:
        TypeError, ValueError: naming the argument.

    Source: Chen et al., 2505.21179.
    """
    check_tensor("positive", positive)
    check_tensor("negative", negative, positive)
    tau, alpha = number("tau", tau, low=0.0), number("alpha", alpha, 0.0, 1.0)
    eps = number("eps", eps, low=0.0)
    if alpha == 0.0:
        return positive
    z = upcast(positive)
    extra = per_sample("scale", scale, z) - 1.0
    pull = z - upcast(negative)
    guided = z + extra * pull
    own = z.abs().sum(-1, keepdim=True).clamp(min=eps)
    length = guided.abs().sum(-1, keepdim=True).clamp(min=eps)
    factor = torch.where(length > 0, (tau * own / length).clamp(max=1.0), 1.0)
    share = alpha * factor
    return ((share + (1.0 - alpha)) * z + share * extra * pull).to(positive.dtype)


def attention_mask(attention: Any, size: tuple[int, int], *, threshold: float = 1.0) -> Tensor:
    """Return where a self-attention map puts more than its share: ``sum over queries of mean over heads > threshold``.

    Args:
        attention: probabilities ``[B, heads, N, N]`` (queries, then keys) of the unconditional pass.
        size: ``(h, w)`` of the map, ``h * w = N``.
        threshold: in units of the mean mass of a key, which is 1.

    Returns:
        ``[B, 1, h, w]`` of bools.

    Raises:
        ValueError: if there is no attention, or its shape does not fit.

    Source: Hong et al., 2210.00939.
    """
    if attention is None:
        raise ValueError(
            "attention: self-attention guidance needs the probabilities of a self-attention layer, and the model gave "
            "none; a model without attention, or with a fused one, can be guided by a perturbed pass instead"
        )
    if not isinstance(attention, Tensor) or attention.dim() != 4 or attention.shape[2] != attention.shape[3]:
        found = list(attention.shape) if isinstance(attention, Tensor) else type(attention).__name__
        raise ValueError(f"attention: expected probabilities [B, heads, N, N], got {found}")
    height, width = size
    if height * width != attention.shape[3]:
        raise ValueError(f"size: expected h * w = {attention.shape[3]}, got {height} * {width}")
    mass = upcast(attention).mean(1).sum(1)
    return (mass > number("threshold", threshold)).view(-1, 1, height, width)


def gaussian_blur(image: Tensor, kernel_size: int, sigma: float) -> Tensor:
    """Gaussian blur with reflected borders of ``[B, C, H, W]``.

    Sums of shifted slices: a convolution would take TF32 on some GPUs, and another order of summation on others.
    """
    half = kernel_size // 2
    taps = [math.exp(-0.5 * ((k - half) / sigma) ** 2) for k in range(kernel_size)]
    total = math.fsum(taps)
    result = torch.nn.functional.pad(image, (half, half, half, half), mode="reflect")
    for dim in (-2, -1):
        slices = [result.narrow(dim, k, image.shape[dim]) for k in range(kernel_size)]
        result = torch.zeros_like(slices[0])
        for weight, part in zip(taps, slices, strict=True):
            result = torch.add(result, part, alpha=weight / total)
    return result


def degrade(
    x0: Tensor,
    mask: Tensor,
    eps: Tensor,
    *,
    alpha: Weight,
    sigma: Weight,
    kernel_size: int = 9,
    blur_sigma: float = 1.0,
) -> Tensor:
    """The degraded input of self-attention guidance: x0 blurred under the mask, and noised again.

    ``alpha * (mask * blur(x0) + (1 - mask) * x0) + sigma * eps``, with a Gaussian blur.

    Args:
        x0, eps: clean sample and noise of the unconditional prediction, ``[B, C, H, W]``.
        mask: ``[B, 1, h, w]`` from :func:`attention_mask` or of one's own, bool or 0 ... 1; resized to nearest.
        alpha, sigma: levels of ``x = alpha * x0 + sigma * eps``: numbers, or tensors ``[]`` or ``[B]``.
        kernel_size: odd; both sides of the image have to be longer than half of it.
        blur_sigma: width of the blur in elements.

    Returns:
        ``[B, C, H, W]`` in x0's dtype, float32 inside and one rounding.

    Raises:
        TypeError, ValueError: naming the argument.

    Source: Hong et al., 2210.00939.
    """
    check_tensor("x0", x0)
    check_tensor("eps", eps, x0)
    if x0.dim() != 4:
        raise ValueError(f"x0: expected [B, C, H, W], got {list(x0.shape)}")
    if not isinstance(kernel_size, int) or kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size: expected an odd positive integer, got {kernel_size!r}")
    if number("blur_sigma", blur_sigma) <= 0:
        raise ValueError(f"blur_sigma: expected a number above 0, got {blur_sigma}")
    if min(x0.shape[-2:]) <= kernel_size // 2:
        raise ValueError(f"x0: expected sides above {kernel_size // 2}, half the kernel, got {list(x0.shape[-2:])}")
    if not isinstance(mask, Tensor) or mask.dim() != 4 or mask.shape[1] != 1 or mask.shape[0] not in (1, x0.shape[0]):
        found = list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"mask: expected [{x0.shape[0]}, 1, h, w], got {found}")
    clean = upcast(x0)
    share = torch.nn.functional.interpolate(mask.to(clean.dtype), x0.shape[-2:])
    mixed = clean + share * (gaussian_blur(clean, kernel_size, blur_sigma) - clean)
    a, s = weights_like({"alpha": alpha, "sigma": sigma}, clean)
    return weighted_sum({"x0": (a, mixed), "eps": (s, eps)}, dtype=x0.dtype)
