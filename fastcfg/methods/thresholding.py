"""Keeping clean samples in range: dynamic and static thresholding of x0 predictions."""

from __future__ import annotations

import torch
from torch import Tensor

from ..validate import check_tensor, number, upcast

__all__ = ["DIFFUSERS_CAP", "dynamic_threshold", "static_threshold"]

DIFFUSERS_CAP = 1.0
"""The default ``sample_max_value`` of diffusers' schedulers: with this cap the threshold is 1, a plain clip."""


def sample_quantile(x: Tensor, quantile: float) -> Tensor:
    """The linearly interpolated quantile of each row of ``[B, N]``, as ``[B]`` in the dtype that is computed in.

    It takes the two order statistics around rank ``quantile * (N - 1)``, a rank in float64; ``torch.quantile`` sorts
    everything, takes the rank in float32 and refuses more than 2^24 elements. (``kthvalue`` would do as well, but
    raises on CUDA under ``torch.use_deterministic_algorithms``.)
    """
    count = x.shape[-1]
    rank = quantile * (count - 1)
    low = min(int(rank), count - 1)
    high = min(low + 1, count - 1)
    if 2 * low >= count:
        ranked = x.topk(count - low, dim=-1).values
        lower, upper = ranked[..., -1], ranked[..., low - high - 1]
    else:
        ranked = x.topk(high + 1, dim=-1, largest=False).values
        lower, upper = ranked[..., low - high - 1], ranked[..., -1]
    return torch.lerp(upcast(lower), upcast(upper), rank - low)


def dynamic_threshold(x0: Tensor, *, quantile: float = 0.995, cap: float | None = None) -> Tensor:
    """``clip(x0, -q, q) / q`` with q the sample's quantile of ``|x0|``, at least 1 and at most ``cap``.

    A sample within ``[-1, 1]`` stays as it is; any other is brought into it by a division, which keeps more of what
    was beyond than a clip does.

    Args:
        x0: clean samples ``[B, ...]`` of any size; the quantile is a sample's own.
        quantile: in 0 ... 1, interpolated linearly.
        cap: the largest q, at least 1; None is none (Imagen). :data:`DIFFUSERS_CAP` is that of diffusers'
            schedulers, which makes it :func:`static_threshold`.

    Returns:
        ``[B, ...]`` in x0's dtype, float32 inside and one rounding. NaN and infinity count as the largest, so that a
        sample whose quantile falls on one is NaN.

    Raises:
        TypeError, ValueError: naming the argument.

    Source: Saharia et al., 2205.11487, sec. 2.3.
    """
    check_tensor("x0", x0)
    quantile = number("quantile", quantile, 0.0, 1.0)
    cap = number("cap", cap, low=1.0, optional=True)
    if x0.numel() == 0:
        return x0.clone()
    q = sample_quantile(x0.flatten(1).abs(), quantile).clamp(min=1.0, max=cap)
    q = q.view(-1, *[1] * (x0.dim() - 1))
    return (torch.clamp(upcast(x0), -q, q) / q).to(x0.dtype)


def static_threshold(x0: Tensor, *, bound: float = 1.0) -> Tensor:
    """``clip(x0, -bound, bound)``, a plain clip.

    Args:
        x0: clean samples ``[B, ...]``.
        bound: a number, at least 0.

    Source: Saharia et al., 2205.11487, sec. 2.3.
    """
    bound = number("bound", bound, low=0.0)
    return check_tensor("x0", x0).clamp(-bound, bound)
