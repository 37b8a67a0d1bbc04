"""Rules that are not a weighted sum of predictions, or that take the sampler's step with them."""

from __future__ import annotations

import numpy as np

from .arrays import Array, Parameter, axes, f64, norm, per_sample, ratio


def dynamic_threshold(x0: Array, *, quantile: float = 0.995, cap: float | None = None) -> Array:
    """Imagen's dynamic thresholding, Saharia et al., arXiv 2205.11487, sec. 2.3.

    ``q`` = the per-sample quantile of |x0| (linear interpolation), ``q = max(q, 1)`` (and at most ``cap``);
    ``clip(x0, −q, q)/q``.  diffusers' default cap of 1.0 makes it a plain clip.  Shapes ``[B, ...]``.
    """
    x0 = f64(x0)
    q = np.quantile(np.abs(x0), quantile, axis=axes(x0, None), keepdims=True)
    q = np.maximum(q, 1.0)
    if cap is not None:
        q = np.minimum(q, cap)
    return np.clip(x0, -q, q) / q


def static_threshold(x0: Array, *, bound: float = 1.0) -> Array:
    """``clip(x0, −bound, bound)``, arXiv 2205.11487, sec. 2.3."""
    return np.clip(f64(x0), -bound, bound)


def mahiro(*, uncond: Array, cond: Array, scale: Parameter, dim: int = 1, eps: float = 1e-8) -> Array:
    """Mahiro ("positive-biased guidance", ComfyUI's nodes_mahiro), per sample, on x0 predictions.

    With ``y = u + s·(c − u)``, ``leap = s·c``, ``n(z) = sign(z)·√|z|``, the similarity is the mean over a
    sample of ``cos(n(s·u), n((leap + y)/2))`` along ``dim``, and the result ``(w·y + (4 − w)·leap)/4`` with
    ``w = 2·(sim + 1)``. ComfyUI takes the mean over the whole batch, so that a sample depends on its batch
    mates.
    """
    u, c = f64(uncond), f64(cond)
    s = per_sample(scale, c)

    def signed_root(z: Array) -> Array:
        return np.sign(z) * np.sqrt(np.abs(z))

    y, leap = u + s * (c - u), s * c
    a, b = signed_root(s * u), signed_root((leap + y) / 2)
    cosine = np.sum(a * b, axis=dim, keepdims=True) / (np.maximum(norm(a, dim), eps) * np.maximum(norm(b, dim), eps))
    w = 2 * (cosine.mean(axis=axes(c, None), keepdims=True) + 1)
    return (w * y + (4 - w) * leap) / 4


def nag(
    *,
    positive: Array,
    negative: Array,
    scale: Parameter = 5.0,
    tau: float = 2.5,
    alpha: float = 0.25,
    eps: float = 0.0,
) -> Array:
    """Normalised attention guidance, Chen et al., arXiv 2505.21179, on attention outputs ``[B, N, C]``.

    ``g = s·z₊ − (s − 1)·z₋``; ``r = ‖g‖₁/‖z₊‖₁`` per token; ``ĝ = g·min(r, τ)/r``; ``α·ĝ + (1 − α)·z₊``.  The
    paper extrapolates from z₊ with ``z₊ + s'·(z₊ − z₋)``, s' = s − 1.  ``eps`` is the lower bound of both
    norms (ComfyUI: 1e−6).  ‖g‖ = 0 leaves ĝ = 0; ‖z₊‖ = 0 with eps = 0 leaves ĝ = 0, the limit of the cap
    τ·‖z₊‖.
    """
    zp, zn = f64(positive), f64(negative)
    s = per_sample(scale, zp)
    g = s * zp - (s - 1) * zn
    n_pos = np.maximum(np.abs(zp).sum(axis=-1, keepdims=True), eps)
    n_g = np.maximum(np.abs(g).sum(axis=-1, keepdims=True), eps)
    factor = np.minimum(1.0, tau * ratio(n_pos, n_g, 1.0))
    return alpha * (g * factor) + (1 - alpha) * zp


def epsilon_scaling(*, x: Array, denoised: Array, factor: Parameter = 1.005) -> Array:
    """``x − (x − x̂0)/λ``: the predicted noise divided by λ, Ning et al., arXiv 2308.15321."""
    x, d = f64(x), f64(denoised)
    return x - (x - d) / per_sample(factor, x)


def temporal_score_rescaling(
    *, x: Array, denoised: Array, alpha: Parameter, sigma: Parameter, k: float = 0.95, spread: float = 1.0
) -> Array:
    """TSR, arXiv 2510.01184, eq. 6: ε scaled by ``r = (η·v + 1)/(η·v/k + 1)``, η = α²/σ², v = spread².

    Returned as x0: ``(x − r·σ·ε)/α = (1 − r)·x/α + r·x̂0``.  σ = 0 gives r = k, and x/α = x̂0 there.
    """
    x, d = f64(x), f64(denoised)
    a, s = per_sample(alpha, x), per_sample(sigma, x)
    v = spread**2
    r = (a**2 * v + s**2) / (a**2 * v / k + s**2)
    return (1 - r) * x / a + r * d


def fresca(
    *, uncond: Array, cond: Array, scale: Parameter, low: float = 1.0, high: float = 1.25, cutoff: int = 20
) -> Array:
    """FreSca, Huang et al., arXiv 2504.02154: ``u + s·F⁻¹(m·F(c − u))`` with m = ``low`` inside the centred
    square of half-width ``cutoff`` (indices −cutoff … cutoff − 1) of the 2-D spectrum and ``high`` outside.
    ``[B, ..., H, W]``.

    A cutoff beyond half a side covers the whole side (in ComfyUI a negative slice start then empties the
    square).
    """
    u, c = f64(uncond), f64(cond)
    height, width = c.shape[-2:]
    k_y, k_x = (np.round(np.fft.fftfreq(n) * n) for n in (height, width))
    inside = [(k >= -cutoff) & (k < cutoff) for k in (k_y, k_x)]
    gain = np.where(inside[0][:, None] & inside[1][None, :], low, high)
    # Not .real of a Hermitian product: the square is not symmetric, so the imaginary part is dropped as peers
    # do.
    filtered = np.fft.ifft2(np.fft.fft2(c - u) * gain).real
    return u + per_sample(scale, c) * filtered


def log_softmax(logits: Array) -> Array:
    """``logits − log Σ exp(logits)`` over the last dim; −inf stays −inf."""
    z = f64(logits)
    top = z.max(axis=-1, keepdims=True)
    shifted = z - np.where(np.isfinite(top), top, 0.0)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def guided_logits(*, uncond: Array, cond: Array, scale: Parameter) -> Array:
    """``log p_u + s·(log p_c − log p_u)``, Sanchez et al., arXiv 2306.17806, eq. 7.  Logits ``[B, ..., V]``.

    Both sides are log-softmax first.  A token at −inf in ``cond`` or ``uncond`` is −inf in the result, where
    the formula would be NaN or +inf; at s = 1 only ``cond`` decides and at s = 0 only ``uncond``.
    """
    log_u, log_c = log_softmax(uncond), log_softmax(cond)
    s = np.broadcast_to(per_sample(scale, log_c), log_c.shape)
    dead = (np.isneginf(log_c) & (s != 0)) | (np.isneginf(log_u) & (s != 1))
    a, b = (np.where(np.isneginf(z), 0.0, z) for z in (log_u, log_c))
    return np.where(dead, -np.inf, (1 - s) * a + s * b)


def cfg_pp_step(
    *,
    x: Array,
    uncond: Array,
    cond: Array,
    scale: Parameter,
    alpha: Parameter,
    sigma: Parameter,
    next_alpha: Parameter,
    next_sigma: Parameter,
) -> tuple[Array, Array]:
    """CFG++ with a DDIM step, Chung et al., arXiv 2406.08070, algorithm 2, on eps predictions.

    ``ε^λ = (1 − λ)·ε_u + λ·ε_c`` (λ in [0, 1]); ``x̂0 = (x − σ·ε^λ)/α``; ``x' = α'·x̂0 + σ'·ε_u``: renoised
    with the *unconditional* noise.  Returns (x', x̂0).  Shapes ``[B, ...]``.
    """
    x, u, c = f64(x), f64(uncond), f64(cond)
    a, s, a_next, s_next = (per_sample(p, x) for p in (alpha, sigma, next_alpha, next_sigma))
    lam = per_sample(scale, x)
    eps = (1 - lam) * u + lam * c
    x0 = (x - s * eps) / a
    return a_next * x0 + s_next * u, x0


def residual_cfg(*, cond: Array, stock: Array, scale: Parameter, delta: Parameter = 1.0) -> Array:
    """Residual CFG, Kodaira et al., arXiv 2312.12491: CFG with ``δ·stock`` noise for u ``[B, ...]``."""
    c = f64(cond)
    u = per_sample(delta, c) * f64(stock)
    return u + per_sample(scale, c) * (c - u)


def gated_guidance(*, cond: Array, cached_delta: Array, scale: Parameter) -> Array:
    """``c + (s − 1)·d`` with d = c − u from an earlier step: no unconditional pass.  Shapes ``[B, ...]``."""
    c = f64(cond)
    return c + (per_sample(scale, c) - 1) * f64(cached_delta)
