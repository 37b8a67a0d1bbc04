"""Modifiers of a guided prediction: rescale, clamp and norm caps."""

from __future__ import annotations

import numpy as np

from .arrays import Array, Dims, Parameter, f64, norm, per_sample, ratio, std


def rescale_std(*, guided: Array, cond: Array, phi: Parameter = 0.7, std_kind: str = "unbiased") -> Array:
    """``φ·y·σ(c)/σ(y) + (1 − φ)·y``, Lin et al., arXiv 2305.08891, eqs. 15–16.

    σ over all non-batch dims, with N − 1 (``"unbiased"``, torch and diffusers) or N (``"biased"``, numpy,
    OpenVINO): the ratio is the same, but for a single element, where both count as σ = 0 here.  σ(y) = 0:
    factor 1, so the result is y.  Shapes ``[B, ...]``.
    """
    y, c = f64(guided), f64(cond)
    if std_kind not in ("unbiased", "biased"):
        raise ValueError(f"std_kind must be 'unbiased' or 'biased', got {std_kind!r}")
    unbiased = std_kind == "unbiased"
    factor = ratio(std(c, unbiased=unbiased), std(y, unbiased=unbiased), 1.0)
    phi = per_sample(phi, y)
    return phi * (y * factor) + (1 - phi) * y


def rescale_l2(*, guided: Array, cond: Array, phi: Parameter = 0.7) -> Array:
    """``φ·y·‖c‖/‖y‖ + (1 − φ)·y`` with L2 norms over all non-batch dims; ‖y‖ = 0: y.  Shapes ``[B, ...]``."""
    y, c = f64(guided), f64(cond)
    phi = per_sample(phi, y)
    return phi * (y * ratio(norm(c), norm(y), 1.0)) + (1 - phi) * y


def clamp_std(*, guided: Array, cond: Array, k: Parameter = 4.0, std_kind: str = "unbiased") -> Array:
    """``min(max(y, −k·σ), k·σ)`` elementwise, σ the standard deviation of ``cond`` per sample.

    The bounds are around zero, not around the mean.  σ = 0 gives zero.  Shapes ``[B, ...]``.
    """
    y, c = f64(guided), f64(cond)
    bound = per_sample(k, y) * std(c, unbiased=std_kind == "unbiased")
    return np.clip(y, -bound, bound)


def norm_cap(
    *,
    guided: Array,
    cond: Array,
    cap: Parameter = 1.0,
    mode: str = "cap",
    low: float = 0.0,
    eps: float = 0.0,
    dims: Dims = None,
) -> Array:
    """``y·f`` with f from ``q = ‖c‖ / (‖y‖ + eps)`` over ``dims``; ‖y‖ + eps = 0: f = 1.

    ``mode="cap"``: ``f = min(1, κ·q)`` (Z-Image, RenormCFG; κ = ``cap``).  ``"full"``: ``f = κ·q``
    (Qwen-Image, Lumina 2). ``"clamp"``: ``f = min(max(κ·q, low), 1)`` (LongCat: ``low`` = cfg_renorm_min, eps
    = 1e−8; ComfyUI's CFGNorm: low = 0). ``dims``: None for a sample, −1 for a token of ``[B, N, C]``, 1 for a
    pixel's channels in ``[B, C, H, W]``.
    """
    y, c = f64(guided), f64(cond)
    length = norm(y, dims) + eps
    factor = np.where(length == 0, 1.0, per_sample(cap, y) * ratio(norm(c, dims), length, 1.0))
    if mode == "cap":
        factor = np.minimum(factor, 1.0)
    elif mode == "clamp":
        factor = np.minimum(np.maximum(factor, low), 1.0)
    elif mode != "full":
        raise ValueError(f"mode must be 'cap', 'full' or 'clamp', got {mode!r}")
    return y * factor
