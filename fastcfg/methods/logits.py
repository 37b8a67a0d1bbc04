"""Guidance of autoregressive models on their logits."""

from __future__ import annotations

import torch
from fastcfg_kernels import check_param
from fastcfg_kernels.backends.torch.tiles import accumulator
from torch import Tensor

from ..validate import Weight, check_tensor

__all__ = ["guide_logits"]


def guide_logits(cond: Tensor, uncond: Tensor, scale: Weight) -> Tensor:
    """``log p_uncond + scale * (log p_cond - log p_uncond)`` of next-token logits.

    Both sides are log-softmax first, so that the result does not change when logits are shifted; it is not
    normalised itself. ``scale = 1`` is exactly ``log_softmax(cond)`` and ``scale = 0`` exactly
    ``log_softmax(uncond)``.

    A token at -inf on either side is -inf in the result: it is impossible under one of the two, or masked. The
    formula itself would give NaN for it, or +inf where only ``uncond`` has it, which is what transformers'
    ``UnbatchedClassifierFreeGuidanceLogitsProcessor`` returns. At scale 1 only ``cond`` decides, at 0 only
    ``uncond``. NaN logits stay NaN.

    Args:
        cond, uncond: logits ``[B, ..., V]`` of one shape, dtype and device.
        scale: a number, or a tensor ``[]`` or ``[B]``. Nothing is read back from a device.

    Returns:
        ``[B, ..., V]`` in the logits' dtype; computed in float32 (float64 for float64) and rounded once, where
        transformers takes the log-softmax in the logits' dtype.

    Raises:
        TypeError, ValueError: naming the argument.

    Source: Sanchez et al., 2306.17806, eq. 7.
    """
    check_tensor("cond", cond)
    check_tensor("uncond", uncond, cond)
    if uncond.dtype != cond.dtype:
        raise TypeError(f"uncond: expected the dtype of cond, {cond.dtype}, got {uncond.dtype}")
    weight = check_param("scale", scale, cond.shape[0], cond.device)
    if not isinstance(weight, Tensor):
        if weight in (0.0, 1.0):
            chosen = cond if weight == 1.0 else uncond
            return _log_softmax(chosen).masked_fill(chosen == -torch.inf, -torch.inf).to(cond.dtype)
        guided = torch.lerp(_log_softmax(uncond), _log_softmax(cond), weight)
        return guided.masked_fill_(torch.minimum(cond, uncond) == -torch.inf, -torch.inf).to(cond.dtype)
    weight = weight.to(accumulator(cond.dtype)).view(-1, *[1] * (cond.dim() - 1))
    no_cond, no_uncond = cond == -torch.inf, uncond == -torch.inf
    log_c, log_u = _log_softmax(cond), _log_softmax(uncond)
    # A side that has no say takes the other's value, so that 0 * inf can't make a NaN.
    guided = torch.lerp(torch.where(no_uncond, log_c, log_u), torch.where(no_cond, log_u, log_c), weight)
    dead = (no_cond & (weight != 0)) | (no_uncond & (weight != 1))
    return guided.masked_fill_(dead, -torch.inf).to(cond.dtype)


def _log_softmax(logits: Tensor) -> Tensor:
    """In the accumulator's dtype; NaN for a row without any possible token, which the mask then covers."""
    return torch.log_softmax(logits.to(accumulator(logits.dtype)), dim=-1)
